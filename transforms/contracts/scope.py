"""What a contract's paths may name: the task, its event, the customer, the form's answers, photos, lookups, vars."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple

from itel_cabinet.transforms.contracts.conversions import Kind
from itel_cabinet.transforms.contracts.mapping import Facts, Scope, Source
from itel_cabinet.transforms.contracts.model import ContractFile
from itel_cabinet.transforms.forms import Photo
from itel_cabinet.transforms.wording import normalize

__all__ = [
    "PhotoFacts",
    "PhotoGroup",
    "find_photos",
    "group_photos",
    "look_up_question",
    "make_scope",
    "without_exports",
]

_TASK: Mapping[str, Kind] = {
    "assignment_id": "integer",
    "task_id": "integer",
    "project_id": "text",
    "task_name": "text",
    "form_id": "text",
    "form_response_id": "text",
    "status": "text",
    "assignor_email": "text",
    "assignee_id": "integer",
    "assignor_id": "integer",
    "date_assigned": "instant",
    "date_completed": "instant",
}
_EVENT: Mapping[str, Kind] = {
    "event_id": "text",
    "event_type": "text",
    "assignment_id": "integer",
    "project_id": "text",
    "task_id": "integer",
    "task_name": "text",
    "task_status": "text",
    "timestamp": "instant",
}
_CUSTOMER = ("first_name", "last_name", "email", "phone", "url")
_ANSWER_KINDS: Mapping[str, Kind] = {"choice": "text"}


class PhotoFacts(NamedTuple):
    """A photo as a body sees it; ``type`` is the contract's image type, ``url`` is there with a media lookup."""

    key: str
    type: str | None
    url: str | None
    text: str
    media_id: int
    control_id: str | None
    display_order: int


class PhotoGroup(NamedTuple):
    """The photos of one question key; ``text`` is the first one's question."""

    key: str
    text: str
    media_ids: list[int]


_PHOTO = dict(zip(PhotoFacts._fields, ("text", "text", "text", "text", "integer", "text", "integer"), strict=True))
_GROUP = dict(zip(PhotoGroup._fields, ("text", "text", "list"), strict=True))


def make_scope(file: ContractFile) -> Scope:
    """The scope of a contract."""
    form = {one.column: _ANSWER_KINDS.get(one.type, one.type) for one in file.form.questions}
    typed = frozenset(one.column for one in file.form.questions if one.type == "text")
    project = file.lookups.project
    sources = {
        "task": Source(_TASK, attrgetter, frozenset({"assignor_email"})),
        "event": Source(_EVENT, attrgetter),
        "customer": Source(dict.fromkeys(_CUSTOMER, "text"), attrgetter, frozenset(_CUSTOMER)),
        "form": Source(form, itemgetter, typed),
        "vars": Source({name: "any" for name, one in file.vars.items() if not one.secret}, itemgetter),
    }
    for name, group in file.form.by_position.items():
        places = frozenset(map(str, range(group.answers)))
        sources[name] = Source(dict.fromkeys(sorted(places, key=int), "text"), _place, places)
    if project is not None:
        sources["project"] = Source(dict.fromkeys(project.fields, "text"), itemgetter, frozenset(project.personal))
    collections = {
        "photos": ("photo", Source(_PHOTO, attrgetter)),
        "photo_groups": ("group", Source(_GROUP, attrgetter)),
    }
    return Scope(sources, collections)


def without_exports(scope: Scope) -> Scope:
    """What is known before ClaimX's exports are looked up: all but the project and the photos' links."""
    return Scope({name: source for name, source in scope.sources.items() if name != "project"}, {})


def _place(name: str) -> Callable[[Any], Any]:
    return itemgetter(int(name))


def look_up_question(text: str) -> Callable[[Facts], Any]:
    """What reads the answer to a question, in any group of the form."""
    wanted = normalize(text)
    return lambda facts: facts.sources["looked_for"].get(wanted)


def find_photos(photos: Iterable[Photo], types: Mapping[str, str | None], links: Mapping[int, str]) -> list[PhotoFacts]:
    """The photos of a form, in its order."""
    return [
        PhotoFacts(
            one.question_key,
            types.get(one.question_key),
            links.get(one.claim_media_id),
            one.question_text,
            one.claim_media_id,
            one.control_id,
            one.display_order,
        )
        for one in photos
    ]


def group_photos(photos: Iterable[PhotoFacts]) -> list[PhotoGroup]:
    """The photos of each key together, the keys in the order in which they come first."""
    groups: dict[str, PhotoGroup] = {}
    for one in photos:
        groups.setdefault(one.key, PhotoGroup(one.key, one.text, [])).media_ids.append(one.media_id)
    return list(groups.values())
