"""What the ledger has settled is sent no second time: not after a reset, under another group, by another job, nor after
a kill; what is to be sent again is, once under each name."""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from itel_cabinet.local.samples import Generator, Produced, Receipt, Shares, produce
from itel_cabinet.local.simulators import ItelSimulator
from itel_cabinet.pipeline.tables import BODIES, LEDGER
from tests.support.accounting import assert_everything_accounted_for, assert_ledger, repeated_calls
from tests.support.cabinet_samples import group, question, tracking_message
from tests.support.jobs import Stack
from tests.support.kills import kill_at_random

MANY_COMPLETIONS = Shares(assigned=0.2, resubmitted=0.2, late=0.1, repeated=0.1)
RECORDS_A_BATCH = 40


def produced(stack: Stack, records: Iterable[Produced]) -> list[Receipt]:
    return produce(stack.broker.bootstrap_servers, stack.topic("tracking"), records, stack.claimx)


def calls(stack: Stack) -> Counter[str]:
    """How often iTel was called for each key."""
    return Counter({one.idempotency_key: one.times for one in stack.itel.submissions()})


def results(stack: Stack) -> list[str]:
    return [json.loads(message.value or b"")["event_id"] for message in stack.broker.read(stack.topic("success"))]


def test_what_is_settled_is_sent_no_second_time(stack: Stack) -> None:
    generator = Generator(41, start=datetime.now(UTC), shares=MANY_COMPLETIONS)
    receipts = produced(stack, generator.tracking_messages(150))
    stack.options = {"max_batch_records": str(RECORDS_A_BATCH)}
    stack.run("cabinet")
    assert_everything_accounted_for(stack, receipts)
    first = calls(stack), results(stack), sorted(map(str, stack.ledger())), sorted(map(str, stack.bodies()))
    assert set(first[0].values()) == {1}

    stack.rewind("cabinet")
    job = stack.run("cabinet", shards=2)
    assert job.counters["skipped:already_submitted"] == sum(r.produced.expect == "submitted" for r in receipts)
    stack.run("cabinet", consumer_group=f"{stack.prefix}.another")
    # One job becomes two: the api job, which has read nothing yet, and need not ask ClaimX about what is settled.
    asked = stack.claimx.calls
    stack.run("api", tables_root=stack.tables_uri)
    asked_again = {path.rpartition("/")[2] for path in stack.claimx.calls - asked}
    settled = {str(r.produced.assignment_id) for r in receipts if r.produced.expect == "submitted"}
    formless = {str(r.produced.assignment_id) for r in receipts if r.produced.kind == "completed_without_form"}
    assert asked_again & settled <= formless < asked_again
    assert (calls(stack), results(stack)) == first[:2]
    assert (sorted(map(str, stack.ledger())), sorted(map(str, stack.bodies()))) == first[2:]

    without = stack.run("api", consumer_group=f"{stack.prefix}.without")
    assert "warning: no ledger is kept" in without.errors
    assert min(calls(stack).values()) == 2


@pytest.mark.parametrize(
    ("point", "at_most"),
    [
        ("after-2xx:3", RECORDS_A_BATCH),
        ("after-flush", RECORDS_A_BATCH),
        (f"before-commit:{BODIES}", RECORDS_A_BATCH),
        (f"after-commit:{BODIES}", RECORDS_A_BATCH),
        (f"after-commit:{LEDGER}", 0),
    ],
)
def test_a_kill_repeats_one_bundle_at_most(stack: Stack, point: str, at_most: int) -> None:
    """Between iTel's answer and the ledger's commit its calls are repeated, under their keys; after it none is."""
    generator = Generator(42, start=datetime.now(UTC), shares=MANY_COMPLETIONS)
    receipts = produced(stack, generator.tracking_messages(90))
    stack.options = {"max_batch_records": str(RECORDS_A_BATCH)}
    with stack.running("api", env={"ITEL_CABINET_CRASH_AT": point}, tables_root=stack.tables_uri) as job:
        assert job.wait() == -signal.SIGKILL, job.errors
    stack.run("api", tables_root=stack.tables_uri)
    assert_ledger(stack, receipts)
    wanted = {r.produced.event_id for r in receipts if r.produced.expect == "submitted"}
    assert calls(stack).keys() == wanted == {*results(stack)}
    repeated = repeated_calls(stack, receipts)
    assert repeated <= at_most
    assert (repeated > 0) == (at_most > 0), "killed too early, or too late"


def test_a_resubmission_is_sent_once_under_its_name_even_if_it_is_killed(stack: Stack) -> None:
    generator = Generator(43, start=datetime.now(UTC), shares=MANY_COMPLETIONS)
    receipts = produced(stack, generator.tracking_messages(120))
    stack.options = {"max_batch_records": str(RECORDS_A_BATCH)}
    stack.run("cabinet")
    submitted = {r.produced.event_id: r.produced.assignment_id for r in receipts if r.produced.expect == "submitted"}
    chosen = {*sorted(set(submitted.values()))[:9]}
    again = {event_id for event_id, assignment_id in submitted.items() if assignment_id in chosen}
    file = stack.folder / "assignments.txt"
    file.write_text("# asked for by iTel\n" + "\n".join(map(str, chosen)))
    options = {"resubmit": str(file), "resubmission": "lost at iTel", "consumer_group": f"{stack.prefix}.again"}
    with stack.running("cabinet", env={"ITEL_CABINET_CRASH_AT": f"after-commit:{LEDGER}"}, **options) as job:
        assert job.wait() == -signal.SIGKILL, job.errors
    for _ in range(2):
        stack.run("cabinet", **options)
        options["consumer_group"] = f"{stack.prefix}.once.more"
    assert calls(stack) == Counter({event_id: 2 if event_id in again else 1 for event_id in submitted})
    rows = [row for row in stack.ledger() if row["resubmission"] and row["settled"]]
    assert Counter(row["event_id"] for row in rows) == Counter(again)
    assert {row["resubmission"] for row in rows} == {"lost at iTel"}
    assert Counter(row["event_id"] for row in stack.ledger() if row["settled"] and not row["resubmission"]) == Counter(
        [*submitted]
    )

    stack.run("cabinet", resubmit="all", resubmission="another", consumer_group=f"{stack.prefix}.third")
    assert calls(stack) == Counter({event_id: 3 if event_id in again else 2 for event_id in submitted})


def test_the_same_form_by_another_event_is_unchanged_after_a_restart_too(stack: Stack) -> None:
    """On another day, by another process, and in the row that says so."""
    first_form = group("Damage Description", question("Enter Damaged Description", "a burst pipe"))
    second_form = group("Damage Description", question("Enter Damaged Description", "a burst pipe, and mould"))

    def tell(event_id: str, day: int, form: Any) -> None:
        when = (datetime(2026, 1, 10, 15, tzinfo=UTC) + timedelta(days=day)).isoformat()
        stack.tell(tracking_message(event_id=event_id, timestamp=when), form)
        stack.run("cabinet", itel_unchanged="skip")

    tell("first", 0, first_form)
    tell("same", 6, first_form)
    tell("other", 6, second_form)
    tell("back", 6, first_form)
    tell("much-later", 20, first_form)
    rows = {row["event_id"]: row for row in stack.ledger()}
    assert {event: row["outcome"] for event, row in rows.items()} == {
        "first": "accepted",
        "same": "unchanged",
        "other": "accepted",
        "back": "accepted",
        "much-later": "accepted",  # further back than the ledger is looked at
    }
    assert [*calls(stack)] == ["first", "other", "back", "much-later"]
    assert rows["same"]["content_sha256"] == rows["first"]["content_sha256"] != rows["other"]["content_sha256"]
    assert (rows["same"]["idempotency_key"], rows["same"]["status"], rows["first"]["status"]) == (None, None, 201)
    assert {body["event_id"] for body in stack.bodies()} == {*calls(stack)}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("kills", "events"),
    [pytest.param(3, 3_000, id="short"), pytest.param(15, 20_000, id="long", marks=pytest.mark.chaos)],
)
def test_killed_at_random_and_read_again_from_the_beginning(stack: Stack, kills: int, events: int) -> None:
    """Kills while events come; then all of them once more under the same group, and under another one."""
    shares = Shares(assigned=0.1, resubmitted=0.05, late=0.02, repeated=0.02, bad=0.01)
    with ItelSimulator(schema={}) as itel:
        stack.itel = itel
        written = kill_at_random(stack, seed=44, shares=shares, kills=kills, events=events, seconds=600)
        by_kills = repeated_calls(stack, written)
        stack.rewind("cabinet")
        stack.run("cabinet", seconds=600)
        stack.run("cabinet", consumer_group=f"{stack.prefix}.another", seconds=600)
        by_reading_again = repeated_calls(stack, written) - by_kills
        print(f"calls repeated: {by_kills} by {kills} kills, {by_reading_again} by reading all of it twice more")
        assert by_kills <= kills * 100
        assert by_reading_again == 0
        assert_everything_accounted_for(stack, written)
