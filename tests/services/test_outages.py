"""What surrounds a job goes away for a while: nothing is lost, nothing doubled, and nobody's record is blamed.

iTel's outage ends each submission in the success or the error topic, from where it is replayed, or is waited for if so
wanted. Those of ClaimX, of the broker and of the table
store are waited out, for ``--outage_patience_seconds`` at most; a job that gives up says so in one line and is resumed
by a restart.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from itel_cabinet.local.samples import Generator, Produced, Receipt, Shares, produce
from itel_cabinet.local.services import Broker
from itel_cabinet.local.simulators import ClaimXSimulator, ItelSimulator
from itel_cabinet.pipeline.commands import main
from itel_cabinet.transforms.results import SubmissionResult
from tests.support.accounting import assert_published_once
from tests.support.cabinet_samples import group, question, tracking_message
from tests.support.jobs import TOPICS, RunningJob, Stack, wait_for

FORM = (group("Photos", question("Upload Overview Photo(s)", [11, 12])),)
ALL_GOOD = Shares(other_task=0, bad=0, completed_without_form=0, repeated=0)


@pytest.fixture(scope="module")
def frail_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker that may be stopped, since no other module uses it."""
    with Broker.start(tmp_path_factory.mktemp("frail-broker")) as broker:
        yield broker


@dataclass
class Scene:
    """A job on a stack of its own, and what has been produced for it."""

    name: str
    job: str
    stack: Stack
    generator: Generator
    receipts: list[Receipt] = field(default_factory=list)

    def produce(self, n: int) -> None:
        events = self.generator.tracking_messages(n)
        stack = self.stack
        self.receipts += produce(stack.broker.bootstrap_servers, stack.topic("tracking"), events, stack.claimx)

    @property
    def produced(self) -> list[Produced]:
        return [receipt.produced for receipt in self.receipts]

    def check(self) -> None:
        """Nothing is lost or doubled, and there are no dead letters."""
        rows = Counter((row["kafka_partition"], row["kafka_offset"]) for row in self.stack.tracking())
        assert rows == Counter((r.partition, r.offset) for r in self.receipts), self.name
        submitted = [one for one in self.produced if one.expect == "submitted"]
        assert {row["assignment_id"] for row in self.stack.forms()} == {one.assignment_id for one in submitted}
        assert Counter(row["assignment_id"] for row in self.stack.forms()).most_common(1)[0][1] == 1
        accepted = {one.event_id for one in submitted} if self.job == "cabinet" else set()
        assert {s.idempotency_key for s in self.stack.itel.submissions()} == accepted
        assert {
            (message.key or b"").decode() for message in self.stack.broker.read(self.stack.topic("success"))
        } == accepted
        assert self.stack.itel.overlaps == 0
        assert [self.stack.dead_letters(role) for role in ("errors", "itel_errors")] == [[], []]


@contextlib.contextmanager
def scenes(broker: Broker, frail: Broker, folder: Path) -> Iterator[dict[str, Scene]]:
    """One scene for each thing that can go away; two for the broker, as a job may wait at its sinks or its source."""
    folder.mkdir()
    with contextlib.ExitStack() as exits:
        found = {}
        for name, job, brokers in (
            ("claimx", "cabinet", broker),
            ("tables", "cabinet", broker),
            ("broker", "cabinet", frail),
            ("broker-source", "tracking", frail),
        ):
            claimx, itel = exits.enter_context(ClaimXSimulator()), exits.enter_context(ItelSimulator())
            (folder / name).mkdir()
            stack = Stack(brokers, claimx, itel, folder / name, f"{folder.name}.{name}")
            for role, partitions in TOPICS.items():
                brokers.create_topic(stack.topic(role), partitions)
            found[name] = Scene(name, job, stack, Generator(3, start=datetime.now(UTC), shares=ALL_GOOD))
        yield found


@contextlib.contextmanager
def running(found: dict[str, Scene], **options: object) -> Iterator[dict[str, RunningJob]]:
    with contextlib.ExitStack() as exits:
        yield {name: exits.enter_context(scene.stack.running(scene.job, **options)) for name, scene in found.items()}


def begin_outage(found: dict[str, Scene], *, idle: str = "") -> None:
    """All but the broker goes away, with records under way in each scene but ``idle``."""
    found["claimx"].stack.claimx.stop()
    # A file in the place of the tables' folder: not even root can write there.
    tables = found["tables"].stack
    tables.tables_root.rename(tables.folder / "tables-aside")
    tables.tables_root.write_text("in the way")
    for name, scene in found.items():
        claimx = scene.stack.claimx
        before = claimx.calls.total()
        if name.startswith("broker"):
            # Slow lookups keep the batch under way until the broker is gone.
            claimx.faults.latency_seconds = 1.0
        if name != idle:
            scene.produce(40)
        if name.startswith("broker") and name != idle:
            wait_for(lambda seen=before, api=claimx: api.calls.total() > seen, f"lookups of {name}")


def end_outage(found: dict[str, Scene]) -> None:
    """All but the broker comes back."""
    found["claimx"].stack.claimx.start_again()
    tables = found["tables"].stack
    tables.tables_root.unlink()
    (tables.folder / "tables-aside").rename(tables.tables_root)
    for scene in found.values():
        scene.stack.claimx.faults.latency_seconds = 0.0


def check_gave_up(scene: Scene, job: RunningJob) -> None:
    """The job ended with one line that names what is away."""
    stack = scene.stack
    assert job.wait(90) == 1, scene.name
    [line] = [line for line in job.errors.splitlines() if line.startswith("itel-cabinet: ")]
    assert job.errors.endswith(line + "\n"), job.errors
    away = {"claimx": stack.claimx.url, "tables": str(stack.tables_root)}
    assert away.get(scene.name, stack.broker.bootstrap_servers) in line
    assert "Traceback" not in job.errors, job.errors
    assert "while running" not in line


def test_outages_are_waited_out_or_end_the_job_for_a_restart(
    broker: Broker, frail_broker: Broker, tmp_path: Path
) -> None:
    """As long as those with three seconds of patience take to give up, which those with default patience survive."""
    with (
        scenes(broker, frail_broker, tmp_path / "patient") as patient,
        scenes(broker, frail_broker, tmp_path / "impatient") as impatient,
        running(patient) as waiting,
    ):
        everyone = [*patient.values(), *impatient.values()]
        with running(impatient, outage_patience_seconds=3, claimx_deadline_seconds=3) as leaving:
            for scene in everyone:
                scene.produce(40)
            for scene in everyone:
                scene.stack.settle(scene.job, 120)
            # The idle one shows that a job with nothing under way notices, too.
            begin_outage(impatient, idle="broker-source")
            begin_outage(patient)
            frail_broker.stop()
            for name, job in leaving.items():
                check_gave_up(impatient[name], job)
        assert [name for name, job in waiting.items() if job.process.poll() is not None] == []

        frail_broker.start_again()
        end_outage(patient)
        end_outage(impatient)
        # No new records yet: what was under way must be finished, and its offsets committed, without them.
        for scene in patient.values():
            scene.stack.settle(scene.job, 120)
        for scene in everyone:
            scene.produce(20)
        with running(impatient, until_caught_up="true") as resumed:
            for scene in patient.values():
                scene.stack.settle(scene.job, 120)
            for name, job in waiting.items():
                assert job.stop() == 0, name
                assert "Traceback" not in job.errors, name
                patient[name].check()
            for name, job in resumed.items():
                assert job.wait(120) == 0, job.errors
                assert impatient[name].stack.committed(impatient[name].job) == impatient[name].stack.ends(), name
                impatient[name].check()


def test_each_submission_ends_in_the_success_or_the_error_topic(stack: Stack) -> None:
    itel, ended = stack.itel, Counter[str]()

    def submit(phase: str, ends_as: str | None) -> None:
        """Three forms of a phase; ``ends_as`` is the error class of their dead letters, None if they are accepted."""
        for number in range(3):
            event_id = f"{phase}-{number}"
            stack.tell(tracking_message(event_id=event_id, assignment_id=1000 + sum(ended.values())), *FORM)
            ended[ends_as or "accepted"] += 1
            wanted[event_id] = ends_as
        stack.settle("cabinet")

    wanted: dict[str, str | None] = {}
    # Without a breaker, which would sum these outages up.
    with stack.running("cabinet", itel_deadline_seconds=3, max_retries=3, breaker_open_seconds=0) as job:
        submit("well", None)
        itel.faults.error_status, itel.faults.times = 503, 3
        submit("503-for-a-while", None)
        itel.faults = type(itel.faults)(outage=True)
        submit("503", "outage")
        itel.faults = type(itel.faults)(reset=True)
        submit("reset", "reset")
        itel.faults = type(itel.faults)(hang=True)
        submit("hanging", "timeout")
        itel.faults = type(itel.faults)()
        itel.stop()
        submit("refusing", "unreachable")
        itel.start_again()
        submit("well-again", None)
        assert job.stop() == 0, job.errors

    letters = stack.dead_letters("itel_errors")
    # The messages are told apart by their assignment ids, which ``submit`` gives out in the order of ``wanted``.
    names = {1000 + index: event_id for index, event_id in enumerate(wanted)}
    failed = Counter((names[int(letter.record().key or b"")], letter.error_class) for letter in letters)
    assert failed == Counter((event_id, ends_as) for event_id, ends_as in wanted.items() if ends_as)
    assert {letter.stage for letter in letters} == {"submit"}
    assert {letter.attempts for letter in letters if letter.error_class != "timeout"} <= {3, 4}
    results = [
        SubmissionResult.model_validate_json(message.value or b"")
        for message in stack.broker.read(stack.topic("success"))
    ]
    accepted = [event_id for event_id, ends_as in wanted.items() if not ends_as]
    assert sorted(result.event_id for result in results) == sorted(accepted)
    assert sum(result.attempts for result in results if result.event_id.startswith("503-for-a-while")) == 6
    assert sorted(s.idempotency_key for s in itel.submissions()) == sorted(accepted)
    assert sorted(row["event_id"] for row in stack.tracking()) == sorted(wanted), (
        "iTel's outage never holds up the tables"
    )
    assert stack.dead_letters() == []


@dataclass
class Flow:
    """Completed forms, one after the other, and what has become of them."""

    stack: Stack
    told: list[str] = field(default_factory=list)

    def tell(self) -> str:
        """One more form; its event's id."""
        number = len(self.told)
        event_id = f"event-{number}"
        self.told.append(event_id)
        self.stack.tell(tracking_message(event_id=event_id, assignment_id=1_000 + number), *FORM)
        return event_id

    def accepted(self) -> dict[str, int]:
        """How often iTel got each event."""
        return {one.idempotency_key: one.times for one in self.stack.itel.submissions()}

    def check_all_arrived_once(self) -> None:
        assert self.accepted() == dict.fromkeys(self.told, 1)
        assert Counter(row["event_id"] for row in self.stack.tracking()) == Counter(self.told)
        assert Counter(row["assignment_id"] for row in self.stack.forms()) == Counter(
            1_000 + number for number in range(len(self.told))
        )
        assert self.stack.itel.overlaps == 0


def replay(stack: Stack, capsys: pytest.CaptureFixture[str]) -> dict[str, int]:
    """Replay the stack's dead letters; how many had each outcome."""
    servers = f"--bootstrap_servers={stack.broker.bootstrap_servers}"
    topics = [f"--dead_letter_topic={stack.topic('errors')}", f"--itel_errors_topic={stack.topic('itel_errors')}"]
    capsys.readouterr()
    assert main(["dead-letters", "replay", "--json", f"--tables_root={stack.tables_root}", servers, *topics]) == 0
    return {name: number for name, number in json.loads(capsys.readouterr().out).items() if number and name != "for"}


@pytest.mark.parametrize("batch_size", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_what_was_diverted_while_itel_was_away_is_replayed_once(
    stack: Stack, batch_size: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """And Delta does not wait for iTel."""
    flow = Flow(stack)
    with stack.running("cabinet", itel_deadline_seconds=1, max_retries=1) as job:
        flow.tell()
        stack.settle("cabinet")
        stack.itel.stop()
        for _ in range(5):
            event_id = flow.tell()
            # Generous: about a second is meant, as before the outage.
            wait_for(lambda event_id=event_id: stack.tracked(event_id), f"the row of {event_id}", 15)
        stack.settle("cabinet")
        failed = len(flow.told) - 1
        assert len(stack.dead_letters("itel_errors")) == failed > 1
        assert flow.accepted() == {flow.told[0]: 1}
        assert job.stop() == 0, job.errors

    # Still away: each fails again, into a letter that knows of its first replay.
    with stack.running("cabinet", itel_deadline_seconds=1, max_retries=1) as job:
        assert replay(stack, capsys) == {"replayed": failed}
        stack.settle("cabinet")
        assert job.stop() == 0, job.errors
    stack.itel.start_again()
    with stack.running("cabinet", itel_batch_size=batch_size) as job:
        flow.tell()
        assert replay(stack, capsys) == {"already_replayed": failed, "replayed": failed}
        stack.settle("cabinet")
        assert replay(stack, capsys) == {"already_replayed": 2 * failed}
        assert job.stop() == 0, job.errors
    if batch_size == 1:
        flow.check_all_arrived_once()
    else:
        assert Counter(one.assignment_id for one in stack.itel.submissions()) == Counter(
            1_000 + number for number in range(len(flow.told))
        )
        assert Counter(row["event_id"] for row in stack.tracking()) == Counter(flow.told)
    assert stack.dead_letters() == []


def test_itel_s_outage_is_waited_for_where_that_is_wanted(stack: Stack) -> None:
    flow = Flow(stack)
    patience = 2
    options = {"itel_on_outage": "wait", "itel_deadline_seconds": 1, "outage_patience_seconds": patience}
    with stack.running("cabinet", **options) as job:
        flow.tell()
        stack.settle("cabinet")
        stack.itel.stop()
        over = time.monotonic() + 3 * patience
        for _ in range(10):
            flow.tell()
        wait_for(lambda: "iTel: " in job.errors, "the outage")
        before = stack.committed("cabinet")
        threading.Event().wait(max(0.0, over - time.monotonic()))
        # Longer than any patience but this one; nothing is done with, nothing given up.
        assert job.process.poll() is None, job.errors
        assert stack.committed("cabinet") == before
        assert sum(before.values()) < sum(stack.ends().values())
        assert stack.dead_letters("itel_errors") == []
        stack.itel.start_again()
        stack.settle("cabinet")
        flow.check_all_arrived_once()

        # What iTel refuses is no outage.
        stack.itel.faults.error_status, stack.itel.faults.times = 422, 1
        flow.tell()
        stack.settle("cabinet")
        assert job.stop() == 0, job.errors
    assert [(letter.stage, letter.error_class) for letter in stack.dead_letters("itel_errors")] == [
        ("submit", "refused")
    ]
    assert stack.dead_letters() == []


def test_batches_to_itel(stack: Stack) -> None:
    """The first is refused, so its forms are sent one by one."""
    flow = Flow(stack)
    for _ in range(20):
        flow.tell()
    stack.itel.faults.error_status, stack.itel.faults.times = 400, 1
    stack.run("cabinet", itel_batch_size=4, http_concurrency=1, itel_batch_path="/api/v1/tasks/batch")
    assert stack.dead_letters("itel_errors") == []
    assert Counter(one.assignment_id for one in stack.itel.submissions()) == Counter(
        1_000 + number for number in range(20)
    )
    singles = {one.idempotency_key for one in stack.itel.submissions() if not one.idempotency_key.startswith("batch-")}
    assert len(singles) >= 2
    assert singles <= set(flow.told)
    calls = stack.itel.calls
    assert calls["/api/v1/tasks/batch"] >= 3
    results = [SubmissionResult.model_validate_json(m.value or b"") for m in stack.broker.read(stack.topic("success"))]
    assert Counter(result.event_id for result in results) == Counter(flow.told)
    assert Counter(row["event_id"] for row in stack.tracking()) == Counter(flow.told)


def test_the_trigger_job_publishes_each_event_once_over_outages_of_the_broker(
    frail_broker: Broker, claimx: ClaimXSimulator, itel: ItelSimulator, tmp_path: Path
) -> None:
    """One that it waits out, amid its transactions, and one that ends it."""
    stack = Stack(frail_broker, claimx, itel, tmp_path, "trigger", {"max_batch_records": "2"})
    for role, partitions in TOPICS.items():
        frail_broker.create_topic(stack.topic(role), partitions)
    generator = Generator(4, start=datetime.now(UTC))
    receipts: list[Receipt] = []

    def feed() -> None:
        """More than the job gets done before the broker is gone."""
        before = sum(stack.committed("trigger").values())
        events = generator.claimx_events(150)
        receipts.extend(produce(frail_broker.bootstrap_servers, stack.topic("enriched"), events, claimx))
        wait_for(lambda: sum(stack.committed("trigger").values()) > before, "it works")
        frail_broker.kill()

    with stack.running("trigger") as job:
        feed()
        wait_for(lambda: "trying again" in job.errors, "it waits")
        frail_broker.start_again()
        stack.settle("trigger", 120)
        assert job.stop() == 0, job.errors
    with stack.running("trigger", outage_patience_seconds=2) as job:
        feed()
        assert job.wait(90) == 1
        assert job.errors.splitlines()[-1].startswith("itel-cabinet: Kafka at "), job.errors
    frail_broker.start_again()
    stack.run("trigger")
    assert_published_once(stack, receipts)
