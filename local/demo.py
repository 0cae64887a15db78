"""The whole system on this machine, once: ``python -m itel_cabinet.local.demo`` (or ``make demo``).

A real Kafka broker, the `trigger` and the `cabinet` job as processes of their own, and simulators of ClaimX and iTel.
With ``--flink`` (``make demo-flink``) the jobs are launched from their templates on a Flink cluster.

Seeded records go in, bad ones among them; then every record is looked for in the places where one can end, and the exit
status is 0 only if what is found adds up to what went in. Everything is left in a folder for people to read.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import secrets
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from deltalake import DeltaTable
from rich.console import Console
from rich.table import Table

from itel_cabinet.io.kafka import Cluster
from itel_cabinet.local.demo_jobs import Clock, DemoFailedError, Jobs, OnDirectRunner, OnFlink
from itel_cabinet.local.ledger import End, Entry, Ledger
from itel_cabinet.local.samples import Expect, Generator, Produced, produce
from itel_cabinet.local.services import HOST, ArtifactError, Broker, BrokerError, FlinkCluster, FlinkError
from itel_cabinet.local.simulators import ClaimXSimulator, ItelSimulator, OAuth2Simulator
from itel_cabinet.pipeline.contracts import load_contract
from itel_cabinet.pipeline.tables import ATTACHMENTS, FORMS, TRACKING
from itel_cabinet.pipeline.topics import CLAIMX_EVENTS, ITEL_ERRORS, ITEL_SUCCESSES, TASK_ERRORS, TASK_EVENTS, TOPICS
from itel_cabinet.transforms.contracts import SHIPPED, Contract, ContractError, FromVar
from itel_cabinet.transforms.dead_letters import DeadLetter, decode_dead_letter
from itel_cabinet.transforms.events import TaskEvent
from itel_cabinet.transforms.forms import parse_details

__all__ = ["Demo", "main"]


_MARKER = ".itel-cabinet-demo"
_TASK_MANAGERS = 2
_STEP = timedelta(seconds=2)
# Where ClaimX's links redirect to. Nothing is fetched from there: iTel gets the address.
_PHOTO_STORE = "https://claimx-photos.s3.amazonaws.com"

_ENDS: dict[Expect, tuple[End, ...]] = {
    "published": (End.PUBLISHED,),
    "submitted": (End.ROW, End.ACCEPTED),
    "tracked": (End.ROW,),
    "dead_letter": (End.DEAD_LETTER,),
    "skipped": (),
}


@dataclass(frozen=True)
class Demo:
    """What is running, and the folder that everything is left in."""

    folder: Path
    broker: Broker
    claimx: ClaimXSimulator
    itel: ItelSimulator
    jobs: Jobs
    contract: Contract
    options: tuple[str, ...]
    say: Callable[[str], None]

    def run(self, records: int, seed: int) -> Iterator[tuple[str, Ledger]]:
        """The two acts, each with its books: ``records`` ClaimX events through the trigger job, then what that has
        published, and as many task messages beside it, through the cabinet job. Raises DemoFailedError.
        """
        for topic in TOPICS:
            self.broker.create_topic(topic.name, topic.partitions, topic.config)
        # Events are of the recent past, so that the last of them are of about now.
        start = datetime.now(UTC) - 2 * records * _STEP
        events = Generator(seed, start=start, step=_STEP, contract=self.contract)
        claimx_events = self._produce(CLAIMX_EVENTS, events.claimx_events(records))
        yield f"{CLAIMX_EVENTS} -> the trigger job", self._trigger(claimx_events)
        task_messages = self._produce(TASK_EVENTS, events.tracking_messages(records))
        yield f"{TASK_EVENTS} -> the cabinet job", self._cabinet(task_messages)

    def _trigger(self, produced: Mapping[str, Produced]) -> Ledger:
        skipped = self.jobs.run(
            "trigger", *self.options, first=lambda: any(self.broker.end_offsets(TASK_EVENTS).values())
        )
        books = Ledger({at: Entry(one.kind, _ENDS[one.expect]) for at, one in produced.items()}, skipped)
        for headers, _, _ in self._tasks():
            if source := headers.get("x-source"):
                books.found(source.decode(), End.PUBLISHED)
        self._find_dead_letters("trigger", books)
        return books

    def _cabinet(self, produced: Mapping[str, Produced]) -> Ledger:
        entries: dict[str, Entry] = {}
        submitted: dict[str, tuple[str | None, int | None]] = {}  # event and assignment of what iTel is to have
        for headers, coordinates, value in self._tasks():
            if one := produced.get(coordinates):
                ends = _ENDS[one.expect]
                if one.kind == "completed_without_form":
                    ends = (End.ROW, End.DEAD_LETTER)
                elif one.expect == "tracked" and self._is_held(json.loads(value)):
                    ends = (End.ROW, End.HELD)
                entries[coordinates] = Entry(one.kind, ends)
                if End.ACCEPTED in ends:
                    submitted[coordinates] = one.event_id, one.assignment_id
            elif "x-source" in headers:
                task = json.loads(value)
                status = task["task_status"]
                ends = _ENDS["submitted" if status == "COMPLETED" else "tracked"]
                if self._is_held(task):
                    ends = (End.ROW, End.HELD)
                entries[coordinates] = Entry(f"from trigger: {status.lower()}", ends)
                if End.ACCEPTED in ends:
                    submitted[coordinates] = task["event_id"], task["assignment_id"]
        tables = self.folder / "tables"
        # Version 0 is the empty table that the launcher makes.
        # Absolute: a cluster's workers live in other folders.
        skipped = self.jobs.run(
            "cabinet",
            f"--tables_root={tables.absolute()}",
            *self.options,
            first=lambda: _version(tables / TRACKING) > 0,
        )
        # Skipped on the way to iTel alone: these have their rows.
        reasons = ("status_not_submitted", "unchanged", "already_submitted", "held_by_gate")
        only_tracked, unchanged, known, held = (skipped.pop(reason, 0) for reason in reasons)
        books = Ledger(entries, skipped)
        for coordinates, entry in entries.items():
            if End.HELD in entry.expected:
                books.found(coordinates, End.HELD)
        books.compare(
            "skipped as held by the gate, forms that it holds",
            held,
            sum(End.HELD in entry.expected for entry in entries.values()),
        )
        for row in self.rows(TRACKING):
            books.found(f"{row['kafka_topic_id']}/{row['kafka_partition']}/{row['kafka_offset']}", End.ROW)
        submissions = self.itel.submissions()
        received = {self._event_id(submission.idempotency_key) for submission in submissions}
        assignments = {submission.assignment_id for submission in submissions}
        for coordinates, (event_id, assignment_id) in submitted.items():
            if event_id in received:
                books.found(coordinates, End.ACCEPTED)
            elif assignment_id in assignments:
                books.found(coordinates, End.UNCHANGED)
                entries[coordinates] = Entry(entries[coordinates].kind, (End.ROW, End.UNCHANGED))
        self._find_dead_letters("cabinet", books)
        books.compare(
            "skipped as unchanged or already submitted, forms that iTel has by another record",
            unchanged + known,
            len(submitted) - len(received & {event_id for event_id, _ in submitted.values()}),
        )
        books.compare("skipped for iTel alone, rows alone", only_tracked, books.totals().get(End.ROW, 0))
        books.compare(
            "calls iTel accepted, results reported", self.calls_accepted, len(self.broker.read(ITEL_SUCCESSES))
        )
        forms = {row["assignment_id"] for row in self.rows(FORMS)}
        books.compare("assignments iTel knows, of which forms are kept", len(assignments), len(assignments & forms))
        return books

    def _is_held(self, task: Mapping[str, Any]) -> bool:
        """Whether the contract's gate holds the form of a completed task back."""
        found = self.claimx.task(task["assignment_id"])
        if task["task_status"].upper() != "COMPLETED" or not found or not found["response"]:
            return False
        details = parse_details(json.dumps(found).encode(), task["assignment_id"])
        return not self.contract.passes(details, self.contract.read_form(details), TaskEvent.model_validate(task))

    def _event_id(self, key: str) -> str:
        """The event of a submission by its key, which in a body stands behind the assignment."""
        return key if self.contract.file.request.key.header else key.partition("-")[2]

    @property
    def calls_accepted(self) -> int:
        """How many calls iTel has accepted, repeats of one submission included."""
        return sum(submission.times for submission in self.itel.submissions())

    def rows(self, table: str) -> list[dict[str, Any]]:
        """A table's rows."""
        rows: list[dict[str, Any]] = DeltaTable(str(self.folder / "tables" / table)).to_pyarrow_table().to_pylist()
        return rows

    def dead_letters(self) -> Iterator[DeadLetter]:
        """All dead letters of both error topics."""
        for topic in (TASK_ERRORS, ITEL_ERRORS):
            for message in self.broker.read(topic):
                yield decode_dead_letter(message.value or b"")

    def _find_dead_letters(self, job: str, books: Ledger) -> None:
        for letter in self.dead_letters():
            if letter.job == job:
                books.found(letter.coordinates, End.DEAD_LETTER, letter.error_class)

    def _tasks(self) -> Iterator[tuple[dict[str, bytes | None], str, bytes]]:
        """Headers, coordinates and value of each record on the tracking topic."""
        topic_id = self._topic_id(TASK_EVENTS)
        for message in self.broker.read(TASK_EVENTS):
            yield dict(message.headers), f"{topic_id}/{message.partition}/{message.offset}", message.value or b""

    def _produce(self, topic: str, records: Iterable[Produced]) -> dict[str, Produced]:
        """Write records; returns them by coordinates."""
        receipts = produce(self.broker.bootstrap_servers, topic, records, self.claimx)
        self.say(f"{len(receipts)} records to {topic}")
        topic_id = self._topic_id(topic)
        return {f"{topic_id}/{one.partition}/{one.offset}": one.produced for one in receipts}

    def _topic_id(self, topic: str) -> str:
        return Cluster({"bootstrap.servers": self.broker.bootstrap_servers}).topic(topic).topic_id


@contextlib.contextmanager
def _emptied(folder: Path) -> Iterator[None]:
    """Take ``folder`` for this run alone, without what an earlier one has left. Raises DemoFailedError for a folder
    that no demo has made, or that another one is using now.
    """
    marker = folder / _MARKER
    if folder.exists() and not marker.is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise DemoFailedError(f"{folder} is not a demo's: give another folder with --folder, or move it away")
    folder.mkdir(parents=True, exist_ok=True)
    with marker.open("a") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoFailedError(
                f"another demo is running in {folder}: wait for it, or give another --folder"
            ) from None
        for old in folder.iterdir():
            if old.is_dir() and not old.is_symlink():
                shutil.rmtree(old)
            elif old != marker:
                old.unlink()
        (folder / "logs").mkdir()
        yield


@contextlib.contextmanager
def _running(folder: Path, contract: str, flink: Clock | None, say: Callable[[str], None]) -> Iterator[Demo]:
    """All that the demo needs, on a cluster if ``flink`` is there to take down how long its parts take."""
    with contextlib.ExitStack() as stack:
        broker = stack.enter_context(Broker.start(folder / "kafka"))
        claimx = stack.enter_context(ClaimXSimulator(token=secrets.token_hex(8), photo_store=_PHOTO_STORE))
        setting = _Setting.of(contract)
        itel = stack.enter_context(
            ItelSimulator(
                token=setting.token, contract=setting.contract, headers=setting.headers, journal=folder / "itel"
            )
        )
        options = [*setting.options]
        if setting.client is not None:
            authority = stack.enter_context(OAuth2Simulator(dict([setting.client])))
            itel.authority = authority.accepts
            options.append(f"--itel_auth=oauth2:{authority.token_url}:env:ITEL_CLIENT_ID:env:ITEL_CLIENT_CREDENTIAL")
        say(f"Kafka at {broker.bootstrap_servers}, ClaimX (simulated) at {claimx.url}, iTel (simulated) at {itel.url}")
        environment = {
            "KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap_servers,
            "CLAIMX_API_BASE_URL": claimx.url,
            "CLAIMX_API_TOKEN": claimx.token or "",
            "ITEL_CABINET_API_BASE_URL": itel.url,
            **setting.environment,
        }
        jobs: Jobs = OnDirectRunner(folder, environment, say)
        if flink is not None:
            cluster = stack.enter_context(_cluster(folder / "flink", environment, flink))
            say(f"Flink at http://{HOST}:{cluster.rest_port}, Beam's job server at {cluster.job_endpoint}")
            jobs = OnFlink(folder, environment, say, cluster, broker, flink)
        yield Demo(folder, broker, claimx, itel, jobs, setting.contract, tuple(options), say)


@dataclass(frozen=True)
class _Setting:
    """What a contract needs to be played: its vars made up, secrets among them, and what iTel is to demand."""

    contract: Contract
    options: tuple[str, ...]
    environment: Mapping[str, str]
    headers: Mapping[str, str]
    token: str | None
    client: tuple[str, str] | None

    @classmethod
    def of(cls, name: str) -> _Setting:
        """Raises DemoFailedError for a contract that cannot be used."""
        try:
            contract = load_contract(name, complete=False)
            made_up = {one: f"demo-{one}" for one, var in contract.file.vars.items() if not var.secret}
            secret = {one: f"DEMO_{one.upper()}" for one, var in contract.file.vars.items() if var.secret}
            given = {**made_up, **{one: f"env:{variable}" for one, variable in secret.items()}}
            contract = load_contract(name, given)
        except ContractError as error:
            raise DemoFailedError(str(error)) from None
        values = {one: secrets.token_hex(8) for one in secret}
        headers = {
            header: values[value.var]
            for header, value in contract.file.request.headers.items()
            if isinstance(value, FromVar) and value.var in values
        }
        environment = {variable: values[one] for one, variable in secret.items()}
        options = [f"--contract={name}", f"--contract_vars={json.dumps(given)}"] if name != SHIPPED[0] else []
        if contract.needs_links:
            options.append(f"--media_allowed_hosts=*.amazonaws.com,{HOST}")
        if not (contract.file.request.auth or "").startswith("oauth2"):
            token = secrets.token_hex(8)
            environment["ITEL_CABINET_API_TOKEN"] = token
            if name != SHIPPED[0]:
                options.append("--itel_auth=bearer:env:ITEL_CABINET_API_TOKEN")
            return cls(contract, tuple(options), environment, headers, token, None)
        client = ("demo", secrets.token_hex(8))
        environment |= {"ITEL_CLIENT_ID": client[0], "ITEL_CLIENT_CREDENTIAL": client[1]}
        return cls(contract, tuple(options), environment, headers, None, client)


@contextlib.contextmanager
def _cluster(folder: Path, environment: Mapping[str, str], clock: Clock) -> Iterator[FlinkCluster]:
    """A cluster whose workers have ``environment``: the secrets are resolved there."""
    began = time.monotonic()
    with FlinkCluster.start(folder, task_managers=_TASK_MANAGERS, environment=environment) as cluster:
        clock.took("cluster up", began)
        yield cluster
        began = time.monotonic()
    clock.took("cluster down", began)


def _version(table: Path) -> int:
    """A table's newest version, -1 while there is none."""
    return DeltaTable(str(table)).version() if DeltaTable.is_deltatable(str(table)) else -1


def _report(title: str, books: Ledger) -> Iterator[Table | str]:
    table = Table("what went in", "records", "where they ended", title=title, title_justify="left")
    table.columns[1].justify = "right"
    for kind, ends, count in books.rows():
        table.add_row(kind.replace("_", " "), str(count), ends)
    yield table
    parts = " + ".join(f"{count} {end}" for end, count in books.totals().items())
    yield f"produced {len(books.entries)} = {parts}"


def _where_to_look(demo: Demo) -> Iterator[str]:
    tables = demo.folder / "tables"
    for name in (TRACKING, FORMS, ATTACHMENTS):
        yield f"{tables / name}: {len(demo.rows(name))} rows"
    journal = sorted((demo.folder / "itel").glob("*.json"))
    if journal:
        again = demo.calls_accepted - len(journal)
        yield f"{demo.folder / 'itel'}: {len(journal)} submissions ({again} came again and were recognised), such as"
        yield f"  {journal[0]}"
    letters = [letter.model_dump_json() + "\n" for letter in demo.dead_letters()]
    kept = demo.folder / "dead-letters.jsonl"
    kept.write_text("".join(letters), encoding="utf-8")
    yield f"{kept}: {len(letters)} dead letters"
    yield f"{demo.folder / 'logs'}: what the jobs logged"


def _times(clock: Clock) -> Table:
    table = Table("part", "seconds", title="how long each part took", title_justify="left")
    table.columns[1].justify = "right"
    for part, seconds in clock.parts:
        table.add_row(part, f"{seconds:.1f}")
    return table


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo: 0 if all adds up, 1 if not or if something is missing, 2 wrong use, 130 if stopped."""
    parser = argparse.ArgumentParser(prog="python -m itel_cabinet.local.demo", description=str(__doc__).split("\n")[0])
    parser.add_argument("--records", type=int, default=400, help="records for each of the two jobs (default: 400)")
    parser.add_argument("--seed", type=int, default=1, help="another seed makes other records (default: 1)")
    parser.add_argument("--folder", type=Path, default=Path("demo-output"), help="replaced; default: demo-output")
    parser.add_argument(
        "--contract", default=SHIPPED[0], help="a shipped contract, or a file (default: cabinet_repair)"
    )
    parser.add_argument("--flink", action="store_true", help="run the jobs on a Flink cluster of this machine")
    options = parser.parse_args(arguments)
    if not 1 <= options.records <= 20_000:
        parser.error("--records: give a number from 1 to 20000")
    console = Console(highlight=False, markup=False, emoji=False)
    started = time.monotonic()
    clock = Clock() if options.flink else None

    def say(line: str) -> None:
        console.print(f"[{time.monotonic() - started:4.1f} s] {line}", soft_wrap=True)

    # A shell starts what it puts in the background with SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        with _emptied(options.folder), _running(options.folder, options.contract, clock, say) as demo:
            problems: list[str] = []
            for title, books in demo.run(options.records, options.seed):
                for part in _report(title, books):
                    console.print(part, soft_wrap=isinstance(part, str))
                problems += books.problems()
            console.print()
            for line in _where_to_look(demo):
                console.print(line, soft_wrap=True)
    except KeyboardInterrupt:
        print("the demo was stopped", file=sys.stderr)
        return 130
    except (ArtifactError, BrokerError, DemoFailedError, FlinkError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    for problem in problems:
        print(f"demo: {problem}", file=sys.stderr)
    if clock is not None:
        console.print(_times(clock))
    say("all of it adds up" if not problems else f"{len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
