"""What ClaimX knows of a cabinet task, and the form in it: typed answers, the photos, and all that was asked.

ClaimX's answers are read leniently: an optional key that is missing, null or of another type is None, and a bad
question costs a warning, never the form. Only what is not such an answer at all is refused. All functions are pure and
thread-safe.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel

from itel_cabinet.transforms.events import INT64_MAX, parse_timestamp, without_fraction
from itel_cabinet.transforms.json_text import read_json_text
from itel_cabinet.transforms.wording import normalize

__all__ = [
    "AnswerValue",
    "ExternalLink",
    "Form",
    "FormReader",
    "Photo",
    "PhotoQuestion",
    "Positional",
    "Question",
    "Section",
    "TaskDetails",
    "WrongShapeError",
    "parse_details",
    "read_int",
    "read_text",
    "read_timestamp",
]

AnswerValue = bool | float | int | str | None


Type = Literal["yes_no", "decimal", "integer", "text", "choice"]
Reaction = Literal["ignore", "warn", "hold"]


class Question(NamedTuple):
    """A question with a column of its own, found by its group and text as ``normalize`` has them.

    ``missing`` says what happens when a form does not have it.
    """

    column: str
    type: Type
    group: str
    text: str
    missing: Reaction = "ignore"


class PhotoQuestion(NamedTuple):
    """A question that photos answer, found by its text, or else by the id of its form control."""

    key: str
    text: str
    control_ids: tuple[str, ...] = ()


class Positional(NamedTuple):
    """A group whose answers are read by their place, as text; found by its id."""

    name: str
    group_id: str
    answers: int
    missing: Reaction = "warn"


class Section(NamedTuple):
    """Columns of which some decide whether the rest is sent: none is, if they are all null, false or 0."""

    decided_by: tuple[str, ...]
    columns: tuple[str, ...]


def read_text(value: object) -> str | None:
    """Trimmed text; a number (a phone, say) as its text, a whole one without a fraction; None for blank and everything
    else."""
    if isinstance(value, str):
        return value.strip() or None
    value = without_fraction(value)
    return str(value) if type(value) in (int, float) else None


def read_int(value: object) -> int | None:
    """A 64-bit whole number, also from its digits as text and from a double; None for everything else."""
    value = without_fraction(value)
    if isinstance(value, str) and re.fullmatch(r"\s*-?[0-9]{1,19}\s*", value):
        value = int(value)
    return value if type(value) is int and -INT64_MAX - 1 <= value <= INT64_MAX else None


def read_timestamp(value: object) -> datetime | None:
    """ISO 8601 text or seconds or milliseconds since 1970 as an aware UTC datetime (without a zone it is UTC); None for
    everything else."""
    try:
        return parse_timestamp(value)
    except ValueError:
        return None


_Text = Annotated[str | None, BeforeValidator(read_text)]
_Int = Annotated[int | None, BeforeValidator(read_int)]
_Timestamp = Annotated[datetime | None, BeforeValidator(read_timestamp)]


class WrongShapeError(ValueError):
    """Not an answer about a task; one line that names the key at fault, without values."""


class _Lenient(BaseModel):
    model_config = ConfigDict(frozen=True, alias_generator=to_camel)


class ExternalLink(_Lenient):
    """The policyholder's link to the task, and who they are."""

    url: _Text = None
    first_name: _Text = None
    last_name: _Text = None
    email: _Text = None
    phone: _Text = None


_NO_LINK = ExternalLink()
_PLACES_KEPT = 4_096
_LONGEST_KEPT = 1_000  # characters: a form may hold anything


class TaskDetails(_Lenient):
    """ClaimX's answer about one assignment. ``text`` is all of it, as JSON; ``groups`` its form as it came, or empty;
    ``raw`` the rest; ``repairs`` says what had to be put right to read it."""

    assignment_id: int
    task_id: _Int = None
    project_id: _Text = None
    task_name: _Text = None
    form_id: _Text = None
    form_response_id: _Text = None
    status: _Text = None
    assignor_email: _Text = None
    assignee_id: _Int = None
    assignor_id: _Int = None
    date_assigned: _Timestamp = None
    date_completed: _Timestamp = None
    external_link_data: Annotated[
        ExternalLink, BeforeValidator(lambda link: link if isinstance(link, dict) else _NO_LINK)
    ] = _NO_LINK
    groups: list[Any]
    raw: dict[str, Any]
    text: str = Field(repr=False)
    repairs: tuple[str, ...] = ()

    @property
    def has_form(self) -> bool:
        """Whether the form has been filled in at all."""
        return bool(self.groups)

    def without_groups(self) -> TaskDetails:
        """The same with nothing of the form: once it is read, its many small objects would only take room."""
        return self.model_copy(update={"groups": []}) if self.groups else self


@dataclass(frozen=True, slots=True)
class Photo:
    """A photo in an answer. ``display_order`` counts from 1 within a question key; the media id is positive."""

    question_key: str
    question_text: str
    control_id: str | None
    topic_category: str
    claim_media_id: int
    display_order: int


@dataclass(frozen=True, slots=True)
class Form:
    """A form, read. ``answers`` has the column of every question: bool, float (decimal), int (32 bits), text, or None.

    ``raw_data`` holds all that was asked, known or not: group name -> list of ``{"q": text, "a": answer, "id": ...}``.
    ``warnings`` say in one line each which answer could not be read and became None, what was answered twice, which
    question is not known, and which section has answers but is not sent. ``unknown_questions`` are their texts as
    ``normalize`` has them, each once. ``by_position`` has the answers of the groups that are read so, ``looked_for``
    the answers to questions that were looked for in any group, by their normalized text. ``changes`` are the warnings
    for which the form is not to be submitted, and ``typed`` all that a person has typed into it.
    """

    answers: Mapping[str, AnswerValue]
    photos: tuple[Photo, ...]
    raw_data: Mapping[str, list[dict[str, Any]]]
    warnings: tuple[str, ...]
    unknown_questions: tuple[str, ...] = ()
    by_position: Mapping[str, tuple[str | None, ...]] = field(default_factory=dict)
    looked_for: Mapping[str, AnswerValue] = field(default_factory=dict)
    changes: tuple[str, ...] = ()
    typed: tuple[str, ...] = field(default=(), repr=False, compare=False)


def parse_details(raw: bytes, assignment_id: int) -> TaskDetails:
    """ClaimX's answer to the question for ``assignment_id``. Raises WrongShapeError."""
    try:
        content, repairs, text = read_json_text(raw)
    except ValueError as error:
        raise WrongShapeError(f"the answer is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise WrongShapeError("the answer is not an object")
    if read_int(content.get("assignmentId")) != assignment_id:
        raise WrongShapeError("assignmentId is not the one that was asked for")
    response = content.get("response")
    if not isinstance(response, dict | None):
        raise WrongShapeError("response is neither an object nor null")
    groups = (response or {}).get("groups")
    if not isinstance(groups, list | None):
        raise WrongShapeError("response.groups is neither a list nor null")
    assignor = read_text(content.get("assignor")) or content.get("assignorEmail")
    return TaskDetails.model_validate(
        {
            **content,
            "assignmentId": assignment_id,
            "assignorEmail": assignor,
            "groups": groups or [],
            "raw": {key: value for key, value in content.items() if key != "response"},
            "text": text,
            "repairs": repairs,
        }
    )


class FormReader:
    """Reads forms by the questions that are known. Immutable and thread-safe."""

    def __init__(
        self,
        questions: Sequence[Question],
        *,
        without_column: Iterable[str] = (),
        photos: Sequence[PhotoQuestion] = (),
        by_position: Sequence[Positional] = (),
        sections: Sequence[Section] = (),
        look_for: Iterable[str] = (),
        hold_unknown: bool = False,
    ) -> None:
        """
        Args:
            questions: those with a column, in the columns' order.
            without_column: the texts of those that are known, and kept in ``raw_data`` alone.
            photos: those that photos answer.
            by_position: groups that are read by position.
            sections: what is lost where nobody said that a section is damaged.
            look_for: the texts of questions whose answers are wanted, no matter in which group they are.
            hold_unknown: a form with an unknown question is not to be submitted.
        """
        self._questions = tuple(questions)
        self._at = {(normalize(one.group), normalize(one.text)): one for one in questions}
        self._unanswered = dict.fromkeys(one.column for one in questions)
        self._expected = tuple((place, one) for place, one in self._at.items() if one.missing != "ignore")
        self._without_column = frozenset(map(normalize, without_column))
        self._photo_keys = {normalize(one.text): one.key for one in photos}
        # Only asked where the text is unknown: ids are reused across sections.
        self._control_keys = {control: one.key for one in photos for control in one.control_ids}
        self._by_position = tuple(by_position)
        self._sections = tuple(sections)
        self._looked_for = frozenset(map(normalize, look_for))
        self._hold_unknown = hold_unknown
        # Forms ask the same again and again.
        self._places: dict[tuple[str, str], _Place] = {}
        self._positional = frozenset(one.group_id for one in by_position)

    def read(self, details: TaskDetails) -> Form:
        """The form in ClaimX's answer; never raises. Where a question is answered twice the last answer counts, with a
        warning if another one is lost by that.

        Yes and no are read in yes/no questions only, by how the answer begins ("Yes, ..." / "No, ..." / "There is no
        ..."); all other text stays as it was typed.
        """
        warnings = list(details.repairs)
        changes: list[str] = []
        answers: dict[str, AnswerValue] = self._unanswered.copy()
        raw_data: dict[str, list[dict[str, Any]]] = {}
        photos: dict[tuple[str, int], Photo] = {}
        photos_of: dict[str, int] = {}
        # A column's warning goes when a later answer to the same question replaces it.
        complaints: dict[str, str | None] = {}
        unknown: dict[str, None] = {}
        looked_for: dict[str, AnswerValue] = {}
        places: set[tuple[str, str]] = set()
        typed: list[str] = []
        by_position = self._read_by_position(details.groups, warnings, changes)
        for asked in _questions(details.groups, warnings):
            value: Any = asked.value
            place = self._places.get((asked.group, asked.text)) or self._place(asked.group, asked.text)
            if self._expected:
                places.add(place.names)
            if asked.is_typed and isinstance(value, str):
                typed.append(value)
            if place.is_looked_for and not isinstance(value, list):
                looked_for[place.text] = value
            if question := place.question:
                answer, complaint = _typed(question.type, value)
                if answers[question.column] not in (None, answer):
                    warnings.append(f"{question.column}: answered more than once: the last answer counts")
                answers[question.column] = answer
                complaints[question.column] = complaint
                if question.type == "yes_no" and answer is not None:
                    value = answer
            elif (
                not (place.photo_key if asked.is_photo else place.is_known)
                and place.text not in unknown
                and asked.group_id not in self._positional
                and not (asked.is_photo and asked.control_id in self._control_keys)
            ):
                unknown[place.text] = None
                warning = f"unknown question {_excerpt(asked.text)} in group {_excerpt(asked.group)}"
                warnings.append(warning)
                if self._hold_unknown:
                    changes.append(warning)
            raw_data.setdefault(asked.group, []).append({"q": asked.text, "a": value, "id": asked.control_id})
            if not asked.is_photo:
                continue
            key = place.photo_key or self._control_keys.get(asked.control_id or "") or place.own_key
            for media_id in _media_ids(asked, key, warnings):
                if (key, media_id) not in photos:
                    photos_of[key] = photos_of.get(key, 0) + 1
                    photos[key, media_id] = Photo(
                        key, asked.text, asked.control_id, place.category, media_id, photos_of[key]
                    )
        warnings += [f"{column}: {complaint}" for column, complaint in complaints.items() if complaint]
        for names, question in self._expected:
            if names not in places:
                _react(question.missing, f"{question.column}: the form does not have its question", warnings, changes)
        warnings += self._lost_sections(answers)
        typed += [text for texts in by_position.values() for text in texts if text]
        return Form(
            answers,
            tuple(photos.values()),
            raw_data,
            tuple(warnings),
            tuple(unknown),
            by_position,
            looked_for,
            tuple(changes),
            tuple(typed),
        )

    def _lost_sections(self, answers: Mapping[str, AnswerValue]) -> Iterator[str]:
        """A warning for each section that is not sent, as nobody said that it is damaged, though the rest is
        answered."""
        for decided_by, columns in self._sections:
            if answers[decided_by[0]] is None and not any(answers[column] for column in decided_by):
                answered = next((column for column in columns if answers[column] is not None), None)
                if answered:
                    yield f"{decided_by[0]}: not answered, so the section is not sent, though {answered} is"

    def _read_by_position(
        self, groups: list[Any], warnings: list[str], changes: list[str]
    ) -> dict[str, tuple[str | None, ...]]:
        found: dict[str, tuple[str | None, ...]] = {}
        for name, group_id, number, missing in self._by_position:
            group = next((one for one in groups if isinstance(one, dict) and one.get("groupId") == group_id), None)
            questions = group.get("questionAndAnswers") if group else None
            texts = [_position_text(one) for one in questions] if isinstance(questions, list) else []
            if group is None:
                _react(missing, f"{name}: the form has no group {group_id}", warnings, changes)
            elif len(texts) < number:
                warning = f"{name}: group {group_id} has {len(texts)} answers in place of {number}"
                _react(missing, warning, warnings, changes)
            found[name] = (*texts[:number], *[None] * (number - len(texts)))
        return found

    def _place(self, group: str, text: str) -> _Place:
        names = normalize(group), normalize(text)
        place = _Place(
            names,
            self._at.get(names),
            names[1] in self._without_column or names[1] in self._looked_for,
            names[1] in self._looked_for,
            self._photo_keys.get(names[1]),
            re.sub(r"[ /]", "_", names[1]).replace("?", ""),
            _topic_category(names),
        )
        if len(group) + len(text) <= _LONGEST_KEPT:
            if len(self._places) >= _PLACES_KEPT:
                self._places.clear()
            self._places[group, text] = place
        return place


def _react(reaction: Reaction, warning: str, warnings: list[str], changes: list[str]) -> None:
    if reaction != "ignore":
        warnings.append(warning)
    if reaction == "hold":
        changes.append(warning)


class _Place(NamedTuple):
    """What is known of a question by its group and text, both as ``normalize`` has them."""

    names: tuple[str, str]
    question: Question | None
    is_known: bool
    is_looked_for: bool
    photo_key: str | None
    own_key: str
    category: str

    @property
    def text(self) -> str:
        return self.names[1]


class _Asked(NamedTuple):
    group: str
    group_id: str
    text: str
    control_id: str | None
    is_photo: bool
    is_typed: bool
    value: Any


def _questions(groups: list[Any], warnings: list[str]) -> Iterator[_Asked]:
    for g, group in enumerate(groups):
        if not isinstance(group, dict):
            warnings.append(f"groups[{g}]: not an object")
            continue
        questions = group.get("questionAndAnswers")
        if not isinstance(questions, list):
            if questions is not None:
                warnings.append(f"groups[{g}].questionAndAnswers: not a list")
            continue
        name, group_id = read_text(group.get("name")) or "", read_text(group.get("groupId")) or ""
        for q, question in enumerate(questions):
            text = question.get("questionText") if isinstance(question, dict) else None
            if not isinstance(text, str):
                warnings.append(f"groups[{g}].questionAndAnswers[{q}]: not a question")
                continue
            control, answer = question.get("formControl"), question.get("responseAnswerExport")
            control_id = read_text(control.get("id")) if isinstance(control, dict) else None
            is_photo = is_typed = False
            value = None
            if isinstance(answer, dict):
                is_photo, value = _value(answer)
                is_typed = answer.get("type") == "text"
            elif answer is not None:
                warnings.append(f"groups[{g}].questionAndAnswers[{q}].responseAnswerExport: not an object")
            yield _Asked(name, group_id, text.strip(), control_id, is_photo, is_typed, value)


def _position_text(question: Any) -> str | None:
    answer = question.get("responseAnswerExport") if isinstance(question, dict) else None
    return read_text(_value(answer)[1]) if isinstance(answer, dict) else None


def _value(answer: dict[str, Any]) -> tuple[bool, Any]:
    """Whether an answer is made of photos, and its value."""
    match answer.get("type"):
        case "text":
            return False, answer.get("text")
        case "number":
            number = answer.get("numberAnswer")
            return False, number.get("value", number.get("name")) if isinstance(number, dict) else number
        case "option":
            option = answer.get("optionAnswer")
            return False, option.get("name") if isinstance(option, dict) else None
        case "image":
            media = answer.get("claimMediaIds")
            return True, [] if media is None else media
    return False, None


def _typed(kind: Type, value: object) -> tuple[AnswerValue, str | None]:
    """The answer in the type of its column, or None with a complaint; unanswered is None without one."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None, None
    match kind:
        case "yes_no":
            answer: AnswerValue = _yes_no(value)
            wanted = "neither yes nor no"
        case "decimal":
            answer = _number(value)
            wanted = "not a number"
        case "integer":
            answer = _count(value)
            wanted = "not a whole number of 32 bits"
        case _:
            answer = value if isinstance(value, str) else read_text(value)
            wanted = "not text"
    return answer, f"{_excerpt(value)} is {wanted}" if answer is None else None


def _yes_no(value: object) -> bool | None:
    if isinstance(value, bool):
        return value
    words = value.strip().lower() if isinstance(value, str) else ""
    if words == "yes" or words.startswith("yes,"):
        return True
    if words == "no" or words.startswith(("no,", "there is no")):
        return False
    return None


def _number(value: object) -> float | None:
    if isinstance(value, str):
        plain = re.fullmatch(r"\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)\s*", value)
        number = float(value) if plain else math.nan
    elif type(value) in (int, float):
        try:
            number = float(value)  # type: ignore[arg-type]
        except OverflowError:
            return None
    else:
        return None
    return number if math.isfinite(number) else None


def _count(value: object) -> int | None:
    number = _number(value)
    # A double holds every whole number of 32 bits exactly.
    return int(number) if number is not None and number.is_integer() and -(2**31) <= number < 2**31 else None


def _excerpt(value: object) -> str:
    text = value if isinstance(value, str) else type(value).__name__ if isinstance(value, list | dict) else repr(value)
    text = " ".join(text.split())
    return f"'{text[:47]}...'" if len(text) > 50 else f"'{text}'"


def _media_ids(asked: _Asked, key: str, warnings: list[str]) -> Iterator[int]:
    if not isinstance(asked.value, list):
        warnings.append(f"{key}: claimMediaIds is not a list")
        return
    for item in asked.value:
        media_id = read_int(item)
        if media_id is not None and media_id > 0:
            yield media_id
        elif media_id is None and item is not None:
            warnings.append(f"{key}: {_excerpt(item)} is not a media id")


def _topic_category(names: tuple[str, str]) -> str:
    words = " ".join(names)
    for needles, category in (
        (("island",), "Island Cabinets"),
        (("lower",), "Lower Cabinets"),
        (("upper",), "Upper Cabinets"),
        (("full height", "pantry"), "Full Height / Pantry"),
        (("countertop",), "Countertops"),
    ):
        if any(needle in words for needle in needles):
            return category
    return "General"
