"""The Java parts of the local stack, fetched once from Maven into a folder of their own.

``python -m itel_cabinet.local.artifacts`` fetches what is missing. Each component is one pom beside this module, and
its versions are written there and nowhere else.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

__all__ = ["COMPONENTS", "KAFKA", "ArtifactError", "Component", "fetch", "home", "jars", "java"]

_NAMESPACE = "{http://maven.apache.org/POM/4.0.0}"


class ArtifactError(RuntimeError):
    """A part of the local stack is missing or cannot be fetched; the text is one line with the mend."""


@dataclass(frozen=True, slots=True)
class Component:
    """A set of jars that belong together; ``name`` and ``version`` are the artifact id and version of its ``pom``."""

    name: str
    version: str
    pom: Path

    @classmethod
    def of(cls, pom: Path) -> Component:
        """The component that ``pom`` describes."""
        project = ElementTree.parse(pom).getroot()
        name, version = (project.findtext(f"{_NAMESPACE}{tag}") for tag in ("artifactId", "version"))
        if not name or not version:
            raise ArtifactError(f"{pom.name} names no artifactId or version: restore it from the repository")
        return cls(name, version, pom)

    @property
    def folder(self) -> Path:
        """Where its jars are, once fetched: ``<home>/<name>-<version>``, an absolute path."""
        return home() / f"{self.name}-{self.version}"


KAFKA = Component.of(Path(__file__).with_name("pom.xml"))
COMPONENTS = (KAFKA,)


def home() -> Path:
    """``$ITEL_CABINET_LOCAL``, or ``.local`` in the current folder; an absolute path, which need not exist yet."""
    return Path(os.environ.get("ITEL_CABINET_LOCAL") or ".local").absolute()


def jars(component: Component) -> Path:
    """The folder that holds the jars of ``component``; raises :class:`ArtifactError` if they were not fetched."""
    if not component.folder.is_dir():
        raise ArtifactError(
            f"{component.name} {component.version} is not in {component.folder}: "
            "run `make setup`, or point ITEL_CABINET_LOCAL at the folder that holds it"
        )
    return component.folder


def java() -> str:
    """The Java launcher: of ``$JAVA_HOME`` if set, else on the PATH; raises :class:`ArtifactError` if there is none."""
    java_home = os.environ.get("JAVA_HOME")
    found = shutil.which("java", path=str(Path(java_home, "bin")) if java_home else None)
    if found is None:
        raise ArtifactError("no `java` found: install a Java 17 runtime, or point JAVA_HOME at one")
    return found


def fetch(component: Component) -> Path:
    """Fetch the jars of ``component`` unless they are there, and return their folder.

    The folder appears whole or not at all: Maven fills a temporary one, which is then renamed. Raises
    :class:`ArtifactError`.
    """
    target = component.folder
    if target.is_dir():
        return target
    what = f"{component.name} {component.version}"
    maven = shutil.which("mvn")
    if maven is None:
        raise ArtifactError(
            f"cannot fetch {what}: no `mvn` found; install Maven 3.6 or later and run `make setup` again"
        )
    print(f"fetching {what} by Maven into {target}", flush=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{target.name}.", dir=target.parent) as temporary:
        copy = Path(temporary, "jars")
        arguments = ["-q", "-B", "-f", str(component.pom), "dependency:copy-dependencies", f"-DoutputDirectory={copy}"]
        done = subprocess.run(
            [maven, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        if done.returncode != 0 or not copy.is_dir():
            reason = next(
                (line for line in done.stdout.splitlines() if "ERROR" in line), f"exit status {done.returncode}"
            )
            raise ArtifactError(
                f"Maven could not fetch {what} ({component.pom.name}): {reason.strip()}; "
                "check the network and the Maven mirror settings, then run `make setup` again"
            )
        try:
            copy.rename(target)
        except OSError:
            # Another process was faster; its folder is as good as ours.
            if not target.is_dir():
                raise
    return target


def main() -> int:
    """Fetch every component; returns the exit status, and says why on stderr if it is not 0."""
    try:
        for component in COMPONENTS:
            fetch(component)
    except ArtifactError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
