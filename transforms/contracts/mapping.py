"""The language of a contract's body and gate: compiled once to closures, checked in full before any form comes.

A value is a constant (a text, number, true, false, null), a list of values, an object of values, or one of::

    {from: form.lower_cabinets_lf, default: 0, do: [round_half_even], match: {"yes": ..., else: ...}, required: true}
    {concat: [{from: event.assignment_id}, "-", {from: event.event_id}]}     null if a part is null
    {join: [{from: project.first_name}, {from: project.last_name}], with: " "}     without null and blank parts
    {first: [{from: project.number}, {from: event.project_id}]}              the first that is not null
    {when: CONDITION, then: VALUE, else: VALUE}
    {each: photos, where: [type, url], item: VALUE}                          a list, of each photo that has these
    {object: {from: VALUE}}                                                  an object, with fields of any name
    {value: ANYTHING}                                                        a constant, no matter what it looks like

A condition is a path, which holds if the value is set (not null, false, 0 or empty); ``{any: [...]}``,
``{all: [...]}``, ``{not: ...}``; or ``{from: PATH}`` or ``{question: TEXT}`` with one of ``affirmative: true``,
``present: true``, ``equals: V`` and ``in: [V, ...]``.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from itel_cabinet.transforms.contracts.conversions import (
    CONVERSIONS,
    Conversion,
    Function,
    Kind,
    find_conversion,
    is_affirmative,
    is_set,
)
from itel_cabinet.transforms.contracts.document import Path

__all__ = ["Compiler", "Facts", "Node", "Scope", "Source"]


class Facts:
    """What one body is made of; of one form, in one thread.

    ``sources`` has an object for each name that a path may begin with. ``missing`` and ``personal`` are filled while
    values are made: the fields that are required and null, and the texts about people that went into the body.
    """

    __slots__ = ("item", "missing", "personal", "sources")

    def __init__(self, sources: Mapping[str, Any]) -> None:
        self.sources = sources
        self.item: Any = None
        self.missing: list[str] = []
        self.personal: list[str] = []


Make = Callable[[Facts], Any]


@dataclass(frozen=True)
class Source:
    """What a path may name: ``kinds`` of each of its fields, those that are ``personal``, and how one is ``read``."""

    kinds: Mapping[str, Kind]
    read: Callable[[str], Callable[[Any], Any]]
    personal: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Scope:
    """The sources by name, and the collections that ``each`` goes through: the name of an item, and what it is."""

    sources: Mapping[str, Source]
    collections: Mapping[str, tuple[str, Source]]


@dataclass(frozen=True)
class Node:
    """A compiled value.

    ``kind`` is what it gives, ``constant`` whether it is the same for every form, ``fields`` those of an object by name
    and ``item`` the value of a list's items, for the comparison with a schema.
    """

    make: Make
    kind: Kind
    constant: bool = False
    value: Any = None
    fields: Mapping[str, Node] = field(default_factory=dict)
    item: Node | None = None
    path: Path = ()
    paths: frozenset[str] = frozenset()
    """All the paths that it reads."""
    personal: bool = False


_FORMS = {
    "from": frozenset({"default", "do", "match", "required"}),
    "concat": frozenset({"default", "do", "match", "required"}),
    "join": frozenset({"with", "default", "do", "match", "required"}),
    "first": frozenset({"default", "do", "match", "required"}),
    "when": frozenset({"then", "else"}),
    "each": frozenset({"where", "keys", "item"}),
    "object": frozenset({"when_all_null"}),
    "value": frozenset[str](),
}
_TESTS = ("affirmative", "present", "equals", "in")


class Compiler:
    """Compiles values and conditions of one contract; ``problems`` collects what is wrong, with its place."""

    def __init__(self, scope: Scope, questions: Callable[[str], Callable[[Facts], Any]]) -> None:
        """``questions`` gives, for a question's text, what reads its answer."""
        self.scope = scope
        self.problems: list[tuple[Path, str]] = []
        self.uses_photos = False
        self.optional_objects: list[tuple[frozenset[str], frozenset[str]]] = []
        """For each object that is null unless a condition holds, the paths of the condition and those inside."""
        self._questions = questions
        self._items: dict[str, Source] = {}

    # ------------------------------------------------------------------------------------------------------- values

    def value(self, content: Any, path: Path) -> Node:
        """A value; a constant null in place of one that is wrong."""
        if isinstance(content, list):
            nodes = [self.value(one, (*path, index)) for index, one in enumerate(content)]
            makes = [node.make for node in nodes]
            return _together(nodes, lambda facts: [make(facts) for make in makes], "list", path)
        if not isinstance(content, dict):
            return _constant(content, path)
        forms = [name for name in _FORMS if name in content]
        if not forms:
            return self.object(content, path)
        form = forms[0]
        for name in content:
            if name != form and name not in _FORMS[form]:
                known = difflib.get_close_matches(name, _FORMS[form], n=1)
                hint = f"did you mean {known[0]}?" if known else "to send fields of such names put them under object:"
                self._refuse((*path, name), f"not known beside {form}; {hint}")
        compile_form: Callable[[dict[str, Any], Path], Node] = getattr(self, f"_{form}")
        return compile_form(content, path)

    def object(self, content: Mapping[str, Any], path: Path) -> Node:
        """An object with these fields."""
        nodes = {name: self.value(one, (*path, name)) for name, one in content.items()}
        if all(node.constant for node in nodes.values()):
            return _constant({name: node.value for name, node in nodes.items()}, path, nodes)
        fields = [(name, node.make) for name, node in nodes.items()]

        def make(facts: Facts) -> dict[str, Any]:
            return {name: make_field(facts) for name, make_field in fields}

        return replace(_together(nodes.values(), make, "object", path), fields=nodes)

    def _from(self, content: dict[str, Any], path: Path) -> Node:
        return self._finished(self._read(content["from"], (*path, "from")), content, path)

    def _concat(self, content: dict[str, Any], path: Path) -> Node:
        makes, nodes = self._parts(content, "concat", path)
        to_text = CONVERSIONS["text"].make()

        def make(facts: Facts) -> str | None:
            parts = [make_part(facts) for make_part in makes]
            return None if None in parts else "".join(map(to_text, parts))

        return self._finished(_together(nodes, make, "text", path), content, path)

    def _join(self, content: dict[str, Any], path: Path) -> Node:
        makes, nodes = self._parts(content, "join", path)
        between = content.get("with", " ")
        if not isinstance(between, str):
            self._refuse((*path, "with"), "must be a text")
            between = " "
        to_text = CONVERSIONS["text"].make()

        def make(facts: Facts) -> str | None:
            parts = [to_text(part).strip() for make_part in makes if (part := make_part(facts)) is not None]
            return between.join(part for part in parts if part) or None

        return self._finished(_together(nodes, make, "text", path), content, path)

    def _first(self, content: dict[str, Any], path: Path) -> Node:
        makes, nodes = self._parts(content, "first", path)
        kinds = {node.kind for node in nodes}

        def make(facts: Facts) -> Any:
            return next((found for make_part in makes if (found := make_part(facts)) is not None), None)

        return self._finished(_together(nodes, make, kinds.pop() if len(kinds) == 1 else "any", path), content, path)

    def _parts(self, content: dict[str, Any], form: str, path: Path) -> tuple[list[Make], list[Node]]:
        parts = content[form]
        if not isinstance(parts, list) or not parts:
            self._refuse((*path, form), "must be a list of values")
            parts = []
        nodes = [self.value(one, (*path, form, index)) for index, one in enumerate(parts)]
        for index, node in enumerate(nodes):
            if node.kind in ("object", "list"):
                self._refuse((*path, form, index), f"is {_KIND_NAMES[node.kind]}, which is no part of a text")
        return [node.make for node in nodes], nodes

    def _when(self, content: dict[str, Any], path: Path) -> Node:
        holds, read = self.condition(content["when"], (*path, "when"))
        if "then" not in content:
            self._refuse(path, "when needs a then")
        then = self.value(content.get("then"), (*path, "then"))
        otherwise = self.value(content.get("else"), (*path, "else"))
        make_then, make_else = then.make, otherwise.make
        if then.kind == "object" and otherwise.kind == "null":
            self.optional_objects.append((read, then.paths))

        def make(facts: Facts) -> Any:
            return make_then(facts) if holds(facts) else make_else(facts)

        kind = then.kind if otherwise.kind in (then.kind, "null") else "any"
        return replace(
            _together([then, otherwise], make, kind, path),
            fields=then.fields if kind == "object" else {},
            item=then.item,
            paths=then.paths | otherwise.paths | read,
        )

    def _each(self, content: dict[str, Any], path: Path) -> Node:
        name = content["each"]
        if not isinstance(name, str) or name not in self.scope.collections:
            self._refuse((*path, "each"), f"no such list: there are {', '.join(self.scope.collections)}")
            return _constant(None, path)
        self.uses_photos = True
        item_name, source = self.scope.collections[name]
        if "item" not in content:
            self._refuse(path, "each needs an item")
        needed = [self._field(one, source, (*path, "where", i)) for i, one in self._texts(content, "where", path)]
        keys = [key for _, key in self._texts(content, "keys", path)] if "keys" in content else None
        if keys is not None and "key" not in source.kinds:
            self._refuse((*path, "keys"), f"{name} have no key")
        outer, self._items = self._items, {**self._items, item_name: source}
        item = self.value(content.get("item"), (*path, "item"))
        self._items = outer
        make_item, read_key = item.make, source.read("key")

        def make(facts: Facts) -> list[Any]:
            items: Iterable[Any] = facts.sources[name]
            if keys is not None:
                by_key = [(read_key(one), one) for one in items]
                items = [one for key in keys for found, one in by_key if found == key]
            around, made = facts.item, []
            for one in items:
                if all(is_set(read(one)) for read in needed):
                    facts.item = one
                    made.append(make_item(facts))
            facts.item = around
            return made

        return replace(_together([item], make, "list", path), item=item)

    def _object(self, content: dict[str, Any], path: Path) -> Node:
        fields = content["object"]
        if not isinstance(fields, dict):
            self._refuse((*path, "object"), "must be a mapping of fields")
            return _constant(None, path)
        node = self.object(fields, (*path, "object"))
        if "when_all_null" not in content:
            return node
        makes, make_else = node.make, self.value(content["when_all_null"], (*path, "when_all_null")).make

        def make(facts: Facts) -> Any:
            made = makes(facts)
            return made if any(value is not None for value in made.values()) else make_else(facts)

        return replace(node, make=make, constant=False)

    def _value(self, content: dict[str, Any], path: Path) -> Node:
        return _constant(content["value"], path)

    # ----------------------------------------------------------------------------------------- what comes after from

    def _finished(self, node: Node, content: dict[str, Any], path: Path) -> Node:
        """The value with its default, conversions and match."""
        kind, steps = node.kind, []
        for index, step in enumerate(self._steps(content.get("do", []), (*path, "do"))):
            function, kind = self._convert(step, kind, (*path, "do", index))
            steps.append(function)
        if "match" in content:
            function, kind = self._match(content["match"], kind, (*path, "match"))
            steps.append(function)
        elif kind == "instant":
            steps.append(datetime.isoformat)
            kind = "text"
        default = content.get("default")
        if isinstance(default, list | dict):
            self._refuse((*path, "default"), "must be a text, a number, true, false or null")
            default = None
        required = content.get("required", False)
        if not isinstance(required, bool):
            self._refuse((*path, "required"), "must be true or false")
        make = _chain(node.make, steps, default)
        if node.personal:
            make = _noting_people(make)
        if required is True:
            make = _noting_missing(make, ".".join(str(part) for part in path[1:]))
        if default is not None and _kind_of(default) != kind:
            kind = "any"
        return replace(node, make=make, kind=kind, path=path)

    def _steps(self, steps: Any, path: Path) -> list[Any]:
        if isinstance(steps, list):
            return steps
        self._refuse(path, "must be a list such as [digits, {truncate: 50}]")
        return []

    def _convert(self, step: Any, kind: Kind, path: Path) -> tuple[Function, Kind]:
        name: Any = step if isinstance(step, str) else None
        given: Any = {}
        if isinstance(step, dict) and len(step) == 1:
            ((name, given),) = step.items()
        if name is None:
            self._refuse(path, "must be a name or one {name: arguments}")
            return _unchanged, kind
        try:
            conversion = find_conversion(name)
        except Exception as error:
            self._refuse(path, f"{name} cannot be loaded: {type(error).__name__}")
            return _unchanged, "any"
        if conversion is None:
            close = difflib.get_close_matches(name, CONVERSIONS, n=1)
            hint = f"; did you mean {close[0]}?" if close else f": there are {', '.join(CONVERSIONS)}"
            self._refuse(path, f"no conversion {name}{hint}")
            return _unchanged, "any"
        if kind not in ("any", "null", *conversion.takes):
            self._refuse(path, f"{name} works on {' or '.join(conversion.takes)}, and this is {kind}")
        return self._call(conversion, name, given, path), kind if conversion.gives == "same" else conversion.gives

    def _call(self, conversion: Conversion, name: str, given: Any, path: Path) -> Function:
        alone = conversion.arguments.get("")
        named = given if isinstance(given, dict) and alone is None else {} if given in ({}, None) else {"": given}
        before = len(self.problems)
        for argument, value in named.items():
            wanted = conversion.arguments.get(argument)
            place = (*path, name, argument) if argument else (*path, name)
            if wanted is None:
                takes = ", ".join(conversion.arguments) or "nothing"
                self._refuse(place, f"{name} takes {takes}")
            elif refusal := wanted.refuse(value):
                self._refuse(place, refusal)
        for argument, wanted in conversion.arguments.items():
            if wanted.required and argument not in named:
                self._refuse(path, f"{name} needs {argument or 'a value'}, {{{name}: ...}}")
        if len(self.problems) > before:
            return _unchanged
        try:
            if alone is not None:
                return conversion.make(named[""])
            return conversion.make(**{f"{key}_" if key in ("with", "else") else key: v for key, v in named.items()})
        except ValueError as error:
            self._refuse((*path, name), str(error))
            return _unchanged

    def _match(self, cases: Any, kind: Kind, path: Path) -> tuple[Function, Kind]:
        """The value that stands beside the answer. ``yes`` and ``no`` are meant as answers mean them."""
        if not isinstance(cases, dict) or not cases:
            self._refuse(path, 'must be a mapping such as {"yes": "Y", else: "N"}')
            return _unchanged, "any"
        if kind not in ("any", "text", "yes_no", "integer", "decimal", "null"):
            self._refuse(path, f"works on text, numbers, and yes or no, and this is {kind}")
        for case, result in cases.items():
            if isinstance(result, list | dict):
                self._refuse((*path, case), "must be a text, a number, true, false or null")
        results = {_folded(case): result for case, result in cases.items() if case != "else"}
        otherwise = cases.get("else")
        kinds = {_kind_of(result) for result in cases.values()}

        def match(value: Any) -> Any:
            text = _folded(value)
            if text in results:
                return results[text]
            if "yes" in results and is_affirmative(value):
                return results["yes"]
            if "no" in results and (value is False or text.startswith(("no,", "there is no"))):
                return results["no"]
            return otherwise

        return match, kinds.pop() if len(kinds) == 1 else "any"

    # --------------------------------------------------------------------------------------------------- conditions

    def condition(self, content: Any, path: Path) -> tuple[Callable[[Facts], bool], frozenset[str]]:
        """What says whether it holds, and the paths that it reads."""
        if isinstance(content, str):
            node = self._read(content, path)
            make = node.make
            return lambda facts: is_set(make(facts)), node.paths
        if isinstance(content, dict) and len(content) == 1 and next(iter(content)) in ("any", "all", "not"):
            ((word, inner),) = content.items()
            inside = [inner] if word == "not" else inner
            if not isinstance(inside, list) or not inside:
                self._refuse((*path, word), "must be a list of conditions")
                return _holds, frozenset()
            found = [
                self.condition(one, (*path, word) if word == "not" else (*path, word, i))
                for i, one in enumerate(inside)
            ]
            tests, paths = [test for test, _ in found], frozenset[str]().union(*(read for _, read in found))
            if word == "not":
                return lambda facts: not tests[0](facts), paths
            together = any if word == "any" else all
            return lambda facts: together(test(facts) for test in tests), paths
        if isinstance(content, dict) and ("from" in content) != ("question" in content):
            return self._test(content, path)
        self._refuse(path, "must be a path, any, all, not, or from or question with a test")
        return _holds, frozenset()

    def _test(self, content: dict[str, Any], path: Path) -> tuple[Callable[[Facts], bool], frozenset[str]]:
        subject = "from" if "from" in content else "question"
        tests = [name for name in content if name != subject]
        if len(tests) != 1 or tests[0] not in _TESTS:
            self._refuse(path, f"{subject} needs one test of {', '.join(_TESTS)}")
            return _holds, frozenset()
        (name,) = tests
        wanted = content[name]
        if name in ("affirmative", "present"):
            if wanted is not True:
                self._refuse((*path, name), "must be true; put the condition under not: for the contrary")
        elif name == "in" and not (isinstance(wanted, list) and wanted):
            self._refuse((*path, name), "must be a list of values")
            wanted = []
        if any(isinstance(one, list | dict) for one in (wanted if isinstance(wanted, list) else [wanted])):
            self._refuse((*path, name), "must be a text, a number, true, false or null")
            wanted = []
        paths: frozenset[str] = frozenset()
        if subject == "from":
            node = self._read(content["from"], (*path, "from"))
            read, paths = node.make, node.paths
        elif isinstance(content["question"], str) and content["question"].strip():
            read = self._questions(content["question"])
        else:
            self._refuse((*path, "question"), "must be a question's text")
            return _holds, frozenset()
        match name:
            case "affirmative":
                return lambda facts: is_affirmative(read(facts)), paths
            case "present":
                return lambda facts: read(facts) not in (None, "", []), paths
            case "equals":
                folded = _folded(wanted)
                return lambda facts: _folded(read(facts)) == folded, paths
            case _:
                any_of = {_folded(one) for one in wanted}
                return lambda facts: _folded(read(facts)) in any_of, paths

    # -------------------------------------------------------------------------------------------------------- paths

    def _read(self, name: Any, path: Path) -> Node:
        null = _constant(None, path)
        if not isinstance(name, str):
            self._refuse(path, "must be a path such as form.damage_description")
            return null
        root, _, rest = name.partition(".")
        if root in self._items:
            source = self._items[root]
            if rest not in source.kinds:
                self._unknown(name, path)
                return null
            read = source.read(rest)
            return Node(lambda facts: read(facts.item), source.kinds[rest], path=path, paths=frozenset({name}))
        found = self.scope.sources.get(root)
        if found is None or rest not in found.kinds:
            self._unknown(name, path)
            return null
        read = found.read(rest)
        return Node(
            lambda facts: read(facts.sources[root]),
            found.kinds[rest],
            path=path,
            paths=frozenset({name}),
            personal=rest in found.personal,
        )

    def _field(self, name: str, source: Source, path: Path) -> Callable[[Any], Any]:
        if name not in source.kinds:
            self._refuse(path, f"no such field: there are {', '.join(source.kinds)}")
            return lambda _: None
        return source.read(name)

    def _unknown(self, name: str, path: Path) -> None:
        everything = [*_paths(self.scope.sources), *_paths(self._items)]
        close = difflib.get_close_matches(name, everything, n=1, cutoff=0.7)
        there = sorted({*self.scope.sources, *self._items})
        self._refuse(
            path,
            f"nothing is called {name!r}; " + (f"did you mean {close[0]}?" if close else f"there are {_dots(there)}"),
        )

    def _texts(self, content: dict[str, Any], key: str, path: Path) -> list[tuple[int, str]]:
        texts = content.get(key, [])
        if not isinstance(texts, list) or any(not isinstance(one, str) for one in texts):
            self._refuse((*path, key), "must be a list of names")
            return []
        return list(enumerate(texts))

    def _refuse(self, path: Path, text: str) -> None:
        self.problems.append((path, text))


_KIND_NAMES = {"object": "an object", "list": "a list"}


def _constant(value: Any, path: Path, fields: Mapping[str, Node] | None = None) -> Node:
    return Node(lambda _: value, _kind_of(value), True, value, fields=fields or {}, path=path)


def _together(nodes: Iterable[Node], make: Make, kind: Kind, path: Path) -> Node:
    nodes = list(nodes)
    return Node(
        make,
        kind,
        path=path,
        paths=frozenset[str]().union(*(node.paths for node in nodes)),
        personal=kind == "text" and any(node.personal for node in nodes),
    )


def _kind_of(value: Any) -> Kind:
    match value:
        case None:
            return "null"
        case bool():
            return "yes_no"
        case int():
            return "integer"
        case float():
            return "decimal"
        case str():
            return "text"
        case list():
            return "list"
    return "object"


def _chain(make: Make, steps: Sequence[Function], default: Any) -> Make:
    if not steps:
        if default is None:
            return make
        return lambda facts: default if (value := make(facts)) is None else value
    if len(steps) == 1:
        (only,) = steps

        def convert_once(facts: Facts) -> Any:
            value = make(facts)
            if value is not None:
                value = only(value)
            return default if value is None else value

        return convert_once

    def convert(facts: Facts) -> Any:
        value = make(facts)
        for step in steps:
            if value is None:
                break
            value = step(value)
        return default if value is None else value

    return convert


def _noting_people(make: Make) -> Make:
    def note(facts: Facts) -> Any:
        value = make(facts)
        if isinstance(value, str):
            facts.personal.append(value)
        return value

    return note


def _noting_missing(make: Make, name: str) -> Make:
    def note(facts: Facts) -> Any:
        value = make(facts)
        if value is None:
            facts.missing.append(name)
        return value

    return note


def _folded(value: Any) -> str:
    if value is None:
        return "null"
    text = CONVERSIONS["text"].make()(value) if not isinstance(value, list | dict) else ""
    return " ".join(str(text).split()).lower()


def _unchanged(value: Any) -> Any:
    return value


def _holds(_: Facts) -> bool:
    return True


def _paths(sources: Mapping[str, Source]) -> Iterator[str]:
    for root, source in sources.items():
        yield from (f"{root}.{name}" for name in source.kinds)


def _dots(names: Iterable[str]) -> str:
    return ", ".join(f"{name}.…" for name in names)
