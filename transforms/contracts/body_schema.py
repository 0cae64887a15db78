"""The JSON Schema of a body: compiled, compared with what the contract makes, and its errors without values.

References lead within the schema alone, and patterns are matched in linear time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jsonschema_rs

from itel_cabinet.transforms.contracts.conversions import Kind
from itel_cabinet.transforms.contracts.document import Path
from itel_cabinet.transforms.contracts.mapping import Node

__all__ = ["BodySchema", "compare", "find_schema_problems"]

_MOST_NAMED = 20
_JSON_TYPES: Mapping[Kind, frozenset[str]] = {
    "text": frozenset({"string"}),
    "integer": frozenset({"integer", "number"}),
    "decimal": frozenset({"number"}),
    "yes_no": frozenset({"boolean"}),
    "list": frozenset({"array"}),
    "object": frozenset({"object"}),
    "null": frozenset({"null"}),
}
_SUBSCHEMAS = ("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames")
_MAPS = ("properties", "patternProperties", "definitions", "$defs", "dependentSchemas")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")


class BodySchema:
    """A schema that bodies are checked against. Immutable and thread-safe. Raises ValueError when made, one line."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        try:
            self._validator = jsonschema_rs.validator_for(
                dict(schema), offline=True, pattern_options=jsonschema_rs.RegexOptions()
            )
        except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as error:
            raise ValueError(" ".join(str(error).split("\n\n")[0].split())) from None

    def errors(self, body: Any) -> list[str]:
        """What is wrong with a body: its fields and the rules that they break, never their values."""
        if self._validator.is_valid(body):
            return []
        found: dict[str, None] = {}
        for error in self._validator.iter_errors(body):
            found[_describe(error)] = None
            if len(found) == _MOST_NAMED:
                break
        return list(found)


def _describe(error: jsonschema_rs.ValidationError) -> str:
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.instance_path).lstrip(".")
    broken: Any = error.kind
    kind = type(broken).__name__
    if kind == "Required":
        return f"{f'{place}.' if place else ''}{broken.property}: missing"
    if kind == "AdditionalProperties":
        return f"{place or 'body'}: has {', '.join(broken.unexpected)}, which the schema does not know"
    rule = next((part for part in reversed(error.schema_path) if isinstance(part, str)), "the schema")
    limits = {"Type": "types", "Pattern": "pattern", "MinLength": "limit", "MaxLength": "limit", "Minimum": "limit"}
    limits |= {"Maximum": "limit", "MinItems": "limit", "MaxItems": "limit", "Format": "format"}
    limit = getattr(broken, limits.get(kind, ""), None)
    return f"{place or 'body'}: breaks {rule}{f' {limit}' if limit is not None else ''}"


def find_schema_problems(schema: Any, path: Path) -> Iterator[tuple[Path, str]]:
    """What makes a schema unfit: references that lead out of it, nowhere, or in a circle."""
    for place, part in _parts(schema, path, 0):
        reference = part.get("$ref")
        if reference is None:
            continue
        if not isinstance(reference, str) or not reference.startswith("#"):
            yield (*place, "$ref"), "must lead within the schema, such as #/definitions/Name; nothing is fetched"
            continue
        seen = set()
        while isinstance(reference, str):
            if reference in seen:
                yield (*place, "$ref"), f"{reference} leads back to itself"
                break
            seen.add(reference)
            target = _resolve(schema, reference)
            if target is None:
                yield (*place, "$ref"), f"{reference} is not in the schema"
                break
            reference = target.get("$ref") if isinstance(target, dict) else None


def _parts(schema: Any, path: Path, depth: int) -> Iterator[tuple[Path, dict[str, Any]]]:
    if not isinstance(schema, dict) or depth > 60:
        return
    yield path, schema
    for key in _SUBSCHEMAS:
        if key in schema:
            yield from _parts(schema[key], (*path, key), depth + 1)
    for key in _MAPS:
        inner = schema.get(key)
        for name, one in inner.items() if isinstance(inner, dict) else ():
            yield from _parts(one, (*path, key, name), depth + 1)
    for key in _LISTS:
        inner = schema.get(key)
        for index, one in enumerate(inner) if isinstance(inner, list) else ():
            yield from _parts(one, (*path, key, index), depth + 1)


def _resolve(root: Any, reference: str) -> Any:
    found = root
    for part in reference.removeprefix("#").split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict) and key in found:
            found = found[key]
        elif isinstance(found, list) and key.isdecimal() and int(key) < len(found):
            found = found[int(key)]
        else:
            return None
    return found


def compare(node: Node, schema: Mapping[str, Any], path: Path) -> Iterator[tuple[Path, str]]:
    """Where what a contract makes can never meet the schema: fields that are not there or not known, other types,
    constants that break it."""
    yield from _compare(node, [schema], schema, path, 0)


def _compare(
    node: Node, choices: list[Any], root: Mapping[str, Any], path: Path, depth: int
) -> Iterator[tuple[Path, str]]:
    """``choices``: the value must meet one of these schemas."""
    choices = _written_out(choices, root)
    if depth > 60 or any(not isinstance(one, dict) for one in choices):
        return
    if node.constant:
        yield from _constant_problems(node, choices, root, path)
        return
    types = [_types(one) for one in choices]
    wanted = frozenset().union(*(one or frozenset() for one in types))
    possible = _JSON_TYPES.get(node.kind)
    if possible and all(types) and not possible & wanted:
        yield path, f"gives {' or '.join(sorted(possible))}, and the schema wants {' or '.join(sorted(wanted))}"
        return
    if node.kind == "object" and node.fields:
        objects = [one for one in choices if (_types(one) or {"object"}) & {"object"}]
        if len(objects) == 1:
            yield from _compare_fields(node, objects[0], root, path, depth)
    elif node.kind == "list" and node.item is not None:
        items = [one["items"] for one in choices if isinstance(one.get("items"), dict)]
        if items:
            yield from _compare(node.item, items, root, (*path, "item"), depth + 1)


def _compare_fields(
    node: Node, schema: Mapping[str, Any], root: Mapping[str, Any], path: Path, depth: int
) -> Iterator[tuple[Path, str]]:
    properties = schema.get("properties", {})
    for name in schema.get("required", []):
        if name not in node.fields:
            yield path, f"lacks {name}, which the schema requires"
    for name, inner in node.fields.items():
        if name in properties:
            yield from _compare(inner, [properties[name]], root, (*path, name), depth + 1)
        elif schema.get("additionalProperties") is False and not schema.get("patternProperties"):
            yield (*path, name), "is not in the schema, which allows no further fields"


def _constant_problems(
    node: Node, choices: list[Any], root: Mapping[str, Any], path: Path
) -> Iterator[tuple[Path, str]]:
    definitions = {key: root[key] for key in ("$schema", "definitions", "$defs") if key in root}
    try:
        errors = BodySchema({**definitions, "anyOf": choices}).errors(node.value)
    except ValueError:
        return  # reported with the schema itself
    if errors:
        rules = BodySchema({**definitions, **choices[0]}).errors(node.value) if len(choices) == 1 else []
        yield path, f"the constant breaks the schema ({'; '.join(rules) or 'none of its choices'})"


def _written_out(choices: list[Any], root: Mapping[str, Any]) -> list[Any]:
    """The schemas with references and choices between them resolved, one level deep."""
    result: list[Any] = []
    for one in choices:
        for _ in range(20):
            if not (isinstance(one, dict) and isinstance(one.get("$ref"), str)):
                break
            one = _resolve(root, one["$ref"])
        inner = next((one[key] for key in ("anyOf", "oneOf") if isinstance(one, dict) and one.get(key)), None)
        result += _written_out(inner, root) if isinstance(inner, list) else [one]
    return result


def _types(schema: Mapping[str, Any]) -> frozenset[str] | None:
    """The types that a schema allows; None if it does not say."""
    if isinstance(schema.get("enum"), list):
        return frozenset().union(*(_types_of(one) for one in schema["enum"]))
    if "const" in schema:
        return _types_of(schema["const"])
    kind = schema.get("type")
    return None if kind is None else frozenset([kind] if isinstance(kind, str) else kind)


def _types_of(value: Any) -> frozenset[str]:
    match value:
        case None:
            return frozenset({"null"})
        case bool():
            return frozenset({"boolean"})
        case int():
            return frozenset({"integer", "number"})
        case float():
            return frozenset({"number"})
        case str():
            return frozenset({"string"})
        case list():
            return frozenset({"array"})
    return frozenset({"object"})
