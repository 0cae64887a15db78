"""What jobs make of offsets that others set: another job, an operator beside a running job, another cluster."""

from __future__ import annotations

from collections import Counter

from itel_cabinet.io.kafka import Mark
from tests.services.test_offsets import commit, metadata
from tests.support.accounting import topic_id
from tests.support.cabinet_samples import group, question, tracking_message
from tests.support.jobs import Stack, wait_for
from tests.support.printed import Printed

FORM = [group("Damage Description", question("Enter Damaged Description", "Leak"))]


def tell(stack: Stack, *numbers: int) -> None:
    for number in numbers:
        stack.tell(tracking_message(event_id=f"e{number}", assignment_id=number), *FORM, partition=number % 3)


def events(stack: Stack) -> Counter[str]:
    return Counter(row["event_id"] for row in stack.tracking())


def each_once(*numbers: int) -> dict[str, int]:
    return {f"e{number}": 1 for number in numbers}


def test_a_job_leaves_word_of_itself(stack: Stack) -> None:
    group, topic = f"{stack.prefix}.tracking", stack.topic("tracking")
    for starts in (1, 2):
        tell(stack, 1, 2, 3)
        stack.run("tracking")
        marks = [Mark.from_text(text or "") for text in metadata(stack.broker, group, topic, 3)]
        assert [(mark.topic_id, mark.job, len(mark.starts)) for mark in marks] == [
            (topic_id(stack), "tracking", starts)
        ] * 3
        assert all(mark.starts[-1] <= mark.at for mark in marks)


def test_the_group_of_another_job_is_refused(stack: Stack, printed: Printed) -> None:
    tell(stack, 1)
    stack.run("tracking")
    group = f"{stack.prefix}.tracking"
    with stack.running("api", consumer_group=group) as job:
        assert job.wait() == 1
    assert job.errors.startswith(
        f"itel-cabinet: --consumer_group: the group {group} is that of the job tracking, which has committed "
    )
    assert len(job.errors.splitlines()) == 1

    # Offsets that a person has set are for any job.
    where = [f"--bootstrap_servers={stack.broker.bootstrap_servers}", f"--topic={stack.topic('tracking')}"]
    printed.stdout("offsets", "reset", *where, f"--group={group}", "--to_start", "--watch_seconds=0.1")
    stack.run("api", consumer_group=group)
    assert stack.committed("tracking") == stack.ends()


def test_a_job_ends_when_another_one_takes_its_group(stack: Stack) -> None:
    tell(stack, 1, 2, 3)
    with stack.running("tracking") as job:
        stack.settle("tracking")
        taken = Mark(topic_id(stack), "api", 2_000_000_000).to_text()
        commit(stack.broker, f"{stack.prefix}.tracking", stack.topic("tracking"), {1: 0}, taken)
        assert job.wait() == 1
    assert job.errors.splitlines()[-1].startswith(
        f"itel-cabinet: the group {stack.prefix}.tracking is that of the job api, which has committed 0 of partition 1"
    )
    assert events(stack) == each_once(1, 2, 3)


def test_an_idle_job_writes_what_a_restored_table_lost(stack: Stack, printed: Printed) -> None:
    """Nothing was stopped: the operator forgot."""
    where = [f"--bootstrap_servers={stack.broker.bootstrap_servers}", f"--topic={stack.topic('tracking')}"]
    group, now = f"--group={stack.prefix}.tracking", "--watch_seconds=0.1"
    with stack.running("tracking") as job:
        tell(stack, 1, 2, 3)
        stack.settle("tracking")
        tell(stack, 4, 5, 6)
        stack.settle("tracking")
        restore = ["tables", "restore", f"--tables_root={stack.tables_root}", "--table=itel_cabinet_task_tracking"]
        printed.stdout(*restore, "--version=0", *where, group, now)
        assert events(stack) == {}
        printed.stdout("offsets", "reset", *where, group, "--to_start", "--only_back", now)
        wait_for(lambda: events(stack) == each_once(*range(1, 7)), "all rows", 60)
        tell(stack, 7)
        stack.settle("tracking")
        assert job.stop() == 0, job.errors
    assert events(stack) == each_once(*range(1, 8))
    assert "they are read again from there" in job.errors


def test_offsets_set_ahead_of_a_running_job_are_not_followed(stack: Stack) -> None:
    group, topic = f"{stack.prefix}.tracking", stack.topic("tracking")
    with stack.running("tracking") as job:
        tell(stack, 1, 2, 3)
        stack.settle("tracking")
        commit(stack.broker, group, topic, {0: 99})
        wait_for(lambda: "not followed, since what lies between is not settled" in job.errors, "the report", 60)
        tell(stack, *range(4, 10))
        stack.settle("tracking")
        assert job.stop() == 0, job.errors
    assert events(stack) == each_once(*range(1, 10))


def test_offsets_of_another_cluster_s_topic_are_told(stack: Stack) -> None:
    tell(stack, 1, 2, 3)
    group, topic = f"{stack.prefix}.tracking", stack.topic("tracking")
    commit(stack.broker, group, topic, {0: 1, 2: 1}, Mark("Yk3kQ2bWSVuAhJYwCWUFsg", "tracking", 7).to_text())
    job = stack.run("tracking")
    told = job.errors.splitlines()[0]
    assert told.startswith(f"itel-cabinet: warning: the group {group} has offsets (0=1, 2=1) that were committed for ")
    assert told.endswith(f"itel-cabinet offsets reset --group={group} --topic={topic} --to_offset=0=1,2=1")
    assert events(stack) == each_once(1, 2, 3)


def test_two_jobs_become_one_at_the_lower_offsets(stack: Stack, printed: Printed) -> None:
    """`api` was behind: going on from `tracking` alone would never submit what lies between."""
    tracking, api, both = (f"{stack.prefix}.{name}" for name in ("tracking", "api", "both"))
    tell(stack, 1, 2, 3)
    stack.run("tracking")
    stack.run("api")
    tell(stack, 4, 5, 6)
    stack.run("tracking")
    where = [f"--bootstrap_servers={stack.broker.bootstrap_servers}", f"--topic={stack.topic('tracking')}"]
    copy = ["offsets", "copy", *where, f"--to={both}", f"--from={tracking}", "--watch_seconds=0.1"]

    refused = printed.error(1, *copy)
    assert refused == (
        f"--from: the job api is at 1 of partition 0 in its group {api}, and tracking at 2: what lies "
        f"between would never be submitted: give --from={api} too, and the lower offset is taken; --accept_loss goes "
        "on without"
    )
    assert "3 partitions would be set" in printed.stdout(*copy, "--job=tracking", "--dry_run")
    assert "3 partitions would be set" in printed.stdout(*copy, "--accept_loss", "--dry_run")
    printed.stdout(*copy, f"--from={api}")
    assert stack.broker.committed(both, stack.topic("tracking")) == {0: 1, 1: 1, 2: 1}

    stack.run("cabinet", consumer_group=both)
    assert events(stack) == each_once(*range(1, 7))
    assert Counter(one.idempotency_key for one in stack.itel.submissions()) == each_once(*range(1, 7))


def test_one_job_becomes_two_that_go_on_where_it_stopped(stack: Stack, printed: Printed) -> None:
    tell(stack, 1, 2, 3)
    stack.run("cabinet")
    where = [f"--bootstrap_servers={stack.broker.bootstrap_servers}", f"--topic={stack.topic('tracking')}"]
    for job in ("tracking", "api"):
        printed.stdout(
            "offsets", "copy", *where, f"--from={stack.prefix}.cabinet", f"--to={stack.prefix}.{job}",
            "--watch_seconds=0.1",
        )  # fmt: skip
    tell(stack, 4, 5, 6)
    stack.run("tracking")
    stack.run("api")
    assert events(stack) == each_once(*range(1, 7))
    assert Counter(one.idempotency_key for one in stack.itel.submissions()) == each_once(*range(1, 7))
