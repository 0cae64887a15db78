"""The parts of the local stack that pip does not bring, fetched once into a folder of their own.

``python -m itel_cabinet.local.artifacts`` fetches the Kafka broker if it is missing, ``... artifacts flink`` the Flink
cluster and Beam's Go programs. Each set of jars is one pom beside this module, and its versions are written there and
nowhere else; the Go programs have the version of the installed ``apache-beam``.
"""

from __future__ import annotations

import hashlib
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
    "BOOT",
    "FLINK",
    "KAFKA",
    "PARTS",
    "PRISM",
    "ArtifactError",
    "Component",
    "Program",
    "fetch",
    "home",
    "jars",
    "java",
]

_NAMESPACE = "{http://maven.apache.org/POM/4.0.0}"


class ArtifactError(RuntimeError):
    """A part of the local stack is missing or cannot be fetched; the text is one line with the mend."""


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


_HERE = Path(__file__).parent

KAFKA = Component.of(_HERE / "pom.xml")
FLINK = Component.of(_HERE / "flink-pom.xml", _HERE / "NothingToStage.java")
BOOT = Program("beam-boot", version("apache-beam"), "github.com/apache/beam/sdks/v2/python/container")
"""What starts Beam's Python workers inside a TaskManager. It belongs to one version of the Python SDK."""

PRISM = Program("prism", version("apache-beam"), "github.com/apache/beam/sdks/v2/go/cmd/prism")
"""Beam's own runner in Go."""

PARTS: dict[str, tuple[Component | Program, ...]] = {"kafka": (KAFKA,), "flink": (FLINK, BOOT, PRISM)}


def home() -> Path:
    """``$ITEL_CABINET_LOCAL``, or ``.local`` in the current folder; an absolute path, which need not exist yet."""
    return Path(os.environ.get("ITEL_CABINET_LOCAL") or ".local").absolute()


def jars(component: Component) -> Path:
    """The folder that holds the jars of ``component``; raises :class:`ArtifactError` if they were not fetched."""
    return _present(component)


def _present(part: Component | Program) -> Path:
    if not part.folder.is_dir():
        raise ArtifactError(
            f"{part.name} {part.version} is not in {part.folder}: "
            "run `make setup`, or point ITEL_CABINET_LOCAL at the folder that holds it"
        )
    return part.folder


def java() -> str:
    """The Java launcher: of ``$JAVA_HOME`` if set, else on the PATH; raises :class:`ArtifactError` if there is none."""
    java_home = os.environ.get("JAVA_HOME")
    found = shutil.which("java", path=str(Path(java_home, "bin")) if java_home else None)
    if found is None:
        raise ArtifactError("no `java` found: install a Java 17 runtime, or point JAVA_HOME at one")
    return found


def fetch(part: Component | Program) -> Path:
    """Fetch ``part`` unless it is there, and return its folder.

    The folder appears whole or not at all: a temporary one is filled, and then renamed. Raises :class:`ArtifactError`.
    """
    target = part.folder
    if target.is_dir():
        return target
    fill = _copy_jars if isinstance(part, Component) else _build
    with tempfile.TemporaryDirectory(prefix=f"{target.name}.", dir=_made(target.parent)) as temporary:
        filled = Path(temporary, "filled")
        fill(part, filled)  # type: ignore[arg-type]
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
    maven = shutil.which("mvn")
    if maven is None:
        raise ArtifactError(
            f"cannot fetch {what}: no `mvn` found; install Maven 3.6 or later and run `make setup` again"
        )
    print(f"fetching {what} by Maven into {component.folder}", flush=True)
    _run(
        [maven, "-q", "-B", "-f", str(component.pom), "dependency:copy-dependencies", f"-DoutputDirectory={into}"],
        f"Maven could not fetch {what} ({component.pom.name})",
        "check the network and the Maven mirror settings",
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
            "use Java 17",
            into,
        )


def _build(program: Program, into: Path) -> None:
    what = f"{program.name} {program.version}"
    go = shutil.which("go")
    if go is None:
        raise ArtifactError(f"cannot build {what}: no `go` found; install Go 1.24 or later and run `make setup` again")
    print(f"building {what} by Go into {program.folder}", flush=True)
    _run(
        [go, "install", f"{program.package}@v{program.version}"],
        f"Go could not build {what}",
        "check the network and the Go module proxy settings",
        into,
        GOBIN=str(into),
    )


def _run(command: Sequence[str], failure: str, mend: str, made: Path, **environment: str) -> None:
    """Run ``command``, which has to make the folder ``made``."""
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    if done.returncode != 0 or not made.is_dir():
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        told = [line for line in lines if "error" in line.lower()] or lines[-1:] or [f"exit status {done.returncode}"]
        raise ArtifactError(f"{failure}: {told[0]}; {mend}, then run `make setup` again")


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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
