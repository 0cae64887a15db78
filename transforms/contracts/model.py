"""The parts of a contract's file, as pydantic checks them; the generated JSON Schema comes from here.

What the body, the gate and the schema hold is checked by the compiler (:mod:`.mapping`) and by JSON Schema itself.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from itel_cabinet.transforms.contracts.conversions import CONVERSIONS
from itel_cabinet.transforms.trace_context import TRACE_HEADERS

__all__ = [
    "OWN_HEADERS",
    "AnswerRule",
    "Answers",
    "Batch",
    "ContractFile",
    "FormPart",
    "Key",
    "Lookups",
    "MediaLookup",
    "PhotoQuestion",
    "ProjectLookup",
    "Question",
    "Request",
    "Tasks",
    "Var",
    "make_contract_schema",
]

# Pydantic looks references up at once, and these definitions are added to what it makes.
_LATER = {name: {"$comment": f"#/$defs/{name}"} for name in ("Value", "Condition")}
_PLACEHOLDERS = ("assignment_id", "project_id", "task_id", "event_id")
_HEADER = r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}$"
OWN_HEADERS = TRACE_HEADERS | {
    *("content-length", "content-type", "host", "authorization", "transfer-encoding", "connection")
}
"""What the program sets by itself, in lower case: a contract can name none of them."""
_NAME = r"^[a-z][a-z0-9_]{0,62}$"
REFERENCE = re.compile(r"(env:[A-Za-z_][A-Za-z0-9_]*|file:/.+)")


class _Part(BaseModel):
    """The text under a field is its description in the JSON Schema."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


def _check_path(path: str) -> str:
    for name in re.findall(r"\{([^{}]*)\}", path):
        if name not in _PLACEHOLDERS:
            known = ", ".join(f"{{{one}}}" for one in _PLACEHOLDERS)
            raise ValueError(f"{{{name}}} is not known; there are {known}")
    rest = re.sub(r"\{[^{}]*\}", "", path)
    if "{" in rest or "}" in rest:
        raise ValueError("has a brace without its partner")
    if re.search(r"[\s#\\]|[^\x21-\x7e]", rest) or rest.startswith("//") or "/../" in f"{rest.partition('?')[0]}/":
        raise ValueError("must be a path on the API's host, in visible ASCII, without # and ..")
    return path


def _check_lookup_path(path: str) -> str:
    if "{project_id}" not in path:
        raise ValueError("must hold {project_id}")
    return path


def _check_base_url(url: str) -> str:
    if not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?|file:.+", url):
        raise ValueError("must be http://HOST... or https://HOST... without a user, a query or a fragment")
    return url


def _check_header_value(value: object) -> object:
    if isinstance(value, str) and not re.fullmatch(r"[\x20-\x7e]*", value):
        raise ValueError("must be visible ASCII on one line")
    return value


def _as_text(value: object) -> object:
    return str(value) if type(value) in (int, float) else value


_STATUS = [{"type": "string", "pattern": "^[1-5]([0-9]{2}|xx)$"}, {"type": "integer", "minimum": 100, "maximum": 599}]


def _status_list(value: object) -> list[object]:
    return [_as_text(one) for one in (value if isinstance(value, list) else [value])]


def _check_statuses(statuses: list[str]) -> list[str]:
    for one in statuses:
        if not re.fullmatch(r"[1-5]([0-9]{2}|xx)", one):
            raise ValueError("a status is three digits, or a class such as 4xx")
    return statuses


UrlPath = Annotated[str, Field(pattern="^/", max_length=1_000), AfterValidator(_check_path)]
Text = Annotated[str, Field(min_length=1, max_length=1_000, pattern=r"\S")]
Column = Annotated[str, Field(pattern=_NAME)]
SecretReference = Annotated[str, Field(pattern=f"^{REFERENCE.pattern}$")]


class Tasks(_Part):
    """Which tasks are submitted."""

    ids: Annotated[list[Annotated[int, Field(ge=1, le=2**63 - 1)]], Field(min_length=1, max_length=100)]
    """The ids of ClaimX's task templates."""
    statuses: Annotated[list[Text], Field(min_length=1)] = ["COMPLETED"]
    """The statuses whose forms are submitted."""
    gate: Annotated[Any, WithJsonSchema(_LATER["Condition"])] = None
    """Only forms for which this holds are submitted; the others are counted as held."""


class Question(_Part):
    """A question of the form, and the column of its answer."""

    column: Column
    type: Literal["yes_no", "text", "integer", "decimal", "choice"]
    group: str
    question: Text
    missing: Literal["ignore", "warn", "hold"] | None = None
    """What happens when the form does not have this question; else as the form has it."""


class PhotoQuestion(_Part):
    """A question that photos answer."""

    key: Column
    question: Text
    image_type: Text | None = None
    """What iTel calls such photos."""
    control_ids: list[Text] = []
    """Form controls by which it is found where its text is unknown."""


class Positional(_Part):
    """A group whose answers are read by their place in it, as text, counted from 0."""

    group_id: Text
    answers: Annotated[int, Field(ge=1, le=100)]
    missing: Literal["ignore", "warn", "hold"] = "warn"


class FormPart(_Part):
    """The form: what is asked, and where the answers are kept."""

    questions: list[Question]
    without_column: list[Text] = []
    """Questions that are known, and kept in raw_data alone."""
    photos: list[PhotoQuestion] = []
    by_position: dict[Column, Positional] = {}
    """Groups that are read by position; ``NAME.0`` is the first answer."""
    missing: Literal["ignore", "warn", "hold"] = "ignore"
    """What happens when a form does not have one of the questions; ``hold``: it is not submitted (form_changed)."""
    unknown: Literal["warn", "hold"] = "warn"
    """What happens when a form has another question."""
    raw_data_after: Column | None = None
    """The column after which the forms table has ``raw_data``; else after all of them."""


class _Lookup(_Part):
    path: Annotated[UrlPath, AfterValidator(_check_lookup_path)]
    missing: Literal["warn", "hold"] = "warn"
    """What happens when ClaimX does not know it: go on without, or not submit (lookup_missing)."""


class ProjectLookup(_Lookup):
    """ClaimX's export of a project."""

    path: Annotated[UrlPath, AfterValidator(_check_lookup_path)] = "/export/project/{project_id}"
    cache_seconds: Annotated[float, Field(ge=0, le=86_400, strict=False)] = 60.0
    fields: Annotated[dict[Column, Text], Field(min_length=1)]
    """``project.NAME``: where it stands in the answer, such as data.project.projectNumber."""
    personal: list[Column] = []
    """Those of the fields that are about people."""


class MediaLookup(_Lookup):
    """ClaimX's links to the photos."""

    path: str = "/export/project/{project_id}/media?mediaIds={media_ids}"
    expires_within_seconds: Annotated[float, Field(ge=0, le=86_400, strict=False)] = 300.0
    """A link that is valid for less than this is fetched again."""
    send: Literal["target", "link"] = "target"
    """What ``photo.url`` is: where ClaimX's link redirects to, for those who have no login at ClaimX, or the link."""


class Lookups(_Part):
    """What the body needs of ClaimX beside the task."""

    project: ProjectLookup | None = None
    media: MediaLookup | None = None


class Secret(_Part):
    """A secret by its reference."""

    secret: SecretReference


class FromVar(_Part):
    """What the installation gives."""

    var: Column


class Key(_Part):
    """By what a repeat is recognised."""

    header: Annotated[str, Field(pattern=_HEADER)] | None = None
    """A header that carries the event's id."""
    body: Column | None = None
    """A field of the body that is different for each submission."""


class Batch(_Part):
    """Several submissions in one call, as ``{"tasks": [...], "batch_size": n}``."""

    path: UrlPath = "/api/v1/tasks/batch"


Header = Annotated[str | Secret | FromVar, BeforeValidator(_check_header_value)]


class Request(_Part):
    """How a submission is sent."""

    base_url: Annotated[str, AfterValidator(_check_base_url)] | None = None
    auth: str | None = None
    """As the option of that name: none, bearer:REF, oauth2:TOKEN_URL:REF:REF:scope=SCOPE ..."""
    method: Literal["POST", "PUT", "PATCH"] = "POST"
    path: UrlPath
    headers: dict[Annotated[str, Field(pattern=_HEADER)], Header] = {}
    key: Key
    batch: Batch | None = None


class AnswerRule(_Part):
    """What an answer means; the first rule that fits decides, and without one the table of docs/connections.md."""

    status: Annotated[
        list[str],
        BeforeValidator(_status_list),
        AfterValidator(_check_statuses),
        Field(min_length=1),
        WithJsonSchema({"anyOf": [*_STATUS, {"type": "array", "items": {"anyOf": _STATUS}, "minItems": 1}]}),
    ]
    """Statuses, or classes such as 4xx."""
    contains: Text | None = None
    """The answer's text holds this, in any case."""
    field: Text | None = None
    """Look only into this field of the answer."""
    names_key: bool = False
    """The text names the key of this very submission."""
    means: Literal["accepted", "duplicate", "in_flight", "again", "refused", "credentials"]


class Answers(_Part):
    """What the API's answers mean."""

    rules: list[AnswerRule] = []
    created_id: Text = "itel_task_id"
    """Where an answer names what has come of the submission."""


class Var(_Part):
    """A value that an installation gives."""

    description: str = ""
    secret: bool = False
    """It is given as a reference (env:NAME, file:PATH), and used in headers alone."""
    default: str | int | float | bool | None = None


class ContractFile(_Part):
    """An integration: which tasks are submitted, what is read, what is sent, and what the answers mean."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,63}$")]
    version: Annotated[
        str,
        BeforeValidator(_as_text),
        Field(min_length=1, max_length=64),
        WithJsonSchema({"type": ["string", "number"]}),
    ]
    title: Annotated[str, Field(max_length=200)] = ""
    tasks: Tasks
    form: FormPart
    lookups: Lookups = Lookups()
    request: Request
    body: Annotated[
        dict[str, Any],
        Field(min_length=1),
        WithJsonSchema({"type": "object", "additionalProperties": _LATER["Value"], "minProperties": 1}),
    ]
    """The body, field by field."""
    body_schema: Annotated[dict[str, Any], Field(alias="schema"), WithJsonSchema({"type": "object"})]
    """The JSON Schema that each body is checked against before it is sent."""
    answers: Answers = Answers()
    vars: dict[Column, Var] = {}


_VALUE = {"$ref": "#/$defs/Value"}
_CONDITION = {"$ref": "#/$defs/Condition"}
_PLAIN = {"type": ["string", "number", "boolean", "null"]}
_JSON_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", dict: "object"}


def make_contract_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a contract's file."""
    schema = _with_references(ContractFile.model_json_schema(by_alias=True))
    steps: list[dict[str, Any]] = [{"enum": [name for name, one in CONVERSIONS.items() if not _needed(name)]}]
    for name, conversion in CONVERSIONS.items():
        if not conversion.arguments:
            continue
        arguments = {key: _argument(one.type) for key, one in conversion.arguments.items()}
        taken = arguments.get("") or {
            "type": "object",
            "properties": arguments,
            "required": _needed(name),
            "additionalProperties": False,
        }
        steps.append(_object({name: taken}, [name]) | {"description": conversion.summary})
    finish = {
        "default": _PLAIN,
        "do": {"type": "array", "items": {"$ref": "#/$defs/Step"}},
        "required": {"type": "boolean"},
    }
    finish |= {"match": {"type": "object", "additionalProperties": _PLAIN}}
    values = {"type": "array", "items": _VALUE, "minItems": 1}
    forms = [
        _object({"from": {"type": "string"}, **finish}, ["from"]),
        _object({"concat": values, **finish}, ["concat"]),
        _object({"join": values, "with": {"type": "string"}, **finish}, ["join"]),
        _object({"first": values, **finish}, ["first"]),
        _object({"when": _CONDITION, "then": _VALUE, "else": _VALUE}, ["when", "then"]),
        _object({"each": {"type": "string"}, "where": _texts(), "keys": _texts(), "item": _VALUE}, ["each", "item"]),
        _object({"object": {"type": "object", "additionalProperties": _VALUE}, "when_all_null": _VALUE}, ["object"]),
        _object({"value": True}, ["value"]),
    ]
    words = [name for form in forms for name in form["required"][:1]]
    fields = {"type": "object", "propertyNames": {"not": {"enum": words}}, "additionalProperties": _VALUE}
    schema["$defs"] |= {
        "Value": {"anyOf": [_PLAIN, {"type": "array", "items": _VALUE}, *forms, fields]},
        "Step": {"anyOf": steps},
        "Condition": {
            "anyOf": [
                {"type": ["string", "null"]},
                *(
                    _object({word: {"type": "array", "items": _CONDITION, "minItems": 1}}, [word])
                    for word in ("any", "all")
                ),
                _object({"not": _CONDITION}, ["not"]),
                *(_test(subject) for subject in ("from", "question")),
            ]
        },
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _with_references(schema: Any) -> Any:
    if isinstance(schema, dict):
        if set(schema) >= {"$comment"} and str(schema["$comment"]).startswith("#/$defs/"):
            rest = {name: one for name, one in schema.items() if name != "$comment"}
            return {"$ref": schema["$comment"], **rest}
        return {name: _with_references(one) for name, one in schema.items()}
    return [_with_references(one) for one in schema] if isinstance(schema, list) else schema


def _needed(name: str) -> list[str]:
    return [key for key, one in CONVERSIONS[name].arguments.items() if one.required]


def _object(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _argument(kinds: type | tuple[type, ...]) -> dict[str, Any]:
    return {"type": [_JSON_TYPES[kind] for kind in (kinds if isinstance(kinds, tuple) else (kinds,))]}


def _texts() -> dict[str, Any]:
    return {"type": "array", "items": {"type": "string"}}


def _test(subject: str) -> dict[str, Any]:
    tests = {"affirmative": {"const": True}, "present": {"const": True}, "equals": _PLAIN}
    tests |= {"in": {"type": "array", "items": _PLAIN, "minItems": 1}}
    return _object({subject: {"type": "string"}, **tests}, [subject]) | {"minProperties": 2, "maxProperties": 2}
