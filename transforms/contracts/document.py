"""YAML as a person means it, with the line of everything in it.

YAML 1.2's core schema: ``yes``, ``no`` and ``on`` are texts, not booleans, and so are dates. What YAML lets pass in
silence is refused: a key that is given twice, a tag, a merge, an alias that contains itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

__all__ = ["ContractError", "Document", "Path", "Problem", "read_document", "spell"]

Path = tuple[str | int, ...]

_MOST_CHARACTERS = 1_000_000
_MOST_NODES = 50_000
_DEEPEST = 60
_PLAIN_TAGS = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("str", "map", "seq"))
_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
# Libyaml's where PyYAML was built with it: fifteen times as fast.
_LOADER: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
_QUOTED = frozenset("'\"|>")
_INTEGER = re.compile(r"[-+]?[0-9]{1,40}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


@dataclass(frozen=True)
class Problem:
    """A mistake in a contract: where it stands, and what to do. ``line`` counts from 1."""

    line: int
    place: str
    text: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.place}: {self.text}" if self.place else f"line {self.line}: {self.text}"


class ContractError(ValueError):
    """A contract that cannot be used: a line for each of its ``problems``."""

    def __init__(self, source: str, problems: list[Problem]) -> None:
        super().__init__("\n".join(f"{source}: {problem}" for problem in problems))
        self.source = source
        self.problems = tuple(problems)


@dataclass(frozen=True)
class Document:
    """The content of a YAML text, and where each part of it stands."""

    content: Any
    lines: Mapping[Path, int]

    def line(self, path: Path) -> int:
        """The line of a place, or that of the nearest place around it."""
        while path not in self.lines and path:
            path = path[:-1]
        return self.lines.get(path, 1)

    def problem(self, path: Path, text: str) -> Problem:
        """A problem at that place."""
        return Problem(self.line(path), spell(path), text)


def spell(path: Path) -> str:
    """A place in a document as people write it: ``body.images[2].url``."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def read_document(text: str, source: str) -> Document:
    """Raises ContractError, with all that is wrong with the text as YAML."""
    if len(text) > _MOST_CHARACTERS:
        raise ContractError(source, [Problem(1, "", f"longer than {_MOST_CHARACTERS} characters")])
    try:
        root = yaml.compose(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ContractError(source, [Problem(line, "", f"not YAML: {' '.join(str(error.problem).split())}")]) from None
    except (yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(getattr(error, "reason", "") or "nested too deep").split())
        raise ContractError(source, [Problem(1, "", f"not YAML: {reason}")]) from None
    if root is None:
        raise ContractError(source, [Problem(1, "", "the file is empty")])
    reader = _Reader()
    try:
        content = reader.read(root, ())
    except _TooMuchError as error:
        raise ContractError(source, [*reader.problems, Problem(error.line, "", str(error))]) from None
    if reader.problems:
        raise ContractError(source, reader.problems)
    return Document(content, reader.lines)


class _TooMuchError(Exception):
    """More than is read of a file."""

    def __init__(self, line: int) -> None:
        super().__init__(f"more than {_MOST_NODES} values, with its aliases written out")
        self.line = line


class _Reader:
    def __init__(self) -> None:
        self.lines: dict[Path, int] = {}
        self.problems: list[Problem] = []
        self._around: set[int] = set()  # the nodes that the current one is inside of
        self._nodes = 0

    def read(self, node: yaml.Node, path: Path) -> Any:
        line = node.start_mark.line + 1
        self.lines.setdefault(path, line)
        self._nodes += 1
        for refusal in self._refuse(node):
            self.problems.append(Problem(line, spell(path), refusal))
            return None
        self._around.add(id(node))
        try:
            match node:
                case yaml.ScalarNode():
                    return self._scalar(node, path)
                case yaml.SequenceNode():
                    return [self.read(one, (*path, index)) for index, one in enumerate(node.value)]
                case yaml.MappingNode():
                    return self._mapping(node, path)
        finally:
            self._around.discard(id(node))
        raise AssertionError("YAML has three kinds of nodes")

    def _refuse(self, node: yaml.Node) -> Iterator[str]:
        if id(node) in self._around:
            yield "an alias that contains itself"
        elif len(self._around) >= _DEEPEST:
            yield f"nested over {_DEEPEST} levels"
        elif self._nodes > _MOST_NODES:
            raise _TooMuchError(node.start_mark.line + 1)
        elif node.tag not in _PLAIN_TAGS:
            yield f"the tag {node.tag.removeprefix('tag:yaml.org,2002:')} is not read; write the value plainly"

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        content: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.append(Problem(line, spell(path), "a key must be a text"))
                continue
            key = key_node.value
            place = (*path, key)
            if key in content:
                self.problems.append(Problem(line, spell(place), "given twice; remove one"))
            elif key == "<<" and key_node.style not in _QUOTED:
                self.problems.append(Problem(line, spell(path), "<< (a merge) is not read; write the keys out"))
            else:
                self.lines[place] = line
                content[key] = self.read(value_node, place)
        return content

    def _scalar(self, node: yaml.ScalarNode, path: Path) -> Any:
        text = node.value
        if node.style in _QUOTED:
            return text
        if text in _NULL:
            return None
        if text in _BOOLEANS:
            return _BOOLEANS[text]
        if _INTEGER.fullmatch(text):
            return int(text)
        if _FLOAT.fullmatch(text):
            number = float(text)
            if math.isfinite(number):
                return number
            self.problems.append(Problem(node.start_mark.line + 1, spell(path), "a number too large to hold"))
        return text
