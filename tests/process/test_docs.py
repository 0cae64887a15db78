"""The pages name tests as proofs: the tests must exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from itel_cabinet.transforms.contracts.conversions import CONVERSIONS

_PROJECT = Path(__file__).parents[2]


@pytest.mark.parametrize("page", sorted((_PROJECT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_every_test_that_a_page_names_exists(page: Path) -> None:
    sources = "\n".join(file.read_text(encoding="utf-8") for file in (_PROJECT / "tests").rglob("test_*.py"))
    defined = set(re.findall(r"^def (test_\w+)\(", sources, re.MULTILINE))
    # `test_x.py` names a file, `test_x` a test.
    named = set(re.findall(r"\b(test_\w+)\b(?!\.py)", page.read_text(encoding="utf-8")))
    assert named - defined == set()
    if page.name == "reliability.md":
        assert len(named) > 30


@pytest.mark.parametrize("page", [*_PROJECT.glob("*.md"), *_PROJECT.glob("docs/*.md")], ids=lambda page: page.name)
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    rooms = "transforms|io|pipeline|local|queries|templates|tests|bench|monitoring|docs"
    named = re.findall(
        rf"(?<![\w/.-])((?:{rooms})/[\w./-]*\w\.(?:py|ya?ml|md|go|json|sql|css))\b", page.read_text("utf-8")
    )
    assert [name for name in named if not (_PROJECT / name).exists()] == []


def test_the_page_on_testing_has_every_crash_point_and_no_other() -> None:
    sources = "\n".join(
        file.read_text("utf-8") for room in ("io", "pipeline") for file in (_PROJECT / room).rglob("*.py")
    )
    points = {re.sub(r"\{.*\}", "TABLE", name) for name in re.findall(r'maybe_crash\(f?"([^"]+)"\)', sources)}
    page = (_PROJECT / "docs" / "testing.md").read_text("utf-8").partition("## Crash points")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`.*?`) \|", page, re.MULTILINE)
    assert len(points) > 15
    assert {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)} == points


def test_the_page_on_contracts_has_every_conversion_and_no_other() -> None:
    page = (_PROJECT / "docs" / "contracts.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"^\| conversion \| does \|\n\|---\|---\|\n((?:\|.*\n)+)", page, re.MULTILINE)
    rows = re.findall(r"^\| `(\w+)(?:: [^`]*)?` \| (.*) \|$", table, re.MULTILINE)
    assert rows == [(name, one.summary) for name, one in CONVERSIONS.items()]


def test_the_page_on_status_has_every_reason_for_a_skip_and_no_other() -> None:
    sources = "\n".join(file.read_text(encoding="utf-8") for file in (_PROJECT / "transforms").glob("*.py"))
    reasons = set(re.findall(r'\bSkip\([^()]*(?:\([^()]*\))?[^()]*"(\w+)"[,)]', sources))
    page = (_PROJECT / "docs" / "status.md").read_text(encoding="utf-8").partition("## Records that are skipped")[2]
    assert {"other_task", "held_by_gate", "unchanged"} < reasons
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == reasons
