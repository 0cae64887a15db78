"""The parts of the local stack that pip does not bring, fetched once into a folder of their own.

``python -m itel_cabinet.local.services`` fetches the Kafka broker if it is missing, with ``flink`` the Flink cluster
and Beam's Go programs, with ``azurite`` the object store, with ``prometheus`` the server that scrapes, with
``toxiproxy`` the proxy that makes faults. Each set of jars is one pom beside this
module, and its versions are written there and nowhere else; so are npm's in ``npm/package.json`` and its lock. Beam's
Go programs have the version of the installed ``apache-beam``, Debian's packages that of the machine's release.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from xml.etree.ElementTree import canonicalize, parse

__all__ = [
    "AZURITE",
    "BOOT",
    "FLINK",
    "KAFKA",
    "PARTS",
    "PRISM",
    "PROMETHEUS",
    "TOXIPROXY",
    "ArtifactError",
    "Component",
    "DebianPackage",
    "NodeProgram",
    "Program",
    "fetch",
    "home",
    "jars",
    "java",
    "node",
]

_NAMESPACE = "{http://maven.apache.org/POM/4.0.0}"


class ArtifactError(RuntimeError):
    """A part of the local stack is missing or cannot be fetched; the text is one line with what to do."""


@dataclass(frozen=True, slots=True)
class Component:
    """A set of jars that belong together; ``name`` and ``version`` are the artifact id and version of its ``pom``.

    ``sources`` are Java files that are compiled against the jars, and whose classes lie beside them. ``digest`` is of
    both, so that a changed one is a component of its own.
    """

    name: str
    version: str
    digest: str
    pom: Path
    sources: tuple[Path, ...] = ()

    @classmethod
    def of(cls, pom: Path, *sources: Path) -> Component:
        """The component that ``pom`` describes."""
        project = parse(pom).getroot()
        name, version = (project.findtext(f"{_NAMESPACE}{tag}") for tag in ("artifactId", "version"))
        if not name or not version:
            raise ArtifactError(f"{pom.name} names no artifactId or version: restore it from the repository")
        # Without comments and white space, a change of which would fetch the same jars again.
        made_from = [
            canonicalize(from_file=pom, strip_text=True).encode(),
            *(source.read_bytes() for source in sources),
        ]
        digest = hashlib.sha256(b"\0".join(made_from)).hexdigest()[:8]
        return cls(name, version, digest, pom, sources)

    @property
    def folder(self) -> Path:
        """Where its jars are, once fetched: ``<home>/<name>-<version>-<digest>``, an absolute path."""
        return home() / f"{self.name}-{self.version}-{self.digest}"


@dataclass(frozen=True, slots=True)
class Program:
    """A Go program, built from the module proxy; ``package`` is its import path."""

    name: str
    version: str
    package: str

    @property
    def folder(self) -> Path:
        """Where it is, once built: ``<home>/<name>-<version>``, an absolute path."""
        return home() / f"{self.name}-{self.version}"

    @property
    def path(self) -> Path:
        """The executable; raises :class:`ArtifactError` if it was not built."""
        return _present(self) / self.package.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class NodeProgram:
    """A program from npm, with all that it stands on as the lock beside its ``manifest`` has it."""

    name: str
    version: str
    manifest: Path

    @classmethod
    def of(cls, manifest: Path) -> NodeProgram:
        """The one program that a package.json depends on."""
        [(name, version)] = json.loads(manifest.read_text(encoding="utf-8"))["dependencies"].items()
        return cls(name, version, manifest)

    @property
    def folder(self) -> Path:
        """Where it is, once fetched: ``<home>/<name>-<version>``, an absolute path."""
        return home() / f"{self.name}-{self.version}"

    def script(self, command: str) -> Path:
        """What Node.js runs for one of its commands; raises :class:`ArtifactError` if it was not fetched."""
        return (_present(self) / "node_modules" / ".bin" / command).resolve()


@dataclass(frozen=True, slots=True)
class DebianPackage:
    """A package of the machine's own Debian or Ubuntu, unpacked but not installed: for programs that need no more than
    themselves. So nothing needs root, and no service is started.
    """

    name: str
    version: str = "debian"

    @property
    def folder(self) -> Path:
        """Where it is, once fetched: ``<home>/<name>-debian``, an absolute path."""
        return home() / f"{self.name}-{self.version}"

    def program(self, command: str) -> Path:
        """One of its executables; raises :class:`ArtifactError` if it was not fetched."""
        return _present(self) / "usr" / "bin" / command


Part = Component | Program | NodeProgram | DebianPackage

_HERE = Path(__file__).parent

KAFKA = Component.of(_HERE / "pom.xml")
FLINK = Component.of(_HERE / "flink-pom.xml", _HERE / "NothingToStage.java", _HERE / "BundleCheckpointHandlers.java")
BOOT = Program("beam-boot", version("apache-beam"), "github.com/apache/beam/sdks/v2/python/container")
"""What starts Beam's Python workers inside a TaskManager. It belongs to one version of the Python SDK."""

PRISM = Program("prism", version("apache-beam"), "github.com/apache/beam/sdks/v2/go/cmd/prism")
"""Beam's own runner in Go."""

TOXIPROXY = Program("toxiproxy", "2.12.0", "github.com/Shopify/toxiproxy/v2/cmd/server")
"""What puts faults into TCP connections."""

AZURITE = NodeProgram.of(_HERE / "npm" / "package.json")
"""An object store that speaks Azure's protocol."""

PROMETHEUS = DebianPackage("prometheus")
"""The server that scrapes, and promtool."""

PARTS: dict[str, tuple[Part, ...]] = {
    "kafka": (KAFKA,),
    "flink": (FLINK, BOOT, PRISM),
    "azurite": (AZURITE,),
    "prometheus": (PROMETHEUS,),
    "toxiproxy": (TOXIPROXY,),
}


def home() -> Path:
    """``$ITEL_CABINET_LOCAL``, or ``.local`` in the current folder; an absolute path, which need not exist yet."""
    return Path(os.environ.get("ITEL_CABINET_LOCAL") or ".local").absolute()


def jars(component: Component) -> Path:
    """The folder that holds the jars of ``component``; raises :class:`ArtifactError` if they were not fetched."""
    return _present(component)


def _present(part: Part) -> Path:
    if not part.folder.is_dir():
        raise ArtifactError(
            f"{part.name} {part.version} is not in {part.folder}: "
            f"run `{_setup(part)}`, or point ITEL_CABINET_LOCAL at the folder that holds it"
        )
    return part.folder


def _setup(part: Part) -> str:
    """What a person runs to fetch ``part``."""
    return "make setup" if part in PARTS["kafka"] else "make setup-tests"


def java() -> str:
    """The Java launcher: of ``$JAVA_HOME`` if set, else on the PATH; raises :class:`ArtifactError` if there is none."""
    java_home = os.environ.get("JAVA_HOME")
    found = shutil.which("java", path=str(Path(java_home, "bin")) if java_home else None)
    if found is None:
        raise ArtifactError("no `java` found: install a Java 17 runtime, or point JAVA_HOME at one")
    return found


def node() -> str:
    """The Node.js on the PATH; raises :class:`ArtifactError` if there is none."""
    found = shutil.which("node")
    if found is None:
        raise ArtifactError("no `node` found: install Node.js 20 or later")
    return found


def fetch(part: Part) -> Path:
    """Fetch ``part`` unless it is there, and return its folder.

    The folder appears whole or not at all: a temporary one is filled, and then renamed. Raises :class:`ArtifactError`.
    """
    target = part.folder
    if target.is_dir():
        return target
    with tempfile.TemporaryDirectory(prefix=f"{target.name}.", dir=_made(target.parent)) as temporary:
        filled = Path(temporary, "filled")
        match part:
            case Component():
                _copy_jars(part, filled)
            case Program():
                _build(part, filled)
            case NodeProgram():
                _install(part, filled)
            case DebianPackage():
                _unpack(part, filled)
        try:
            filled.rename(target)
        except OSError:
            # Another process was faster; its folder is as good as ours.
            if not target.is_dir():
                raise
    return target


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _copy_jars(component: Component, into: Path) -> None:
    what = f"{component.name} {component.version}"
    maven = _tool("mvn", f"cannot fetch {what}", f"install Maven 3.6 or later and run `{_setup(component)}` again")
    print(f"fetching {what} by Maven into {component.folder}", flush=True)
    _run(
        [maven, "-q", "-B", "-f", str(component.pom), "dependency:copy-dependencies", f"-DoutputDirectory={into}"],
        f"Maven could not fetch {what} ({component.pom.name})",
        f"check the network and the Maven mirror settings, then run `{_setup(component)}`",
        into,
    )
    if component.sources:
        compiler = Path(java()).resolve().with_name("javac")
        if not compiler.exists():
            raise ArtifactError(f"cannot build {what}: there is no {compiler}; install a Java 17 JDK, not just a JRE")
        names = " ".join(source.name for source in component.sources)
        _run(
            [str(compiler), "-cp", f"{into}/*", "-d", str(into), *map(str, component.sources)],
            f"javac could not compile {names} for {what}",
            f"use Java 17, then run `{_setup(component)}`",
            into,
        )


def _build(program: Program, into: Path) -> None:
    what = f"{program.name} {program.version}"
    go = _tool("go", f"cannot build {what}", f"install Go 1.24 or later and run `{_setup(program)}` again")
    print(f"building {what} by Go into {program.folder}", flush=True)
    _run(
        [go, "install", f"{program.package}@v{program.version}"],
        f"Go could not build {what}",
        f"check the network and the Go module proxy settings, then run `{_setup(program)}`",
        into,
        GOBIN=str(into),
    )


def _install(program: NodeProgram, into: Path) -> None:
    what = f"{program.name} {program.version}"
    npm = _tool("npm", f"cannot fetch {what}", f"install Node.js 20 or later and run `{_setup(program)}` again")
    print(f"fetching {what} by npm into {program.folder}", flush=True)
    into.mkdir()
    for name in ("package.json", "package-lock.json"):
        shutil.copy(program.manifest.with_name(name), into)
    _run(
        [npm, "ci", "--prefix", str(into), "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"],
        f"npm could not fetch {what}",
        f"check the network and npm's registry setting, then run `{_setup(program)}`",
        into / "node_modules",
    )


def _unpack(package: DebianPackage, into: Path) -> None:
    what = f"Debian's package {package.name}"
    apt = _tool("apt-get", f"cannot fetch {what}", f"put the program's files into {package.folder}/usr/bin yourself")
    print(f"fetching {what} by apt-get into {package.folder}", flush=True)
    failure = f"apt-get could not fetch {what}"
    advice = f"check the network and /etc/apt/sources.list, then run `{_setup(package)}`"
    with tempfile.TemporaryDirectory(prefix="apt.", dir=into.parent) as state:
        # Its own lists and cache: the machine's belong to root, and may be empty.
        own = {"Dir::State::lists": f"{state}/lists", "Dir::Cache": f"{state}/cache", "Debug::NoLocking": "1"}
        apt_get = [apt, "-qq", "-o", "APT::Sandbox::User=root", *(f"-o{key}={value}" for key, value in own.items())]
        lists = Path(state, "lists")
        for folder in ("lists/partial", "cache/archives/partial"):
            Path(state, folder).mkdir(parents=True)
        _run([*apt_get, "update"], failure, advice, lists)
        _run([*apt_get, "download", package.name], failure, advice, lists, cwd=Path(state))
        [archive] = Path(state).glob("*.deb")
        _run(["dpkg-deb", "-x", str(archive), str(into)], failure, advice, into)


def _tool(name: str, failure: str, advice: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise ArtifactError(f"{failure}: no `{name}` found; {advice}")
    return path


def _run(
    command: Sequence[str], failure: str, advice: str, made: Path, *, cwd: Path | None = None, **environment: str
) -> None:
    """Run ``command``, which has to make the folder ``made``, or find it there."""
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        cwd=cwd,
        env={**os.environ, **environment},
    )
    if done.returncode != 0 or not made.is_dir():
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower()] or lines[-1:]
        reason = errors[0] if errors else f"exit status {done.returncode}"
        raise ArtifactError(f"{failure}: {reason}; {advice} again")


def main(names: Sequence[str] = ()) -> int:
    """Fetch the parts named (of PARTS; the broker by default); returns the exit status, and tells why on stderr."""
    try:
        for name in names or ["kafka"]:
            if name not in PARTS:
                raise ArtifactError(f"{name}: no such part of the local stack: use {' or '.join(PARTS)}")
            for part in PARTS[name]:
                fetch(part)
    except ArtifactError as error:
        print(error, file=sys.stderr)
        return 1
    return 0
