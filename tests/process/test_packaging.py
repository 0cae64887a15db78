"""What is in the wheel and in the source distribution, and that both, and an editable install, serve imports: here, and
in the workers of a Flink cluster.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from itel_cabinet.local.samples import Generator, produce
from itel_cabinet.local.services import FlinkCluster
from tests.support.jobs import Stack

_PROJECT = Path(__file__).parents[2]
_ROOMS = ("pipeline", "transforms", "io", "templates", "queries", "monitoring")


def _run(*command: str, folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _pip(*arguments: str, folder: Path) -> None:
    _run(
        sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments,
        "--no-deps", "--no-build-isolation", "--no-index", folder=folder,
    )  # fmt: skip


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of what is packaged, since building writes beside it."""
    copy = tmp_path / "project"
    copy.mkdir()
    for room in _ROOMS:
        shutil.copytree(_PROJECT / room, copy / room, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "constraints.txt"):
        shutil.copy(_PROJECT / name, copy)
    return copy


def _packaged(project: Path) -> set[str]:
    """The modules and data that belong into a distribution, relative to the project."""
    return {str(path.relative_to(project)) for room in _ROOMS for path in (project / room).rglob("*") if path.is_file()}


def _imports_from(site: Path) -> None:
    """Fails unless every room and the data that modules read are found in ``site``, which comes first on the path."""
    script = f"""
import io, sys
sys.path.insert(0, {str(site)!r})
from itel_cabinet import pipeline, templates, transforms
from itel_cabinet.transforms.triggers import load_default_rules
assert pipeline.__file__ == {str(site / "itel_cabinet/pipeline/__init__.py")!r}, pipeline.__file__
assert io.StringIO("the standard library's").read()
print(*load_default_rules([32513]).topics)
"""
    assert _run(sys.executable, "-c", script, folder=site).split() == ["itel.cabinet.task.tracking"]


def test_the_wheel_holds_every_module_and_its_data(project: Path, tmp_path: Path) -> None:
    _pip("wheel", "--wheel-dir", str(tmp_path / "dist"), ".", folder=project)
    (wheel,) = (tmp_path / "dist").glob("itel_cabinet-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        entry_points = archive.read(f"{wheel.name.partition('-py3')[0]}.dist-info/entry_points.txt").decode()
        assert names == {f"itel_cabinet/{name}" for name in _packaged(project)}
        archive.extractall(tmp_path / "site")
    assert "itel-cabinet = itel_cabinet.pipeline.commands:main" in entry_points
    _imports_from(tmp_path / "site")


def test_a_wheel_built_from_the_source_distribution_is_the_same(project: Path, tmp_path: Path) -> None:
    # As Beam does for --setup_file.
    _run(sys.executable, "setup.py", "--quiet", "sdist", "--dist-dir", str(tmp_path / "dist"), folder=project)
    (sdist,) = (tmp_path / "dist").glob("itel_cabinet-*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    unpacked = tmp_path / sdist.name.removesuffix(".tar.gz")
    assert {name for name in _packaged(project) if not (unpacked / name).is_file()} == set()
    _pip("install", "--target", str(tmp_path / "site"), str(sdist), folder=tmp_path)
    _imports_from(tmp_path / "site")


def test_an_editable_install_serves_the_rooms_where_they_are(project: Path, tmp_path: Path) -> None:
    """The local tools are a distribution of their own; both serve one import package."""
    site = tmp_path / "site"
    shutil.copytree(_PROJECT / "local", project / "local", ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for folder in (".", "./local"):
        _pip("install", "--target", str(site), "--editable", folder, folder=project)
    rooms = ("io", "local", "pipeline", "templates", "transforms")
    script = f"""
import site
site.addsitedir({str(site)!r})
from itel_cabinet import {", ".join(rooms)}
for room in ({", ".join(rooms)}):
    print(room.__file__)
"""
    # Without this environment's own packages, where another editable install may be.
    found = _run(sys.executable, "-I", "-S", "-c", script, folder=tmp_path).split()
    assert found == [f"{project}/{room}/__init__.py" for room in rooms]


def test_the_command_works_from_the_wheel_alone(project: Path, tmp_path: Path) -> None:
    """In production there is neither a checkout nor anything of local, tests and simulators."""
    site = tmp_path / "site"
    _pip("install", "--target", str(site), ".", folder=project)
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True, timeout=120)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(environment)}))
    # What the package depends on comes from here, but not the editable installs of the project itself.
    for installed in Path(sysconfig.get_path("purelib")).iterdir():
        if not installed.name.startswith(("itel_cabinet", "__editable__")):
            (packages / installed.name).symlink_to(installed)
    (packages / "site.pth").write_text(f"{site}\n")

    python = str(environment / "bin" / "python")

    def run(*arguments: str) -> str:
        return _run(python, "-m", "itel_cabinet.pipeline.commands", *arguments, folder=tmp_path)

    commands = run("--help")
    assert "run" in commands
    assert "dead-letters" in commands
    assert "claimx_deadline_seconds" in run("run", "--help")
    assert "cabinet.flink" in run("templates", "list", "--json")
    assert "claimx_itel_forms: created" in run("tables", "create", f"--tables_root={tmp_path / 'tables'}")
    assert "latest-events" in run("query")
    there = "import importlib.util as u; print([n for n in ('local', 'tests') if u.find_spec('itel_cabinet.' + n)])"
    assert _run(python, "-c", there, folder=tmp_path) == "[]\n"


# ------------------------------------------------------------------------------------------- workers without a checkout


@dataclass
class Environment:
    """A virtual environment with all that the package needs, but not the package; ``boot`` starts workers in it."""

    folder: Path
    boot: Path

    @property
    def packages(self) -> Path:
        return Path(sysconfig.get_path("purelib", vars={"base": str(self.folder)}))


@pytest.fixture
def environment(cluster: FlinkCluster, tmp_path: Path) -> Environment:
    folder = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=120)
    command = cluster.folder / "boot"
    made = Environment(folder, folder / "boot")
    # This environment's packages come along. Its editable install does not: a .pth file counts only where it lies.
    (made.packages / "others.pth").write_text(sysconfig.get_path("purelib"))
    made.boot.write_text(f'#!/bin/sh\nPATH="{folder / "bin"}:$PATH" exec "{command}" "$@"\n')
    made.boot.chmod(0o755)
    script = "import apache_beam, deltalake, importlib.util; print(importlib.util.find_spec('itel_cabinet'))"
    assert _run(str(folder / "bin" / "python"), "-c", script, folder=tmp_path) == "None\n"
    return made


def _run_cabinet(stack: Stack, cluster: FlinkCluster, environment: Environment, cwd: Path, *more: str) -> None:
    """Fails unless records go through workers in ``environment``."""
    messages = Generator(9, start=datetime.now(UTC)).tracking_messages(100)
    receipts = produce(stack.broker.bootstrap_servers, stack.topic("tracking"), messages, stack.claimx)
    options = cluster.beam_options() | {
        "checkpointing_interval": "2000",
        "environment_config": f'{{"command": "{environment.boot}"}}',
    }
    launched = subprocess.run(
        [*stack.command("cabinet", **options), *more], cwd=cwd, capture_output=True, text=True, timeout=400, check=False
    )
    assert launched.returncode == 0, launched.stderr
    [job] = [job for job in cluster.jobs() if job.active]
    try:
        stack.settle("cabinet", 240)
    finally:
        cluster.cancel(job.id)
    assert len(stack.tracking()) == sum(r.produced.expect in ("tracked", "submitted") for r in receipts)
    assert (environment.packages / "itel_cabinet" / "pipeline" / "graph.py").is_file()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_workers_with_the_package_in_their_environment(
    stack: Stack, cluster: FlinkCluster, environment: Environment, project: Path, tmp_path: Path
) -> None:
    # As the image is made, but for the network.
    _pip("wheel", "--wheel-dir", str(tmp_path / "dist"), ".", folder=project)
    [wheel] = (tmp_path / "dist").glob("itel_cabinet-*.whl")
    _pip("install", "--ignore-installed", "--prefix", str(environment.folder), str(wheel), folder=tmp_path)

    _run_cabinet(stack, cluster, environment, tmp_path)


@pytest.mark.timeout(900)
def test_workers_that_get_the_package_with_the_job(
    stack: Stack, cluster: FlinkCluster, environment: Environment, project: Path
) -> None:
    _run_cabinet(stack, cluster, environment, project, "--setup_file=./setup.py")
