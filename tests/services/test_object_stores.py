"""The tables on object stores like Azure's and S3's: jobs, kills and commands on ``az://``, ``abfss://`` and ``s3://``.

That the sink's fences hold there is shown by tests/services/test_delta_fence.py, which is run on all.
"""

from __future__ import annotations

import signal
from datetime import UTC, datetime

import pytest

from itel_cabinet.local.samples import Generator, Receipt, Shares, produce
from itel_cabinet.pipeline.commands import main
from itel_cabinet.pipeline.tables import ATTACHMENTS, BODIES, FORMS, LEDGER, TRACKING
from tests.support.accounting import assert_everything_accounted_for
from tests.support.jobs import Stack

MANY_RESUBMISSIONS = Shares(assigned=0.2, resubmitted=0.2, late=0.1, repeated=0.1)


@pytest.fixture(params=["azure", "s3"])
def on_a_store(stack: Stack, request: pytest.FixtureRequest) -> Stack:
    stack.store = str(request.getfixturevalue(request.param))
    return stack


def produced(stack: Stack, n: int, seed: int) -> list[Receipt]:
    events = Generator(seed, start=datetime.now(UTC), shares=MANY_RESUBMISSIONS).tracking_messages(n)
    return produce(stack.broker.bootstrap_servers, stack.topic("tracking"), events, stack.claimx)


@pytest.mark.slow
def test_cabinet_with_tables_on_a_store(on_a_store: Stack) -> None:
    receipts = produced(on_a_store, 300, 7)
    on_a_store.run("cabinet")
    assert_everything_accounted_for(on_a_store, receipts)

    tables = [on_a_store.tracking(), on_a_store.forms(), on_a_store.attachments()]
    on_a_store.rewind("cabinet")
    on_a_store.run("cabinet")
    assert [on_a_store.tracking(), on_a_store.forms(), on_a_store.attachments()] == tables, "a replay changes no table"
    assert not on_a_store.tables_root.exists()


@pytest.mark.parametrize(
    "point", [f"after-commit:{TRACKING}:3", pytest.param(f"before-commit:{ATTACHMENTS}:2", marks=pytest.mark.slow)]
)
def test_killed_with_tables_on_a_store(on_a_store: Stack, point: str) -> None:
    receipts = produced(on_a_store, 300, 5)
    on_a_store.options = {"max_batch_records": "50"}
    with on_a_store.running("cabinet", env={"ITEL_CABINET_CRASH_AT": point}, until_caught_up="true") as job:
        assert job.wait() == -signal.SIGKILL, job.errors
    assert on_a_store.committed("cabinet") != on_a_store.ends(), "killed too late to prove anything"

    on_a_store.run("cabinet")
    assert_everything_accounted_for(on_a_store, receipts)


@pytest.mark.parametrize("scheme", ["az://tables", "abfss://tables@devstoreaccount1.dfs.core.windows.net"])
def test_tables_are_made_and_described_on_azure(azure: str, scheme: str, capsys: pytest.CaptureFixture[str]) -> None:
    root = f"{azure.replace('az://tables', scheme)}/tables"
    assert main(["tables", "create", f"--tables_root={root}", "--dry_run"]) == 0
    assert capsys.readouterr().out.count("would be created") == 5
    assert main(["tables", "create", f"--tables_root={root}"]) == 0
    assert capsys.readouterr().out.count(": created (") == 5
    assert main(["tables", "create", f"--tables_root={root}"]) == 0
    assert capsys.readouterr().out.count(": exists, left alone") == 5
    assert main(["tables", "describe", f"--tables_root={root}"]) == 0
    told = capsys.readouterr().out
    assert [line for line in told.splitlines() if ": version 0" in line] == [
        f"{root}/{TRACKING}: version 0, 0 files (0 bytes), partitioned by year, month, day",
        f"{root}/{FORMS}: version 0, 0 files (0 bytes)",
        f"{root}/{ATTACHMENTS}: version 0, 0 files (0 bytes)",
        f"{root}/{LEDGER}: version 0, 0 files (0 bytes), partitioned by year, month, day",
        f"{root}/{BODIES}: version 0, 0 files (0 bytes), partitioned by year, month, day",
    ]


def test_tables_are_made_on_s3_without_options(s3: str, capsys: pytest.CaptureFixture[str]) -> None:
    root = f"{s3}/tables"
    assert main(["tables", "create", f"--tables_root={root}"]) == 0
    assert capsys.readouterr().out.count(": created (") == 5
    assert main(["tables", "describe", f"--tables_root={root}"]) == 0
    assert f"{root}/{FORMS}: version 0" in capsys.readouterr().out


@pytest.mark.usefixtures("azure")
def test_a_container_that_is_missing_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tables", "create", "--tables_root=az://no-such-container/tables"]) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"itel-cabinet: --tables_root: Delta table az://no-such-container/tables/{TRACKING}: ")
    assert "404 Not Found: ContainerNotFound: give a folder or object-store URI that can be written" in told
    assert "restype" not in told, "the query of the request, which a SAS token would be part of"
