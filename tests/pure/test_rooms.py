"""The rules of the rooms, read off the source tree: layers, faces, circles, and words. See CONTRIBUTING.md.

Each rule is a function from modules to complaints, and is shown to fail on a planted violation.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple

import pytest

_PROJECT = Path(__file__).parents[2]
_ROOMS = ("transforms", "io", "pipeline", "local", "queries", "templates")
_OTHERS = ("bench", "monitoring", "tests")
_OURS = "itel_cabinet"
FACES = frozenset(
    f"{_OURS}.{room}"
    for room in (
        *("io.kafka", "io.delta", "io.http", "io.worker"),
        "transforms.contracts",
        *("pipeline.launch", "pipeline.operate", "pipeline.commands"),
        *("local.services", "local.simulators", "local.samples"),
    )
)
# What a layer may import of ours.
_LAYERS = {
    "transforms": {"transforms"},
    "io": {"transforms", "io"},
    "pipeline": {"transforms", "io", "pipeline", "queries", "templates"},
    "queries": set(),
    "templates": set(),
    "local": set(_ROOMS),
}
_LIFTED_OUT = {
    "io.kafka": ("io.kafka", "io.worker", "io.secrets", "io.batches", "io.batch_limits", "transforms.records"),
    "io.delta": ("io.delta", "io.worker", "io.secrets", "io.batches", "io.batch_limits"),
}
_NOT_IN_THE_DOMAIN = ("apache_beam", "prometheus_client", f"{_OURS}.io")
# What is not written, and what is written in its place. An identifier such as world_retry_seconds does not count.
WORDS = {
    r"told|tells? of": "reported, reports, says",
    r"mend(s|ed|ing)?": "fix",
    r"anew": "again",
    r"(who|what|wher|which)ever": "the one that, any",
    r"asks? for patience": "says it is busy (429)",
    r"worlds?('s)?|WorldError": "outage",
    r"patience|patient(ly)?": "maximum wait, retries",
    r"what is no": "other than",
    r"overtakes?|overtook|overtaken": "lost the race",
    r"foot-?guns?|strangers?|strange": "known mistake, foreign",
    r"the brief|(the )?first design": "the thing itself",
}
# Labels of transforms, under which savepoints keep their state: a new word would lose it.
_SAVEPOINT_LABEL = re.compile(r'"Tell of (events|submissions)" >> ')
_OTHER_WORDS = {r"(?<![\w\])])\(m(: [^)]*)?\)": '"measured: ..."'}


class Import(NamedTuple):
    line: int
    module: str
    name: str | None
    """None for ``import module``."""
    for_types: bool
    """Under ``if TYPE_CHECKING``."""


@dataclass(frozen=True)
class Module:
    """A source file: its dotted name, and its text."""

    name: str
    text: str
    is_face: bool = False

    @property
    def room(self) -> str:
        """The folder at the top: ``io``, ``tests`` ..."""
        return self.name.removeprefix(f"{_OURS}.").partition(".")[0]

    @property
    def package(self) -> str:
        """The package with a face that it belongs to, or else itself."""
        return next((face for face in FACES if self.name == face or self.name.startswith(f"{face}.")), self.name)

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @cached_property
    def imports(self) -> list[Import]:
        return [*_imports(self.tree.body, for_types=False)]

    @cached_property
    def defined(self) -> frozenset[str]:
        """The names that the module itself gives a meaning."""
        return frozenset(_defined(self.tree.body))

    @cached_property
    def offered(self) -> frozenset[str]:
        """What its ``__all__`` lists."""
        lists = [
            ast.literal_eval(node.value)
            for node in self.tree.body
            if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]
        ]
        return frozenset(name for one in lists for name in one)


Modules = Mapping[str, Module]
Rule = Callable[[Modules], Iterator[str]]


def _imports(body: Iterable[ast.AST], *, for_types: bool) -> Iterator[Import]:
    for node in body:
        if isinstance(node, ast.ImportFrom):
            yield from (Import(node.lineno, node.module or "", alias.name, for_types) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (Import(node.lineno, alias.name, None, for_types) for alias in node.names)
        else:
            inner = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
            yield from _imports(ast.iter_child_nodes(node), for_types=for_types or inner)


def _defined(body: Iterable[ast.stmt]) -> Iterator[str]:
    for node in body:
        match node:
            case ast.FunctionDef() | ast.ClassDef() | ast.AsyncFunctionDef():
                yield node.name
            case ast.Assign():
                yield from (
                    name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)
                )
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name
            case ast.If() | ast.Try() | ast.With():
                yield from _defined([one for one in ast.iter_child_nodes(node) if isinstance(one, ast.stmt)])


def _target(one: Import, modules: Modules) -> str:
    """The module that an import reaches: ``from package import module`` the module, all else what stands after from."""
    inner = f"{one.module}.{one.name}"
    return inner if one.name and inner in modules else one.module


# --------------------------------------------------------------------------------------------------------------- rules


def domain_imports(modules: Modules) -> Iterator[str]:
    for module in modules.values():
        for one in module.imports if module.room == "transforms" else ():
            target = _target(one, modules)
            if any(target == barred or target.startswith(f"{barred}.") for barred in _NOT_IN_THE_DOMAIN):
                yield f"{module.name}:{one.line} imports {target}: transforms are the domain alone; hand it in"


def layer_imports(modules: Modules) -> Iterator[str]:
    for module in modules.values():
        allowed = _LAYERS.get(module.room)
        for one in module.imports if allowed is not None else ():
            target = _target(one, modules)
            if target.startswith(f"{_OURS}.") and target.split(".")[1] not in (allowed or ()):
                yield f"{module.name}:{one.line} imports {target}: that layer is above; turn the arrow round"


def lifted_out_imports(modules: Modules) -> Iterator[str]:
    for package, allowed in _LIFTED_OUT.items():
        roots = tuple(f"{_OURS}.{name}" for name in allowed)
        for module in modules.values():
            for one in module.imports if module.package == f"{_OURS}.{package}" else ():
                target = _target(one, modules)
                known = any(target == root or target.startswith(f"{root}.") for root in roots)
                if target.startswith(_OURS) and not known:
                    yield f"{module.name}:{one.line} imports {target}: {package} could not be published as it is"


def options_in_io(modules: Modules) -> Iterator[str]:
    for module in modules.values():
        for number, line in enumerate(module.text.splitlines() if module.room == "io" else (), 1):
            for found in re.findall(r"(?<![\w-])--[a-z]\w+|\bitel-cabinet [a-z][\w-]+", line):
                yield f"{module.name}:{number} names {found}: raise an error with the field; pipeline names the option"


def imports_past_faces(modules: Modules) -> Iterator[str]:
    for module in modules.values():
        for one in module.imports:
            inside = f"{one.module}." if one.name is None else one.module
            face = next((face for face in FACES if inside == face or inside.startswith(f"{face}.")), None)
            if face is None or face not in modules or module.package == face:
                continue
            offered = one.name in modules[face].offered
            if module.room == "tests":
                if one.module != face and offered:
                    yield f"{module.name}:{one.line} takes {one.name} from {one.module}: it is on the face, {face}"
            elif one.module != face:
                yield f"{module.name}:{one.line} imports past the face {face}: take or put the name there"
            elif one.name and not offered:
                yield f"{module.name}:{one.line} takes {one.name}, which {face} does not list in __all__"


def imports_of_the_own_face(modules: Modules) -> Iterator[str]:
    for module in modules.values():
        for one in module.imports:
            # A __main__ stands outside the door.
            inside = module.name != module.package and not module.name.endswith(".__main__")
            if inside and _target(one, modules) == module.package in FACES:
                yield f"{module.name}:{one.line} imports its own face: import the sibling by its full path"


def second_routes(modules: Modules) -> Iterator[str]:
    origins: dict[tuple[str, str], str] = {}
    for module in modules.values():
        if module.name in FACES:
            for one in module.imports:
                if one.name in module.offered and one.module.startswith(_OURS):
                    first = origins.setdefault((one.module, one.name or ""), module.name)
                    if first != module.name:
                        yield f"{module.name}:{one.line} offers {one.name}, and so does {first}: keep one route"
        elif module.is_face or module.room in _ROOMS:
            for name in sorted(module.offered - module.defined):
                if f"{module.name}.{name}" not in modules:
                    yield f"{module.name} lists {name} in __all__, but it is another module's: keep one route"
        for one in module.imports:
            source = modules.get(one.module)
            if source is None or one.name is None or f"{one.module}.{one.name}" in modules or one.name == "*":
                continue
            if one.name not in source.defined and not (source.name in FACES and one.name in source.offered):
                yield f"{module.name}:{one.line} takes {one.name} from {one.module}, which does not define it"


def circles(modules: Modules) -> Iterator[str]:
    between: dict[str, set[str]] = {name: set() for name in modules}
    for module in modules.values():
        for one in module.imports:
            target = _target(one, modules)
            # What a face has for types it loads when it is asked for.
            if target in modules and target != module.name and (module.name in FACES or not one.for_types):
                between[module.name].add(target)
    packages: dict[str, set[str]] = {}
    for name, targets in between.items():
        own = modules[name].package
        packages.setdefault(own, set()).update({modules[target].package for target in targets} - {own})
    for what, graph in (("modules", between), ("packages", packages)):
        for circle in _strongly_connected(graph):
            if what == "packages" and not FACES & {*circle}:
                continue
            yield f"{what} import each other in a circle: {', '.join(circle)}"


def _strongly_connected(graph: Mapping[str, set[str]]) -> Iterator[list[str]]:
    reached = {node: _reach(graph, node) for node in graph}
    seen: set[str] = set()
    for node in graph:
        circle = sorted(other for other in reached[node] if node in reached.get(other, ()))
        if circle and node not in seen:
            seen.update(circle)
            yield circle


def _reach(graph: Mapping[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    waiting = [*graph[start]]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += graph.get(node, ())
    return found


def exceptions_without_error(modules: Modules) -> Iterator[str]:
    for module in modules.values():
        for node in ast.walk(module.tree) if module.room in _ROOMS else ():
            if isinstance(node, ast.ClassDef) and not node.name.endswith("Error"):
                bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
                if any(base == "Exception" or base.endswith("Error") for base in bases):
                    yield f"{module.name}:{node.lineno} {node.name} is an exception: let its name end in Error"


def private_words(texts: Mapping[str, str]) -> Iterator[str]:
    words = {rf"\b({word})\b": better for word, better in WORDS.items()} | _OTHER_WORDS
    for name, text in texts.items():
        for number, line in enumerate(text.splitlines(), 1):
            if _SAVEPOINT_LABEL.search(line):
                continue
            for word, better in words.items():
                if found := re.search(word, line, re.IGNORECASE):
                    yield f'{name}:{number} says "{found[0]}": write {better}'


# --------------------------------------------------------------------------------------------------------------- tests


@cache
def _modules() -> dict[str, Module]:
    files = [file for folder in (*_ROOMS, *_OTHERS) for file in _find(folder, "py")]
    return {module.name: module for module in map(_module, files)}


def _find(folder: str, kind: str) -> list[Path]:
    """The files of a folder, without what a build has left there."""
    found = sorted((_PROJECT / folder).rglob(f"*.{kind}"))
    return [file for file in found if "build" not in file.relative_to(_PROJECT).parts]


def _module(file: Path) -> Module:
    parts = file.relative_to(_PROJECT).with_suffix("").parts
    is_face = parts[-1] == "__init__"
    name = ".".join([*([_OURS] if parts[0] in _ROOMS else []), *parts[: len(parts) - is_face]])
    return Module(name, file.read_text(encoding="utf-8"), is_face)


def _texts() -> dict[str, str]:
    """All that people read, but for the tests."""
    folders = [
        (folder, kind) for folder in (*_ROOMS, "bench", "monitoring", "docs") for kind in ("py", "md", "sql", "yaml")
    ]
    files = [file for folder, kind in folders for file in _find(folder, kind)]
    files += [
        *_PROJECT.glob("*.md"),
        *_PROJECT.glob("monitoring/*.yml"),
        _PROJECT / "Makefile",
        _PROJECT / "Dockerfile",
    ]
    return {str(file.relative_to(_PROJECT)): file.read_text(encoding="utf-8") for file in files}


def planted(**sources: str) -> dict[str, Module]:
    """Modules of given text, by names with ``__`` for the dots: a face ends in ``__``."""
    return {
        module.name: module
        for name, text in sources.items()
        for module in [Module(f"{_OURS}.{name.replace('__', '.').rstrip('.')}", text, name.endswith("__"))]
    }


_KAFKA = '__all__ = ["ReadFromKafka"]\nfrom itel_cabinet.io.kafka.source import ReadFromKafka'


@pytest.mark.parametrize(
    ("rule", "violation"),
    [
        (domain_imports, {"transforms__events": "def f():\n    import apache_beam.metrics"}),
        (domain_imports, {"transforms__events": "from prometheus_client import Counter"}),
        (domain_imports, {"transforms__events": "from itel_cabinet.io.worker import metrics"}),
        (domain_imports, {"transforms__events": "from itel_cabinet import io", "io__": ""}),
        (layer_imports, {"io__claimx": "from itel_cabinet.pipeline.options import Settings"}),
        (layer_imports, {"pipeline__graph": "def f():\n    from itel_cabinet.local.services import Broker"}),
        (lifted_out_imports, {"io__delta__table": "from itel_cabinet.transforms.records import Record"}),
        (lifted_out_imports, {"io__kafka__source": "from itel_cabinet.io.claimx import ClaimX"}),
        (options_in_io, {"io__delta__spec": 'raise ValueError(f"--tables_root: {uri}")'}),
        (options_in_io, {"io__delta__spec": '"""What `itel-cabinet tables vacuum` does."""'}),
        (
            imports_past_faces,
            {"io__kafka__": _KAFKA, "pipeline__graph": "from itel_cabinet.io.kafka.source import Seen"},
        ),
        (imports_past_faces, {"io__kafka__": _KAFKA, "pipeline__graph": "import itel_cabinet.io.kafka.source"}),
        (imports_past_faces, {"io__kafka__": _KAFKA, "pipeline__graph": "from itel_cabinet.io.kafka import Seen"}),
        (
            imports_of_the_own_face,
            {"io__kafka__": _KAFKA, "io__kafka__log": "from itel_cabinet.io.kafka import Cluster"},
        ),
        (second_routes, {"io__claimx": '__all__ = ["Reply"]\nfrom itel_cabinet.io.http import Reply'}),
        (second_routes, {"io__claimx": "from x import y", "io__itel": "from itel_cabinet.io.claimx import y"}),
        (
            second_routes,
            {"io__kafka__": _KAFKA, "io__delta__": _KAFKA, "io__kafka__source": "class ReadFromKafka: pass"},
        ),
        (circles, {"io__a": "import itel_cabinet.io.b", "io__b": "def f():\n    from itel_cabinet.io import a"}),
        (
            circles,
            {
                "io__http__": "",
                "io__http__a": "import itel_cabinet.io.worker.b",
                "io__http__c": "",
                "io__worker__b": "",
                "io__worker__d": "import itel_cabinet.io.http.c",
            },
        ),
        (exceptions_without_error, {"io__claimx": "class LookupRefused(ValueError): pass"}),
    ],
)
def test_each_rule_can_fail(rule: Rule, violation: dict[str, str]) -> None:
    assert len([*rule(planted(**violation))]) == 1


def test_tests_take_from_the_face_what_is_on_it() -> None:
    face = planted(io__kafka__=_KAFKA, io__kafka__source="class ReadFromKafka: pass\nclass _Tracker: pass")
    past = "from itel_cabinet.io.kafka.source import ReadFromKafka, _Tracker"
    modules = {**face, "tests.test_x": Module("tests.test_x", past)}
    assert [*imports_past_faces(modules)] == [
        "tests.test_x:1 takes ReadFromKafka from itel_cabinet.io.kafka.source: it is on the face, itel_cabinet.io.kafka"
    ]


def test_imports_for_types_make_no_circle() -> None:
    modules = planted(
        io__a="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from itel_cabinet.io import b",
        io__b="from itel_cabinet.io import a",
    )
    assert [*circles(modules)] == []


@pytest.mark.parametrize(
    ("text", "complaints"),
    [
        ("a table anew, whatever happens", 2),
        ("'Mended' by the world's patience", 3),
        ("takes 3 s (m: on 2 cores)", 1),
        ("--world_retry_seconds, commend, ITEL_TOLD, outage_patience_seconds, test_whatever_the_names, f(m)", 0),
    ],
)
def test_private_words_are_found(text: str, complaints: int) -> None:
    assert len([*private_words({"page": text})]) == complaints


@pytest.mark.parametrize(
    "rule",
    [
        domain_imports,
        layer_imports,
        lifted_out_imports,
        options_in_io,
        imports_past_faces,
        imports_of_the_own_face,
        second_routes,
        circles,
        exceptions_without_error,
    ],
)
def test_the_rooms_keep_the_rule(rule: Rule) -> None:
    assert [*rule(_modules())] == []


def test_every_package_with_a_face_is_there() -> None:
    assert FACES - _modules().keys() == set()
    assert all(_modules()[face].offered for face in FACES)


def test_no_private_words() -> None:
    assert [*private_words(_texts())] == []
