"""templates/metadata.json: every parameter in the schema of Google's Flex Templates, made from the options.

``python -m itel_cabinet.pipeline.metadata > templates/metadata.json`` makes it anew.
"""

from __future__ import annotations

import json
from enum import EnumType
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from itel_cabinet.pipeline.launch import required
from itel_cabinet.pipeline.options import JOB_DEFAULTS, Job, Settings

__all__ = ["metadata"]

_SPELLED = {"claimx": "ClaimX", "itel": "iTel", "url": "URL", "http": "HTTP"}
_REGEXES = {int: r"^[0-9]+$", float: r"^[0-9]+(\.[0-9]+)?$"}


def metadata() -> dict[str, Any]:
    """The document; the same every time."""
    needed = {job: required(job) for job in Job}
    parameters, group = [], ""
    for name, field in Settings.model_fields.items():
        group = _extra(field).get("group", group)
        parameters.append(_parameter(name, field, group, [job for job in Job if name in needed[job]]))
    return {
        "name": "itel-cabinet",
        "description": "ClaimX cabinet repair tasks from Kafka into Delta tables and to iTel.",
        "streaming": True,
        "supportsAtLeastOnce": True,
        "supportsExactlyOnce": True,
        "parameters": parameters,
    }


def _parameter(name: str, field: FieldInfo, group: str, needed_by: list[Job]) -> dict[str, Any]:
    choices = _choices(field)
    optional = name != "job" and set(needed_by) != set(Job)
    help_text = str(field.description)
    if optional and needed_by:
        help_text += f" Needed by {' and '.join(needed_by)}."
    if by_job := {job: str(defaults[name]) for job, defaults in JOB_DEFAULTS.items() if name in defaults}:
        values = dict.fromkeys(by_job.values())
        jobs = (f"{value} ({', '.join(job for job in by_job if by_job[job] == value)})" for value in values)
        help_text += f" Default: {'; '.join(jobs)}."
    parameter: dict[str, Any] = {
        "name": name,
        "label": _label(name),
        "helpText": help_text,
        "isOptional": optional,
        "paramType": _extra(field).get("paramType") or _type(field, choices),
        "groupName": group,
    }
    if regexes := _regexes(field):
        parameter["regexes"] = regexes
    if choices:
        parameter["enumOptions"] = [{"value": choice, "label": choice} for choice in choices]
    if not field.is_required() and field.default not in (None, "", {}):
        parameter["defaultValue"] = _text(field.default)
    return parameter


def _extra(field: FieldInfo) -> dict[str, Any]:
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


def _choices(field: FieldInfo) -> list[str]:
    if isinstance(field.annotation, EnumType):
        return [str(member.value) for member in field.annotation]
    return [*get_args(field.annotation)] if get_origin(field.annotation) is Literal else []


def _type(field: FieldInfo, choices: list[str]) -> str:
    if choices:
        return "ENUM"
    kinds: dict[Any, str] = {bool: "BOOLEAN", int: "NUMBER", float: "NUMBER"}
    return kinds.get(field.annotation, "TEXT")


def _regexes(field: FieldInfo) -> list[str]:
    patterns = [constraint.pattern for constraint in field.metadata if getattr(constraint, "pattern", None)]
    return [*patterns, *([_REGEXES[field.annotation]] if field.annotation in _REGEXES else [])]


def _label(name: str) -> str:
    words = [_SPELLED.get(word, word) for word in name.split("_")]
    return " ".join([words[0] if words[0] in _SPELLED.values() else words[0].capitalize(), *words[1:]])


def _text(default: object) -> str:
    if isinstance(default, tuple):
        return ",".join(default)
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:g}" if isinstance(default, float) else str(default)


if __name__ == "__main__":
    print(json.dumps(metadata(), indent=2))
