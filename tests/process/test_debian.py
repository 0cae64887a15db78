"""The script that installs what only the tests need: seen with an apt-get that is none."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

_SCRIPT = Path(__file__).parents[1] / "support" / "debian.sh"


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """The one folder of the PATH: what the script itself needs, chromium, and an apt-get that tells of its use."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sh", "id", "tail", "env", "cat", "true"):
        (folder / name).symlink_to(Path("/usr/bin", name))
    _write(folder, "chromium", "exit 9")
    _write(folder, "apt-get", f'echo "$@" >>{tmp_path}/asked')
    _write(folder, "id", "echo 0")
    return folder


def _write(folder: Path, name: str, text: str) -> None:
    (folder / name).unlink(missing_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def _run(programs: Path, *arguments: str) -> tuple[int, str, str]:
    done = subprocess.run(
        ["/bin/sh", str(_SCRIPT), *arguments],
        env={"PATH": str(programs)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_what_is_there_is_left_alone(programs: Path) -> None:
    assert _run(programs, "chromium") == (0, "", "")
    assert not (programs.parent / "asked").exists()


def test_what_is_missing_is_installed(programs: Path) -> None:
    assert _run(programs, "chromium", "prometheus", "other") == (0, "fetching prometheus other from Debian\n", "")
    assert (programs.parent / "asked").read_text().splitlines() == [
        "update -q",
        "install -q -y --no-install-recommends prometheus other",
    ]


def test_apt_gets_own_words_are_told(programs: Path) -> None:
    _write(programs, "apt-get", "echo E: no network; exit 100")
    status, _, errors = _run(programs, "prometheus")
    assert status == 1
    assert errors == (
        "E: no network\napt-get could not install prometheus: see its lines above, then run make setup-tests again\n"
    )


@pytest.mark.parametrize("sudo", ["", "echo a password is required >&2; exit 1"])
def test_without_root_a_person_is_asked(programs: Path, sudo: str) -> None:
    _write(programs, "id", "echo 1000")
    if sudo:
        _write(programs, "sudo", sudo)
    assert _run(programs, "prometheus") == (
        1,
        "",
        "the tests need prometheus on the PATH: install with apt-get install prometheus, as root\n",
    )


def test_root_may_be_had_by_sudo(programs: Path) -> None:
    _write(programs, "id", "echo 1000")
    _write(programs, "sudo", '[ "$1" = -n ] && shift && exec "$@"')
    assert _run(programs, "prometheus")[0] == 0
    assert "install" in (programs.parent / "asked").read_text()
