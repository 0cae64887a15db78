"""The local object store: its life in a folder of its own, and how it is fetched."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from deltalake import DeltaTable, write_deltalake
from pyarrow import table

from itel_cabinet.local.services import HOST, Azurite, AzuriteError, artifacts
from itel_cabinet.local.services.artifacts import AZURITE
from tests.support.jobs import wait_for

# It keeps the store in a variable: without one, Azurite may end before its starter does.
STARTER = """
import sys, time
from pathlib import Path
from itel_cabinet.local.services.azurite import Azurite
store = Azurite.start(Path(sys.argv[1]))
print(store.port, flush=True)
time.sleep(300)
"""


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex((HOST, port)) == 0


@pytest.mark.services
def test_what_is_stored_is_there_after_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Azurite.start(tmp_path / "azurite") as store:
        store.create_container("tables")
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        write_deltalake("az://tables/one", table({"a": [1, 2]}))
        store.stop()
        assert not listens(store.port)
        store.start_again()
        assert DeltaTable("az://tables/one").to_pyarrow_table().to_pydict() == {"a": [1, 2]}
        with pytest.raises(AzuriteError, match=r"container tables could not be made: 409 .*ContainerAlreadyExists"):
            store.create_container("tables")
    assert not listens(store.port)


@pytest.mark.services
def test_it_does_not_outlive_its_starter(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", STARTER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        port = int(starter.stdout.readline())
        was_there = listens(port)
        starter.send_signal(signal.SIGKILL)
    assert was_there
    wait_for(lambda: not listens(port), "Azurite's end")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ITEL_CABINET_LOCAL", str(tmp_path / "home"))
    return tmp_path / "home"


def npm(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a stand-in for `npm` first in the PATH."""
    folder.mkdir()
    stand_in = folder / "npm"
    stand_in.write_text(f"#!/bin/sh\n{script}\n")
    stand_in.chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_fetched_as_the_lock_has_it(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The third argument is the folder.
    npm(tmp_path / "bin", monkeypatch, f'mkdir "$3/node_modules"; echo "$1" >>{tmp_path}/calls')
    assert [artifacts.main(["azurite"]), artifacts.main(["azurite"])] == [0, 0]
    folder = home / f"azurite-{AZURITE.version}"
    assert sorted(path.name for path in folder.iterdir()) == ["node_modules", "package-lock.json", "package.json"]
    assert (folder / "package-lock.json").read_bytes() == AZURITE.manifest.with_name("package-lock.json").read_bytes()
    assert (tmp_path / "calls").read_text() == "ci\n"
    assert capsys.readouterr().out == f"fetching azurite {AZURITE.version} by npm into {folder}\n"


def test_a_failed_fetch_is_one_line_and_leaves_nothing(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    npm(tmp_path / "bin", monkeypatch, "echo 'npm error network unreachable'; exit 1")
    assert artifacts.main(["azurite"]) == 1
    assert capsys.readouterr().err == (
        f"npm could not fetch azurite {AZURITE.version}: npm error network unreachable; "
        "check the network and npm's registry setting, then run `make setup-tests` again\n"
    )
    assert list(home.iterdir()) == []


def test_what_is_missing_is_told_with_the_mend(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(artifacts.ArtifactError, match=r"azurite .* is not in .*: run `make setup-tests`"):
        Azurite.start(tmp_path / "azurite")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(artifacts.ArtifactError, match=r"no `node` found: install Node\.js 20"):
        Azurite.start(tmp_path / "azurite")
    assert artifacts.main(["azurite"]) == 1
    assert not any(home.iterdir())
