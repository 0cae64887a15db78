"""The `cabinet` job, end to end, on Prism: the runner that Beam means to put in the place of DirectRunner."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from pathlib import Path

import pytest

from itel_cabinet.local.samples import Generator, produce
from itel_cabinet.local.services.artifacts import PRISM
from tests.support.jobs import Stack


def _working_in(folder: Path, program: Path) -> list[str]:
    """The process ids of a program that works in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "cwd").readlink() == folder and (process / "exe").readlink() == program.resolve():
                found.append(process.name)
    return found


@pytest.mark.flink
@pytest.mark.timeout(600)
def test_the_cabinet_job_on_prism(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    prism = PRISM.path
    monkeypatch.chdir(stack.folder)
    messages = [*Generator(8, start=datetime.now(UTC)).tracking_messages(400)]
    receipts = produce(stack.broker.bootstrap_servers, stack.topic("tracking"), messages[:200], stack.claimx)

    with stack.running("cabinet", runner="PrismRunner", prism_location=prism) as job:
        stack.settle("cabinet", 180)
        assert len(_working_in(stack.folder, prism)) == 1
        # It streams: the second half comes while the job runs.
        receipts += produce(stack.broker.bootstrap_servers, stack.topic("tracking"), messages[200:], stack.claimx)
        stack.settle("cabinet", 180)
        assert job.stop(120) == 0, job.errors

    assert _working_in(stack.folder, prism) == []
    assert sorted((row["kafka_partition"], row["kafka_offset"]) for row in stack.tracking()) == sorted(
        (r.partition, r.offset) for r in receipts if r.produced.expect in ("tracked", "submitted")
    )
    assert {submission.idempotency_key for submission in stack.itel.submissions()} == {
        r.produced.event_id for r in receipts if r.produced.expect == "submitted"
    }
    no_form = {r for r in receipts if r.produced.kind == "completed_without_form"}
    dead = {r for r in receipts if r.produced.expect == "dead_letter"} | no_form
    letters = stack.dead_letters() + stack.dead_letters("itel_errors")
    assert {(letter.partition, letter.offset) for letter in letters} == {(r.partition, r.offset) for r in dead}
