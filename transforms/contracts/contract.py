"""A contract, compiled: it reads forms, decides which are submitted, and makes the bodies."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError
from pydantic_core import to_json

from itel_cabinet.transforms.contracts.body_schema import BodySchema, compare, find_schema_problems
from itel_cabinet.transforms.contracts.document import ContractError, Document, Path, Problem, read_document
from itel_cabinet.transforms.contracts.mapping import Compiler, Facts
from itel_cabinet.transforms.contracts.model import OWN_HEADERS, REFERENCE, ContractFile, FromVar
from itel_cabinet.transforms.contracts.scope import (
    PhotoFacts,
    find_photos,
    group_photos,
    look_up_question,
    make_scope,
    without_exports,
)
from itel_cabinet.transforms.events import TaskEvent
from itel_cabinet.transforms.forms import Form, FormReader, PhotoQuestion, Positional, Question, Section, TaskDetails
from itel_cabinet.transforms.wording import normalize

__all__ = ["SHIPPED", "Body", "Contract", "Refusal", "compile_contract", "load_shipped", "shipped_text"]

SHIPPED = ("cabinet_repair", "vendor")
"""The contracts that come with the package; the first is the default."""

_RESERVED_SOURCES = frozenset({"task", "event", "customer", "form", "vars", "photos", "photo_groups", "photo", "group"})
_RESERVED_SOURCES |= {"project", "looked_for"}
# Columns of the forms table that are not the contract's.
FORM_COLUMNS = frozenset(
    [
        "assignment_id",
        "task_id",
        "task_name",
        "project_id",
        "form_id",
        "form_response_id",
        "status",
        "event_id",
        "date_assigned",
        "date_completed",
        "ingested_at",
        "customer_first_name",
        "customer_last_name",
        "customer_email",
        "customer_phone",
        "assignor_email",
        "external_link_url",
        "raw_data",
        "created_at",
        "updated_at",
        "parse_warnings",
        "event_timestamp",
        "kafka_topic",
        "kafka_topic_id",
        "kafka_partition",
        "kafka_offset",
    ]
)
_PEOPLE = re.compile("customer|insured|policyholder|contact|adjuster|owner|resident", re.IGNORECASE)
# Two letters of half a continent, and words of ClaimX's own.
_SAYS_LITTLE = re.compile("state|province|country|method|[a-z]Id$")
_SHORT_NUMBER = re.compile(r"[-+.,\d\s]{1,4}")
_SAYS_NOTHING = frozenset({"yes", "no", "true", "false", "none", "null", "n/a"})

Vars = Mapping[str, str | int | float | bool]


@dataclass(frozen=True, slots=True)
class Body:
    """What is sent of one form.

    Attributes:
        payload: its JSON text.
        key: the field by which a repeat is recognised, if it is in the body.
        personal: what in the payload, and in what it was made of, is about people; longest first.
        passing: texts in it that differ from one time to the next for the same form: the key, and signed links.
    """

    payload: bytes = field(repr=False)
    key: str | None
    personal: tuple[str, ...] = field(repr=False)
    passing: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a form cannot be submitted: ``incomplete``, ``invalid_payload`` or ``form_changed``, and one line without
    values."""

    error_class: str
    error: str


class Contract:
    """One integration. Immutable, thread-safe, and picklable: it travels as its text.

    Attributes:
        file: what its file says.
        source: where it was read from, as messages name it.
        sha256: of the file's text, hex.
        vars: what the installation gives; bodies have null in the place of what it does not.
        questions: those with a column, in the columns' order.
    """

    def __init__(self, text: str, source: str, vars: Vars, *, complete: bool) -> None:
        """Raises ContractError, with every mistake that there is; with ``complete`` a var that is not given is one."""
        document = read_document(text, source)
        file = _read_file(document, source)
        self.file = file
        self.source = source
        self.sha256 = hashlib.sha256(text.encode()).hexdigest()
        self.text = text
        self.vars = dict(vars)
        self._complete = complete
        self.questions = tuple(
            Question(one.column, one.type, one.group, one.question, one.missing or file.form.missing)
            for one in file.form.questions
        )
        problems = [document.problem(path, said) for path, said in _find_contradictions(file)]
        looked_for: list[str] = []

        def look_for(question: str) -> Any:
            looked_for.append(question)
            return look_up_question(question)

        scope = make_scope(file)
        compiler, gatekeeper = Compiler(scope, look_for), Compiler(without_exports(scope), look_for)
        body = compiler.object(file.body, ("body",))
        self._make_body = body.make
        self._gate = None if file.tasks.gate is None else gatekeeper.condition(file.tasks.gate, ("tasks", "gate"))[0]
        problems += [document.problem(path, said) for path, said in (*compiler.problems, *gatekeeper.problems)]
        schema_problems = [*find_schema_problems(file.body_schema, ("schema",))]
        if not schema_problems:
            try:
                self._schema = BodySchema(file.body_schema)
            except ValueError as error:
                schema_problems.append((("schema",), str(error)))
        if not schema_problems and not compiler.problems:
            schema_problems += compare(body, file.body_schema, ("body",))
        problems += [document.problem(path, said) for path, said in schema_problems]
        problems += [document.problem(("vars",), said) for said in _find_var_problems(file, vars, complete)]
        key = file.request.key.body
        if key is not None and (key not in body.fields or body.fields[key].constant):
            said = "must be a field of the body that is not a constant"
            problems.append(document.problem(("request", "key", "body"), said))
        if problems:
            raise ContractError(source, sorted(problems, key=lambda one: one.line))

        self._values: dict[str, Any] = {**{name: one.default for name, one in file.vars.items()}, **self.vars}
        self._image_types = {one.key: one.image_type for one in file.form.photos}
        self._uses_photos = compiler.uses_photos
        self._reader = FormReader(
            self.questions,
            without_column=file.form.without_column,
            photos=[PhotoQuestion(one.key, one.question, tuple(one.control_ids)) for one in file.form.photos],
            by_position=[
                Positional(name, one.group_id, one.answers, one.missing) for name, one in file.form.by_position.items()
            ],
            sections=[*_find_sections(compiler, self.questions)],
            look_for=looked_for,
            hold_unknown=file.form.unknown == "hold",
        )
        self.read_form = self._reader.read

    def __reduce__(self) -> tuple[Any, ...]:
        return compile_contract, (self.text, self.source, tuple(sorted(self.vars.items())), self._complete)

    def __repr__(self) -> str:
        return f"Contract({self.label})"

    @property
    def label(self) -> str:
        """Name and version, for people."""
        return f"{self.file.name} {self.file.version}"

    @property
    def stamp(self) -> str:
        """What stands in results and dead letters: the label and the beginning of the file's SHA-256."""
        return f"{self.label} sha256:{self.sha256[:12]}"

    @property
    def task_ids(self) -> frozenset[int]:
        """The task templates whose events are read."""
        return frozenset(self.file.tasks.ids)

    @property
    def gate_question(self) -> str | None:
        """The question that the gate asks about, if that is all that it asks."""
        gate = self.file.tasks.gate
        return gate.get("question") if isinstance(gate, dict) else None

    @property
    def needs_exports(self) -> bool:
        return self.needs_project or self.needs_links

    @property
    def needs_project(self) -> bool:
        return self.file.lookups.project is not None

    @property
    def needs_links(self) -> bool:
        return self.file.lookups.media is not None

    def passes(self, details: TaskDetails, form: Form, event: TaskEvent) -> bool:
        """Whether the gate lets a form through; without a gate each."""
        return self._gate is None or self._gate(Facts(self._sources(details, form, event)))

    def _sources(self, details: TaskDetails, form: Form, event: TaskEvent) -> dict[str, Any]:
        return {
            "task": details,
            "event": event,
            "customer": details.external_link_data,
            "form": form.answers,
            "vars": self._values,
            "looked_for": form.looked_for,
            **form.by_position,
        }

    def sent_photos(self, form: Form) -> tuple[int, ...]:
        """The media ids of the photos that iTel has a name for: those whose links are needed."""
        return tuple(photo.claim_media_id for photo in form.photos if self._image_types.get(photo.question_key))

    def build(
        self,
        details: TaskDetails,
        form: Form,
        event: TaskEvent,
        project: Mapping[str, Any] | None = None,
        links: Mapping[int, str] | None = None,
    ) -> Body | Refusal:
        """The body of a completed form. ``project`` is ClaimX's answer about it, ``links`` are those of the photos;
        None is what ClaimX does not have, or was not asked for. Pure; the same bytes for the same form."""
        if form.changes:
            return Refusal("form_changed", f"the form is not what the contract expects: {'; '.join(form.changes[:3])}")
        sources = {**self._sources(details, form, event), "project": self._read_project(project)}
        photos: list[PhotoFacts] = []
        if self._uses_photos:
            photos = find_photos(form.photos, self._image_types, links or {})
            sources |= {"photos": photos, "photo_groups": group_photos(photos)}
        facts = Facts(sources)
        try:
            body = self._make_body(facts)
            payload = to_json(body)
        except Exception as error:  # of a conversion that someone has added, say: one form's fault, not the job's
            return Refusal("invalid_payload", f"the body cannot be made: {type(error).__name__}")
        field = self.file.request.key.body
        key = None if field is None else body[field]
        missing = [*facts.missing, *([field] if field is not None and key is None else [])]
        if missing:
            return Refusal("incomplete", f"required by iTel but missing: {', '.join(dict.fromkeys(missing))}")
        if errors := self._schema.errors(body):
            return Refusal("invalid_payload", f"the body breaks the contract's schema: {'; '.join(errors)}")
        key = None if key is None else str(key)
        passing = (*([] if key is None else [key]), *(one.url for one in photos if one.url and "?" in one.url))
        return Body(payload, key, _personal(details, form, project, facts.personal), passing)

    def _read_project(self, answer: Mapping[str, Any] | None) -> dict[str, str | None]:
        wanted = self.file.lookups.project
        return {} if wanted is None else {name: _find_text(answer, path) for name, path in wanted.fields.items()}


@lru_cache(maxsize=64)
def compile_contract(
    text: str, source: str, vars: tuple[tuple[str, Any], ...] = (), complete: bool = False
) -> Contract:
    """The contract in a text; one object for the same arguments in a process. Raises ContractError."""
    return Contract(text, source, dict(vars), complete=complete)


def shipped_text(name: str) -> str:
    """The file of a shipped contract."""
    return resources.files(__package__).joinpath("shipped", f"{name}.yaml").read_text(encoding="utf-8")


def load_shipped(name: str = SHIPPED[0], vars: Vars = MappingProxyType({})) -> Contract:
    """A shipped contract. Raises ContractError."""
    return compile_contract(shipped_text(name), name, tuple(sorted(vars.items())))


def _read_file(document: Document, source: str) -> ContractFile:
    if not isinstance(document.content, dict):
        raise ContractError(source, [Problem(1, "", "must be a mapping with the keys name, tasks, form, request ...")])
    try:
        return ContractFile.model_validate(document.content)
    except ValidationError as error:
        problems = dict.fromkeys(_describe(document, one) for one in error.errors(include_url=False))
        raise ContractError(source, sorted(problems, key=lambda one: one.line)) from None


def _describe(document: Document, problem: Any) -> Problem:
    """The line for a problem that pydantic has found; what it adds to a place for a union's branch is left out."""
    path: list[str | int] = []
    here = document.content
    for part in problem["loc"]:
        if (isinstance(here, dict) and part in here) or (
            isinstance(here, list) and isinstance(part, int) and part < len(here)
        ):
            here = here[part]
        elif problem["type"] == "missing" and part == problem["loc"][-1]:
            return document.problem(tuple(path), f"{part} is missing")
        else:
            continue
        path.append(part)
    said = problem["msg"].removeprefix("Value error, ")
    match problem["type"]:
        case "extra_forbidden":
            said = "unknown key; remove it or correct its name"
        case "literal_error":
            said = f"must be {problem['ctx']['expected']}"
        case "string_pattern_mismatch":
            said = f"must match {problem['ctx']['pattern']}"
    return document.problem(tuple(path), said)


def _find_contradictions(file: ContractFile) -> Iterator[tuple[Path, str]]:
    """What no part shows by itself."""
    seen: dict[Any, str] = {}
    for index, one in enumerate(file.form.questions):
        place: Path = ("form", "questions", index)
        if one.column in FORM_COLUMNS:
            yield (*place, "column"), f"{one.column} is a column that the forms table has of its own"
        for what, key in (("column", one.column), ("question", (normalize(one.group), normalize(one.question)))):
            if key in seen:
                yield (*place, what), f"given twice; {seen[key]} has it too"
            seen[key] = f"question {index}"
    keys: set[str] = set()
    texts: set[str] = set()
    for index, photo in enumerate(file.form.photos):
        for what, key, known in (("key", photo.key, keys), ("question", normalize(photo.question), texts)):
            if key in known:
                yield ("form", "photos", index, what), "given twice"
            known.add(key)
    after = file.form.raw_data_after
    if after is not None and after not in {one.column for one in file.form.questions}:
        yield ("form", "raw_data_after"), f"no question has the column {after}"
    for name in file.form.by_position:
        if name in _RESERVED_SOURCES:
            yield ("form", "by_position", name), "the name is taken; choose another"
    if len(set(file.tasks.ids)) < len(file.tasks.ids):
        yield ("tasks", "ids"), "an id is given twice"
    project = file.lookups.project
    for name in project.personal if project else ():
        if project and name not in project.fields:
            yield ("lookups", "project", "personal"), f"{name} is not one of the fields"
    yield from _find_header_problems(file)


def _find_header_problems(file: ContractFile) -> Iterator[tuple[Path, str]]:
    if (file.request.key.header or "").lower() in OWN_HEADERS:
        yield ("request", "key", "header"), "is a header that the program sets to something else"
    seen = set()
    for name, value in file.request.headers.items():
        place: Path = ("request", "headers", name)
        if name.lower() in OWN_HEADERS:
            yield place, "is set by the program; authorization is request.auth's"
        if name.lower() in seen or name.lower() == (file.request.key.header or "").lower():
            yield place, "given twice"
        seen.add(name.lower())
        if isinstance(value, FromVar) and value.var not in file.vars:
            yield (*place, "var"), f"no var {value.var}; add it under vars"


def _find_var_problems(file: ContractFile, given: Vars, complete: bool) -> Iterator[str]:
    for name, value in given.items():
        if name not in file.vars:
            yield f"{name} is given, and the contract has no such var: there are {', '.join(file.vars) or 'none'}"
        elif file.vars[name].secret and not (isinstance(value, str) and re.fullmatch(REFERENCE, value)):
            yield f"{name} is a secret: give it as env:NAME or file:PATH (what was given is not shown)"
    for name, one in file.vars.items():
        if complete and name not in given and one.default is None:
            yield f"{name} is not given: {one.description or 'give it'}"


def _find_sections(compiler: Compiler, questions: tuple[Question, ...]) -> Iterator[Section]:
    columns = [one.column for one in questions]
    for deciding, inside in compiler.optional_objects:
        decided_by = tuple(column for column in columns if f"form.{column}" in deciding)
        others = tuple(c for c in columns if f"form.{c}" in inside and c not in decided_by)
        if decided_by and others and len(decided_by) == len(deciding):
            yield Section(decided_by, others)


def _find_text(answer: Any, path: str) -> str | None:
    for part in path.split("."):
        answer = answer.get(part) if isinstance(answer, dict) else None
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        return None
    text = str(answer).strip()
    return text or None


def _personal(details: TaskDetails, form: Form, project: Mapping[str, Any] | None, sent: list[str]) -> tuple[str, ...]:
    """Every text about the people in ClaimX's answers, no matter what the body calls it, and what was made of it."""
    raw = details.raw
    people = [raw.get("externalLinkData"), raw.get("assignor"), raw.get("assignorEmail"), *_about_people(project, 0)]
    texts = {text.strip() for text in (*_leaves(people, 0), *form.typed, *sent)}
    return tuple(sorted((text for text in texts if _tells(text)), key=lambda text: (-len(text), text)))


def _tells(text: str) -> bool:
    """Whether a text can say who somebody is: not one letter, a yes, a short number."""
    return len(text) > 1 and text.lower() not in _SAYS_NOTHING and not _SHORT_NUMBER.fullmatch(text)


def _about_people(answer: Any, depth: int) -> Iterator[Any]:
    """The parts of an answer whose names say that they are about people."""
    for name, value in answer.items() if isinstance(answer, dict) and depth < 20 else ():
        if _PEOPLE.search(name):
            yield value
        else:
            yield from _about_people(value, depth + 1)


def _leaves(value: Any, depth: int) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, int | float) and not isinstance(value, bool) and abs(value) > 9_999:
        yield json.dumps(value)  # a phone, say
    elif isinstance(value, dict | list) and depth < 20:
        parts = (
            [one for name, one in value.items() if not _SAYS_LITTLE.search(name)] if isinstance(value, dict) else value
        )
        for one in parts:
            yield from _leaves(one, depth + 1)
