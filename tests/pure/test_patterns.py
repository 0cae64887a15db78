"""No regular expression of the package can be made to try a text in more ways than it has characters.

While one does, no other thread of the process runs: a nested repeat cost whole jobs seconds for each list of photos.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from re import _constants as ops  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

import pytest

_REPEATS = {ops.MAX_REPEAT, ops.MIN_REPEAT}
_CHARACTERS = frozenset(map(chr, range(128))) | {"é", "\N{GREEK SMALL LETTER ALPHA}"}
_FUNCTIONS = {"compile", "match", "fullmatch", "search", "sub", "subn", "split", "findall", "finditer"}

Item = tuple[Any, Any]


def test_no_text_is_tried_in_many_ways() -> None:
    found = dict(_patterns_of(Path(__file__).parents[2]))
    assert len(found) > 100
    assert {where: pattern for where, pattern in found.items() if _is_ambiguous(pattern)} == {}


@pytest.mark.parametrize(
    "pattern", [r"(a+)+$", r"(?:[a-z]+/?)*\?", r"(\w+\s?)*x", r"((a|b)*c*)*d", r"(?:x[a-z]*|y)*z", r"(?:a*?b?)*c"]
)
def test_one_that_could_is_found(pattern: str) -> None:
    assert _is_ambiguous(pattern)


@pytest.mark.parametrize("pattern", [r"(?:[a-z]++/?)*+\?", r"a(,[a-z]+)*", r"(?:[^%]|%[YmdHMS])*", r"(/[^/]+)*$"])
def test_one_that_could_not_passes(pattern: str) -> None:
    assert not _is_ambiguous(pattern)


def _patterns_of(root: Path) -> Iterator[tuple[str, str]]:
    """The literal patterns of the package's modules (its rooms; not tests, benchmarks or what was built)."""
    for path in sorted(root.rglob("*.py")):
        room = path.relative_to(root).parts[0]
        if room.startswith(".") or room in {"tests", "bench", "build"}:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
                continue
            of_re = isinstance(node.func.value, ast.Name) and node.func.value.id == "re"
            given = node.args[0]
            if of_re and node.func.attr in _FUNCTIONS and isinstance(given, ast.Constant):
                pattern = given.value if isinstance(given.value, str) else given.value.decode("latin-1")
                yield f"{path.relative_to(root)}:{node.lineno}", pattern


def _is_ambiguous(pattern: str) -> bool:
    """Whether a repeat can end, and its outer repeat begin again, in the midst of what the inner one may take whole."""
    return any(_is_open(body) for body in _unbounded([*parser.parse(pattern)]))


def _unbounded(items: list[Item]) -> Iterator[list[Item]]:
    """The bodies of all unbounded repeats that give back what they took, at any depth."""
    for op, value in items:
        if op in _REPEATS and value[1] == ops.MAXREPEAT:
            yield [*value[2]]
        for inner in _within((op, value)):
            yield from _unbounded(inner)


def _within(item: Item) -> list[list[Item]]:
    op, value = item
    if op in _REPEATS or op is ops.POSSESSIVE_REPEAT:
        return [[*value[2]]]
    if op is ops.SUBPATTERN:
        return [[*value[3]]]
    if op is ops.ATOMIC_GROUP:
        return [[*value]]
    if op is ops.BRANCH:
        return [[*way] for way in value[1]]
    return [[*value[1]]] if op in {ops.ASSERT, ops.ASSERT_NOT} else []


def _is_open(body: list[Item]) -> bool:
    begins = _begins(body)[0]
    return any(inner & begins for inner in _last_repeats(body))


def _last_repeats(items: list[Item]) -> Iterator[frozenset[str]]:
    """What the unbounded repeats take after which ``items`` may end."""
    for item in reversed(items):
        op, value = item
        if op in _REPEATS and value[1] == ops.MAXREPEAT:
            yield _begins([*value[2]])[0]
        elif op not in {ops.POSSESSIVE_REPEAT, ops.ATOMIC_GROUP, ops.ASSERT, ops.ASSERT_NOT}:
            for inner in _within(item):
                yield from _last_repeats(inner)
        if not _begins([item])[1]:
            return


def _begins(items: list[Item]) -> tuple[frozenset[str], bool]:
    """The characters that ``items`` may begin with, and whether they may be empty."""
    found: frozenset[str] = frozenset()
    for op, value in items:
        if op in {ops.AT, ops.ASSERT, ops.ASSERT_NOT}:
            continue
        if ways := _within((op, value)):
            begun = [_begins(way) for way in ways]
            found |= frozenset().union(*(characters for characters, _ in begun))
            is_repeat = op in _REPEATS or op is ops.POSSESSIVE_REPEAT
            if any(empty for _, empty in begun) or (is_repeat and value[0] == 0):
                continue
            return found, False
        return found | _characters(op, value), False
    return found, True


def _characters(op: Any, value: Any) -> frozenset[str]:
    if op is ops.LITERAL:
        return frozenset(chr(value))
    if op is ops.NOT_LITERAL:
        return _CHARACTERS - {chr(value)}
    if op is ops.RANGE:
        return frozenset(c for c in _CHARACTERS if value[0] <= ord(c) <= value[1])
    if op is ops.CATEGORY:
        letter = {"DIGIT": "d", "SPACE": "s", "WORD": "w"}[str(value).rsplit("_", 1)[1]]
        is_not = "_NOT_" in str(value)
        return frozenset(c for c in _CHARACTERS if bool(re.match(rf"\{letter}", c)) != is_not)
    if op is ops.IN:
        parts = [part for part in value if part[0] is not ops.NEGATE]
        held = frozenset().union(*(_characters(*part) for part in parts))
        return held if len(parts) == len(value) else _CHARACTERS - held
    return _CHARACTERS  # any, or what a group has taken
