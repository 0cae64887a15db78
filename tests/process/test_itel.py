"""Submissions to iTel: every end is a value, repeats are harmless, and an assignment's calls keep their order."""

from __future__ import annotations

import itertools
import json
import os
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from itel_cabinet.io import itel as module
from itel_cabinet.io.http import Connection, ConnectionSettings
from itel_cabinet.io.itel import (
    FolderItel,
    HttpItel,
    ItelSettings,
    WaitingItel,
    folder_of,
    get_itel,
)
from itel_cabinet.io.worker import OutageError
from itel_cabinet.transforms.records import Failure, Skip
from itel_cabinet.transforms.submission_keys import batch_key, idempotency_key
from itel_cabinet.transforms.submissions import Submission, Submitted
from itel_cabinet.transforms.submitting import Accepted, Itel, NewestContents, Rejected, submit
from tests.support.cabinet_samples import record
from tests.support.faulty_server import (
    Act,
    FaultyServer,
    Seen,
    answer,
    cut_body,
    drip_body,
    garbage,
    hang,
    reset,
    unused_port,
)

PAYLOAD = b'{"assignmentId":5430007}'
PRIVATE = "pat.roe@private.example"


@pytest.fixture
def client() -> Iterator[Callable[..., tuple[HttpItel, FaultyServer]]]:
    """Makes a client of a server with the given script; pauses take no time."""
    servers: list[FaultyServer] = []

    def make(*script: Act, path: str = "/api/v1/tasks", **settings: Any) -> tuple[HttpItel, FaultyServer]:
        servers.append(FaultyServer(*script).__enter__())
        link = ConnectionSettings("itel", servers[-1].url, **{"max_retries": 2, **settings})
        waited: list[float] = []
        connection = Connection(link, clock=lambda: sum(waited), sleep=waited.append, random=lambda: 1.0)
        return HttpItel(ItelSettings(link, path), connection), servers[-1]

    yield make
    for server in servers:
        server.__exit__(None, None, None)


# -- accepted


@pytest.mark.parametrize("status", [200, 201, 202, 204])
def test_a_2xx_is_accepted(status: int, client: Any) -> None:
    body = b"" if status == 204 else b'{"itel_task_id":\n 7}'
    api, server = client(answer(status, body))
    outcome = api.submit(submission(5430007, "9f2c", PAYLOAD))
    assert outcome == Accepted(status, 1, "" if status == 204 else '{"itel_task_id": 7}')
    seen = server.requests[0]
    assert (seen.method, seen.path, seen.body) == ("POST", "/api/v1/tasks", PAYLOAD)
    assert (seen.headers["idempotency-key"], seen.headers["content-type"]) == ("9f2c", "application/json")


def test_every_try_carries_the_same_key(client: Any) -> None:
    api, server = client(answer(503), reset, answer(201))
    assert api.submit(submission(1, "event-1", PAYLOAD)) == Accepted(201, 3, "{}")
    assert [seen.headers["idempotency-key"] for seen in server.requests] == ["event-1"] * 3
    assert [seen.body for seen in server.requests] == [PAYLOAD] * 3


@pytest.mark.parametrize("status", [400, 409, 422])
def test_a_known_submission_is_accepted_as_a_duplicate(status: int, client: Any) -> None:
    body = json.dumps({"integration_test_id": ["'5430007-9f2c' Already Exists"]}).encode()
    api, server = client(answer(status, body))
    assert api.submit(submission(5430007, "9f2c", PAYLOAD)) == Accepted(status, 1, body.decode(), duplicate=True)
    assert len(server.requests) == 1


def test_a_5xx_that_says_already_exists_is_not_accepted(client: Any) -> None:
    api, _ = client(answer(500, b"lock already exists"))
    assert api.submit(submission(1, "e", PAYLOAD)).error_class == "outage"


@pytest.mark.parametrize("fault", [cut_body(201), drip_body], ids=["reset", "drip"])
def test_a_2xx_whose_body_is_lost_is_accepted(fault: Act, client: Any) -> None:
    api, server = client(fault, read_timeout_seconds=0.3)
    outcome = api.submit(submission(1, "e", PAYLOAD))
    assert isinstance(outcome, Accepted)
    assert (outcome.attempts, len(server.requests)) == (1, 1)


def test_only_a_2xx_reaches_the_crash_point(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    reached: list[str] = []
    monkeypatch.setattr(module.crash_points, "maybe_crash", reached.append)
    api, _ = client(answer(400), answer(400, b"'1-e' already exists"), answer(200))
    for number in range(3):
        api.submit(submission(number, "e", PAYLOAD))
    assert reached == ["after-2xx"]


# -- rejected


@pytest.mark.parametrize(
    ("status", "error_class", "attempts"),
    [
        (400, "refused", 1),
        (404, "refused", 1),
        (409, "refused", 1),
        (413, "refused", 1),
        (422, "refused", 1),
        (501, "refused", 1),
        (401, "unauthorized", 1),
        (403, "unauthorized", 1),
        (302, "redirected", 1),
        (408, "outage", 3),
        (425, "outage", 3),
        (500, "outage", 3),
        (503, "outage", 3),
    ],
)
def test_a_refusal_is_a_value(status: int, error_class: str, attempts: int, client: Any) -> None:
    api, server = client(answer(status, f"no  {PRIVATE}".encode(), location="/elsewhere"))
    outcome = api.submit(submission(1, "e", PAYLOAD))
    tried = "1 try in 0.0 s" if attempts == 1 else "3 tries in 1.5 s"
    assert outcome == Rejected(
        error_class, status, attempts, f"iTel answers {status} ({tried})", excerpt=f"no {PRIVATE}"
    )
    assert len(server.requests) == attempts


@pytest.mark.parametrize(
    ("fault", "error_class"),
    [(reset, "reset"), (garbage, "reset"), (hang, "timeout")],
    ids=["reset", "garbage", "hang"],
)
def test_a_broken_connection_is_a_value(fault: Act, error_class: str, client: Any) -> None:
    api, server = client(fault, read_timeout_seconds=0.2)
    outcome = api.submit(submission(1, "e", PAYLOAD))
    assert (outcome.error_class, outcome.status, outcome.attempts, outcome.excerpt) == (error_class, None, 3, "")
    assert outcome.error.startswith(f"iTel: {server.url}: ")
    assert len(server.requests) == 3


def test_no_connection_is_a_value() -> None:
    link = ConnectionSettings("itel", f"http://127.0.0.1:{unused_port()}", max_retries=0)
    outcome = HttpItel(ItelSettings(link), Connection(link)).submit(submission(1, "e", PAYLOAD))
    assert isinstance(outcome, Rejected)
    assert (outcome.error_class, outcome.status) == ("unreachable", None)
    assert "Connection refused" in outcome.error


def test_the_last_status_is_kept_when_the_last_try_breaks(client: Any) -> None:
    api, _ = client(answer(503, b"maintenance"), reset)
    outcome = api.submit(submission(1, "e", PAYLOAD))
    assert (outcome.error_class, outcome.status, outcome.excerpt) == ("reset", 503, "maintenance")


# -- idempotency keys


@given(st.text(st.characters(), max_size=60))
@example("a\r\nX-Evil: 1")
@example(" 100% ")
@example("\ud800")
def test_any_event_id_makes_a_header_and_a_file_name(event_id: str) -> None:
    key = idempotency_key(event_id)
    assert all(0x21 <= ord(character) <= 0x7E for character in key)
    name = module._file_name(event_id)
    assert "/" not in name
    assert len(name) <= 180


@given(st.text(), st.text())
@example("a b", "a%20b")
def test_different_events_have_different_keys_and_names(one: str, other: str) -> None:
    assert (idempotency_key(one) == idempotency_key(other)) == (one == other)
    assert (module._file_name(one) == module._file_name(other)) == (one == other)


def test_an_ordinary_event_id_is_its_own_key() -> None:
    assert idempotency_key("9f2c-AB_c.d:e/f") == "9f2c-AB_c.d:e/f"


def test_a_hostile_event_id_cannot_smuggle_a_header_in(client: Any) -> None:
    api, server = client(answer(201))
    api.submit(submission(1, "a\r\nX-Evil: 1\r\n\r\nGET /", PAYLOAD))
    assert server.requests[0].headers["idempotency-key"] == "a%0D%0AX-Evil:%201%0D%0A%0D%0AGET%20/"
    assert "x-evil" not in server.requests[0].headers
    assert len(server.requests) == 1


# -- a folder instead


def test_a_payload_becomes_a_file_and_a_repeat_replaces_it(tmp_path: Path) -> None:
    folder = FolderItel(tmp_path / "deep" / "itel")
    assert folder.submit(submission(5430007, "9f2c", PAYLOAD)) == Accepted(201, 1, "written to 5430007-9f2c.json")
    again = folder.submit(submission(5430007, "9f2c", b'{"assignmentId":5430007,"status":"COMPLETED"}'))
    assert again == Accepted(200, 1, "written to 5430007-9f2c.json", duplicate=True)
    folder.submit(submission(5430007, "a/../b c", PAYLOAD))
    assert {path.name: path.read_bytes() for path in (tmp_path / "deep" / "itel").iterdir()} == {
        "5430007-9f2c.json": b'{"assignmentId":5430007,"status":"COMPLETED"}',
        "5430007-a%2F..%2Fb%20c.json": PAYLOAD,
    }


def test_a_long_event_id_becomes_a_hash(tmp_path: Path) -> None:
    FolderItel(tmp_path).submit(submission(1, "x" * 5_000, PAYLOAD))
    (path,) = tmp_path.iterdir()
    assert len(path.name) == len("1-.json") + 64


def test_a_folder_that_cannot_be_written_is_the_worlds(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutageError) as caught:
        FolderItel(tmp_path / "file").submit(submission(1, "e", PAYLOAD))
    assert str(caught.value) == f"folder {tmp_path / 'file'} for submissions cannot be written: File exists"
    (tmp_path / "file").unlink()
    assert isinstance(FolderItel(tmp_path / "file").submit(submission(1, "e", PAYLOAD)), Accepted)


def test_a_folder_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really = os.fsync
    times = iter([OSError(28, "No space left on device")] * 2)

    def sometimes_full(number: int) -> None:
        for error in times:
            raise error
        really(number)

    monkeypatch.setattr(os, "fsync", sometimes_full)
    assert FolderItel(tmp_path, outage_seconds=60).submit(submission(1, "e", PAYLOAD)) == Accepted(
        201, 1, "written to 1-e.json"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["1-e.json"]


def test_a_failed_write_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutageError, match="cannot be written: No space left on device"):
        FolderItel(tmp_path).submit(submission(1, "e", PAYLOAD))
    assert list(tmp_path.iterdir()) == []


def test_writers_of_one_submission_at_once_leave_one_whole_file(tmp_path: Path) -> None:
    folder = FolderItel(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: folder.submit(submission(1, "e", PAYLOAD * 100)), range(64)))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"1-e.json": PAYLOAD * 100}


@pytest.mark.parametrize(
    ("url", "folder"),
    [
        ("file:out/itel", Path("out/itel")),
        ("file:./out 100%", Path("out 100%")),
        ("file:/srv/itel", Path("/srv/itel")),
        ("file:///srv/itel", Path("/srv/itel")),
        ("https://itel.example", None),
    ],
)
def test_a_folders_url(url: str, folder: Path | None) -> None:
    assert folder_of(url) == folder


@pytest.mark.parametrize("url", ["file:", "file://", "file://host/dir", "file:a\0b"])
def test_a_folders_url_that_names_none(url: str) -> None:
    with pytest.raises(ValueError, match=r"^(file:|write file:DIR)"):
        folder_of(url)


# -- order


def submission(assignment_id: int, event_id: str, payload: bytes = PAYLOAD, *personal: str) -> Submission:
    return Submission(record(b"", offset=assignment_id), event_id, assignment_id, payload, personal)


def hand_in(
    api: Itel, submissions: Sequence[Submission], threads: int = 8, newest: NewestContents | None = None
) -> list[Submitted | Failure | Skip]:
    """Submit on a pool of the test's own; the clock counts its readings. Each outcome must be counted once."""
    contents = newest or NewestContents()
    counts: Counter[str] = Counter()
    lock = threading.Lock()

    def count(outcome: str, counted: Sequence[Submission]) -> None:
        with lock:
            counts[outcome] += len(counted)

    with ThreadPoolExecutor(threads) as pool:
        clock = itertools.count(100.0).__next__
        outcomes = submit(
            submissions, client=lambda: api, newest=lambda: contents, pool=lambda: pool, clock=clock, count=count
        )
    # A second time in the same batch no call is made, and none is left out that could have been.
    assert counts == Counter(name for name in map(name_of, outcomes) if name != "already_submitted")
    return outcomes


def name_of(outcome: Submitted | Failure | Skip) -> str:
    if isinstance(outcome, Failure):
        return outcome.error_class
    if isinstance(outcome, Skip):
        return outcome.reason
    return "duplicate" if outcome.duplicate else "accepted"


class Recorder:
    """A client that notes each call and lets others run before it ends."""

    batch_size = 1

    def __init__(self) -> None:
        self.running: set[int] = set()
        self.order: dict[int, list[str]] = defaultdict(list)
        self.most_at_once = 0
        self._lock = threading.Lock()

    def calls_at_once(self) -> int:
        return 8

    def submit(self, one: Submission) -> Accepted | Rejected:
        with self._lock:
            assert one.assignment_id not in self.running, "two calls of one assignment overlap"
            self.running.add(one.assignment_id)
            self.most_at_once = max(self.most_at_once, len(self.running))
        threading.Event().wait(0.001)
        with self._lock:
            self.running.remove(one.assignment_id)
            self.order[one.assignment_id].append(one.event_id)
        return Accepted(200, 1, one.payload.decode())

    def submit_batch(self, batch: Sequence[Submission]) -> Accepted | Rejected:
        raise AssertionError(f"a batch of {len(batch)}, where none is wanted")


def test_an_assignment_keeps_its_order_and_results_theirs() -> None:
    recorder = Recorder()
    jobs = [submission(n % 7, f"e{n}", str(n).encode()) for n in range(200)]
    outcomes = hand_in(recorder, jobs, threads=16)
    assert outcomes == [Submitted(jobs[n], 200, 1, str(n), duplicate=False) for n in range(200)]
    assert recorder.order == {a: [f"e{n}" for n in range(200) if n % 7 == a] for a in range(7)}
    assert 1 < recorder.most_at_once <= 7


def test_calls_of_one_assignment_do_not_overlap_on_the_wire(client: Any) -> None:
    api, server = client(answer(503, delay=0.02), answer(201, delay=0.02))
    jobs = [submission(n % 3, f"{n % 3}-{n // 3}", b"%d" % n) for n in range(12)]
    outcomes = hand_in(api, jobs)
    assert [outcome.submission for outcome in outcomes if isinstance(outcome, Submitted)] == jobs
    lanes: dict[str, list[Seen]] = defaultdict(list)
    for seen in server.requests:
        lanes[seen.headers["idempotency-key"].split("-")[0]].append(seen)
    assert sorted(lanes) == ["0", "1", "2"]
    for lane in lanes.values():
        turns = [int(seen.headers["idempotency-key"].split("-")[1]) for seen in lane]
        assert turns == sorted(turns)
        # Not with `ended`: the client may have read an answer before the server notes that it is out.
        assert all(later.began >= earlier.began + 0.02 for earlier, later in itertools.pairwise(lane))


def test_a_rejected_one_does_not_sink_its_neighbours(client: Any) -> None:
    api, _ = client(answer(422, b"bad"), answer(201))
    first, second = submission(1, "a"), submission(1, "b")
    assert hand_in(api, [first, second]) == [
        Failure(first.record, "submit", "refused", "iTel answers 422 (1 try in 0.0 s): bad", 100.0, 101.0, 1, "a", 1),
        Submitted(second, 201, 1, "{}", duplicate=False),
    ]


def test_a_failure_tells_the_tries_and_their_time(client: Any) -> None:
    api, _ = client(answer(503, b"maintenance"), reset)
    job = submission(1, "a")
    (failed,) = hand_in(api, [job])
    assert isinstance(failed, Failure)
    assert (failed.record, failed.stage, failed.error_class, failed.attempts) == (job.record, "submit", "reset", 3)
    assert (failed.first_at, failed.last_at) == (100.0, 101.0)
    assert failed.error.endswith(": maintenance")


def test_a_known_submission_is_told_as_a_duplicate(client: Any) -> None:
    api, _ = client(answer(409, b"1-a already exists"))
    job = submission(1, "a")
    assert hand_in(api, [job]) == [Submitted(job, 409, 1, "1-a already exists", duplicate=True)]


@pytest.mark.parametrize("status", [201, 409])
def test_what_an_answer_repeats_of_a_person_is_not_told(status: int, client: Any) -> None:
    api, _ = client(answer(status, f'{{"1-a already exists": "{PRIVATE.upper()}", "by": "Roe"}}'.encode()))
    (outcome,) = hand_in(api, [submission(1, "a", PAYLOAD, PRIVATE, "Roe")])
    assert isinstance(outcome, Submitted)
    assert outcome.excerpt == '{"1-a already exists": "[redacted]", "by": "[redacted]"}'


def test_a_refusal_repeats_nothing_of_a_person(client: Any) -> None:
    api, _ = client(answer(422, f"bad email {PRIVATE}, sent by roe".encode()))
    (failed,) = hand_in(api, [submission(1, "a", PAYLOAD, PRIVATE, "Roe")])
    assert isinstance(failed, Failure)
    assert failed.error == "iTel answers 422 (1 try in 0.0 s): bad email [redacted], sent by [redacted]"


def test_a_fault_of_the_world_is_raised_only_when_all_calls_have_ended() -> None:
    all_begun = threading.Barrier(3)
    ended: list[str] = []

    class Half(Recorder):
        def submit(self, one: Submission) -> Accepted | Rejected:
            all_begun.wait(30)
            if one.assignment_id == 1:
                raise OutageError("the folder is gone")
            ended.append(one.event_id)
            return Accepted(200, 1, "")

    jobs = [submission(n, str(n)) for n in (1, 2, 3)]
    with ThreadPoolExecutor(4) as pool:
        with pytest.raises(OutageError, match="the folder is gone"):
            submit(
                jobs,
                client=Half,
                newest=NewestContents,
                pool=lambda: pool,
                clock=lambda: 0.0,
                count=lambda *_: None,
            )
        assert sorted(ended) == ["2", "3"]


class Answers(Recorder):
    """Gives the answers it was made with, in turn."""

    def __init__(self, *answers: Accepted | Rejected, batch_size: int = 1) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.answers = list(answers)

    def submit(self, one: Submission) -> Accepted | Rejected:
        self.order[one.assignment_id].append(one.event_id)
        return self.answers.pop(0)

    def submit_batch(self, batch: Sequence[Submission]) -> Accepted | Rejected:
        for one in batch:
            self.order[one.assignment_id].append(one.event_id)
        return self.answers.pop(0)


HAS = Accepted(201, 1, "")
HAD = Accepted(409, 1, "", duplicate=True)
HAS_NOT = Rejected("refused", 422, 1, "iTel answers 422")


@pytest.mark.parametrize(
    ("first", "then", "outcomes"),
    [
        (HAS, ("e2", b"A"), ["accepted", "unchanged"]),
        (HAS, ("e2", b"B"), ["accepted", "accepted"]),
        (HAS, ("e1", b"A"), ["accepted", "accepted"]),  # a repeat: its result may not have been told
        # What iTel holds under a key that an earlier run has sent may be older.
        (HAD, ("e2", b"A"), ["duplicate", "accepted"]),
        (Accepted(200, 1, ""), ("e2", b"A"), ["accepted", "accepted"]),
        (HAS_NOT, ("e2", b"A"), ["refused", "accepted"]),
    ],
)
@pytest.mark.parametrize("apart", [False, True], ids=["in one batch", "in two"])
@pytest.mark.parametrize("batch_size", [1, 8])
def test_one_completion_by_two_events_is_handed_in_once(
    first: Accepted | Rejected,
    then: tuple[str, bytes],
    outcomes: list[str],
    apart: bool,
    batch_size: int,
) -> None:
    jobs = [submission(1, "e1", b"A"), submission(1, *then)]
    api, newest = Answers(first, HAS, batch_size=batch_size), NewestContents()
    turns = [[one] for one in jobs] if apart else [jobs]
    ends = [end for turn in turns for end in hand_in(api, turn, newest=newest)]
    if then[0] == "e1" and not apart:  # both results are told of together
        outcomes = ["accepted", "already_submitted"]
    assert [name_of(end) for end in ends] == outcomes
    sent = [one.event_id for one, end in zip(jobs, ends, strict=True) if not isinstance(end, Skip)]
    assert api.order == {1: sent}


@pytest.mark.parametrize("between", [HAS, HAD, Accepted(200, 1, ""), Rejected("timeout", None, 1, "iTel: hangs")])
def test_content_that_comes_back_is_handed_in(between: Accepted | Rejected) -> None:
    """Whatever iTel said of what came between: it may have that, and the older content is news to it."""
    newest = NewestContents()
    answers = (HAS, between, HAS)
    for number, (content, said) in enumerate(zip((b"A", b"B", b"A"), answers, strict=True)):
        (end,) = hand_in(Answers(said), [submission(1, f"e{number}", content)], newest=newest)
    assert name_of(end) == "accepted"


def test_a_repeat_that_itel_knows_leaves_what_is_known() -> None:
    newest = NewestContents()
    ends = [
        hand_in(Answers(answer), [submission(1, event_id)], newest=newest)[0]
        for event_id, answer in (("e1", HAS), ("e1", HAD), ("e2", HAS))
    ]
    assert [name_of(end) for end in ends] == ["accepted", "duplicate", "unchanged"]


def test_a_batch_s_answer_proves_nothing_of_one() -> None:
    newest = NewestContents()
    api = Answers(HAS, HAS, HAS, batch_size=8)
    hand_in(api, [submission(1, "e1"), submission(2, "e2")], newest=newest)
    assert [name_of(end) for end in hand_in(api, [submission(1, "e3")], newest=newest)] == ["accepted"]


def test_another_assignment_with_the_same_content_is_handed_in() -> None:
    api = Answers(HAS, HAS)
    assert [name_of(end) for end in hand_in(api, [submission(1, "e1"), submission(2, "e2")], threads=1)] == [
        "accepted",
        "accepted",
    ]


def test_contents_of_the_most_recent_assignments_are_remembered() -> None:
    newest = NewestContents(most=2)
    for assignment in (1, 2, 1, 3):
        newest.learn(submission(assignment, "e1"), HAS)
    assert [newest.hold(submission(assignment, "e2")) for assignment in (1, 2, 3)] == [True, False, True]


def test_contents_are_forgotten_after_ten_minutes() -> None:
    now = [0.0]
    newest = NewestContents(clock=lambda: now[0])
    newest.learn(submission(1, "e1"), HAS)
    now[0] = 599.0
    assert newest.hold(submission(1, "e2"))
    now[0] = 601.0
    assert not newest.hold(submission(1, "e2"))


def test_for_no_seconds_nothing_is_remembered() -> None:
    api, newest = Answers(HAS, HAS, HAS), NewestContents(seconds=0, clock=lambda: 100.0)
    ends = hand_in(api, [submission(1, f"e{number}") for number in range(3)], newest=newest)
    assert [name_of(end) for end in ends] == ["accepted"] * 3


def test_nothing_to_submit() -> None:
    assert hand_in(Recorder(), []) == []


# -- batches


def batched(size: int, make: Callable[..., tuple[HttpItel, FaultyServer]], *script: Act) -> tuple[Itel, FaultyServer]:
    api, server = make(*script)
    return HttpItel(replace(api.settings, batch_size=size, batch_path="/api/v1/batch"), api.connection), server


def seen(server: FaultyServer) -> list[tuple[str, str]]:
    """Path and idempotency key of each request."""
    return [(request.path, request.headers["idempotency-key"]) for request in server.requests]


def test_a_batch_is_one_call_and_the_rest_is_not_left_behind(client: Any) -> None:
    api, server = batched(3, client, answer(201, b'{"ok": 1}'))
    jobs = [submission(n, f"e{n}", b'{"n":%d}' % n) for n in range(7)]
    assert hand_in(api, jobs, threads=1) == [Submitted(job, 201, 1, '{"ok": 1}', duplicate=False) for job in jobs]
    assert [(request.method, request.path, request.body) for request in server.requests] == [
        ("POST", "/api/v1/batch", b'{"tasks":[{"n":0},{"n":1},{"n":2}],"batch_size":3}'),
        ("POST", "/api/v1/batch", b'{"tasks":[{"n":3},{"n":4},{"n":5}],"batch_size":3}'),
        ("POST", "/api/v1/tasks", b'{"n":6}'),
    ]
    assert [key for _, key in seen(server)] == [batch_key(["e0", "e1", "e2"]), batch_key(["e3", "e4", "e5"]), "e6"]


def test_every_try_of_a_batch_carries_the_same_key(client: Any) -> None:
    api, server = batched(2, client, answer(503), reset, answer(200))
    assert [outcome.attempts for outcome in hand_in(api, [submission(1, "a"), submission(2, "b")])] == [3, 3]
    assert seen(server) == [("/api/v1/batch", batch_key(["a", "b"]))] * 3


@given(first=st.lists(st.text()), second=st.lists(st.text()))
@example(first=["a,b"], second=["a", "b"])
@example(first=["a", "b"], second=["b", "a"])
def test_a_batch_s_key_is_its_events_own(first: list[str], second: list[str]) -> None:
    assert (batch_key(first) == batch_key(second)) == (first == second)
    assert batch_key(first).isascii()
    assert len(batch_key(first)) == 70


@pytest.mark.parametrize(
    "refusal",
    [answer(422, b"bad"), answer(409, b"it already exists"), answer(413), answer(404), answer(500), answer(207)],
    ids=["422", "409", "413", "404", "500", "207"],
)
def test_a_refused_batch_is_sent_again_one_by_one(refusal: Act, client: Any) -> None:
    """However it was refused; so one bad task sinks none of its neighbours."""
    api, server = client(refusal, answer(201), answer(422, b"bad"), answer(201), max_retries=0)
    api = HttpItel(replace(api.settings, batch_size=3), api.connection)
    jobs = [submission(n, f"e{n}") for n in range(3)]
    good, bad, last = hand_in(api, jobs)
    assert (good, last) == tuple(Submitted(job, 201, 1, "{}", duplicate=False) for job in (jobs[0], jobs[2]))
    assert isinstance(bad, Failure)
    assert (bad.record, bad.error_class, bad.error) == (
        jobs[1].record,
        "refused",
        "iTel answers 422 (1 try in 0.0 s): bad",
    )
    assert [path for path, _ in seen(server)] == ["/api/v1/tasks/batch", *["/api/v1/tasks"] * 3]
    assert [key for _, key in seen(server)][1:] == ["e0", "e1", "e2"]


@pytest.mark.parametrize(
    ("fault", "error_class"),
    [(answer(503), "outage"), (reset, "reset"), (answer(401), "unauthorized")],
    ids=["503", "reset", "401"],
)
def test_an_outage_is_not_met_again_by_each_task_of_a_batch(fault: Act, error_class: str, client: Any) -> None:
    api, server = batched(4, client, fault)
    jobs = [submission(n, f"e{n}") for n in range(4)]
    failures = hand_in(api, jobs)
    assert [(f.record, f.error_class) for f in failures if isinstance(f, Failure)] == [
        (job.record, error_class) for job in jobs
    ]
    assert {path for path, _ in seen(server)} == {"/api/v1/batch"}


def test_what_an_answer_repeats_of_a_neighbour_is_not_told(client: Any) -> None:
    api, _ = batched(2, client, answer(503, f"{PRIVATE} and Mrs Roe".encode()))
    jobs = [submission(1, "a", PAYLOAD, PRIVATE), submission(2, "b", PAYLOAD, "Roe")]
    for failed in hand_in(api, jobs):
        assert isinstance(failed, Failure)
        assert failed.error.endswith("): [redacted] and Mrs [redacted]")


class BatchRecorder:
    """A client that takes batches, and notes what it is given and what overlaps."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.order: dict[int, list[str]] = defaultdict(list)
        self._running: set[int] = set()
        self._lock = threading.Lock()

    def calls_at_once(self) -> int:
        return 8

    def submit(self, one: Submission) -> Accepted | Rejected:
        return self.submit_batch([one])

    def submit_batch(self, batch: Sequence[Submission]) -> Accepted | Rejected:
        ids = [one.assignment_id for one in batch]
        with self._lock:
            assert len(set(ids)) == len(ids) <= self.batch_size, "two of one assignment in a batch, or too many"
            assert not self._running.intersection(ids), "two calls of one assignment overlap"
            self._running.update(ids)
        threading.Event().wait(0.0005)
        with self._lock:
            self._running.difference_update(ids)
            for one in batch:
                self.order[one.assignment_id].append(one.event_id)
        return Accepted(200, 1, "")


@settings(max_examples=50)
@given(assignments=st.lists(st.integers(1, 5), max_size=30), size=st.integers(2, 7))
def test_batches_keep_an_assignment_s_order_and_leave_nothing_out(assignments: list[int], size: int) -> None:
    recorder = BatchRecorder(size)
    jobs = [submission(assignment, f"e{n}", b"%d" % n) for n, assignment in enumerate(assignments)]
    outcomes = hand_in(recorder, jobs)
    assert outcomes == [Submitted(job, 200, 1, "", duplicate=False) for job in jobs]
    assert recorder.order == {
        a: [f"e{n}" for n, assignment in enumerate(assignments) if assignment == a] for a in set(assignments)
    }


def test_a_folder_has_no_batches(tmp_path: Path) -> None:
    jobs = [submission(n, f"e{n}") for n in range(3)]
    assert FolderItel(tmp_path).batch_size == 1
    assert FolderItel(tmp_path).submit_batch(jobs[:1]) == Accepted(201, 1, "written to 0-e0.json")
    hand_in(FolderItel(tmp_path), jobs)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0-e0.json", "1-e1.json", "2-e2.json"]


# -- waiting for iTel


def patient(api: Itel, slept: list[float] | None = None) -> WaitingItel:
    """One whose waits take no time."""
    waits = [] if slept is None else slept
    return WaitingItel(api, clock=lambda: 0.0, sleep=waits.append)


@pytest.mark.parametrize("fault", [answer(503), answer(302), answer(401), answer(403), reset])
def test_an_outage_is_waited_for(fault: Act, client: Any) -> None:
    api, server = client(*[fault] * 6, answer(201), max_retries=1)
    slept: list[float] = []
    assert isinstance(patient(api, slept).submit(submission(1, "event-1", PAYLOAD)), Accepted)
    assert {seen.headers["idempotency-key"] for seen in server.requests} == {"event-1"}
    assert (len(server.requests), len(slept) >= 3) == (7, True)


class Breaker:
    """A client whose breaker is open for a while: its calls fail without being made."""

    batch_size = 2

    def __init__(self, open_for: int) -> None:
        self.left = open_for

    def calls_at_once(self) -> int:
        return 8

    def submit(self, *_: Any) -> Accepted | Rejected:
        self.left -= 1
        return Rejected("breaker_open", None, 0, "iTel: not tried") if self.left >= 0 else Accepted(201, 1, "")

    def submit_batch(self, _: Any) -> Accepted | Rejected:
        return self.submit()


def test_an_open_breaker_is_an_outage_like_any_other() -> None:
    job = submission(1, "a")
    (diverted,) = hand_in(Breaker(1), [job])
    assert diverted == Failure(job.record, "submit", "breaker_open", "iTel: not tried", 100.0, 101.0, 0, "a", 1)
    assert patient(Breaker(100)).submit(submission(1, "a", PAYLOAD)) == Accepted(201, 1, "")
    jobs = [submission(1, "a"), submission(2, "b")]
    assert hand_in(patient(Breaker(100)), jobs) == [Submitted(job, 201, 1, "", duplicate=False) for job in jobs]


@pytest.mark.parametrize("status", [400, 404, 409, 422, 501])
def test_a_refusal_is_not_waited_for(status: int, client: Any) -> None:
    api, server = client(answer(status))
    rejected = patient(api).submit(submission(1, "e", PAYLOAD))
    assert isinstance(rejected, Rejected)
    assert (rejected.status, len(server.requests)) == (status, 1)


def test_a_batch_that_breaks_the_server_is_split_rather_than_waited_for(client: Any) -> None:
    api, server = client(answer(500), answer(201), answer(503), answer(201), max_retries=0)
    api = HttpItel(replace(api.settings, batch_size=2), api.connection)
    jobs = [submission(1, "a"), submission(2, "b")]
    assert [type(outcome) for outcome in hand_in(patient(api), jobs)] == [Submitted, Submitted]
    assert [key for _, key in seen(server)] == [batch_key(["a", "b"]), "a", "b", "b"]


def test_who_is_asked_to_end_does_not_wait_for_ever(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    api, server = client(answer(503), max_retries=0)
    now = [0.0]
    stop = threading.Event()
    monkeypatch.setattr("itel_cabinet.io.worker.outages.STOP", stop)

    def sleep(seconds: float) -> None:
        now[0] += max(seconds, 0.01)
        if now[0] > 600:
            stop.set()

    with pytest.raises(OutageError, match=r"^iTel: answers 503 \(1 try in 0\.0 s\); gave up after 6\d\d s$"):
        WaitingItel(api, clock=lambda: now[0], sleep=sleep).submit(submission(1, "e", PAYLOAD))
    assert len(server.requests) > 100


def test_patience_is_an_option(tmp_path: Path) -> None:
    settings = ItelSettings(ConnectionSettings("itel", "https://itel.example"), batch_size=7)
    assert isinstance(get_itel(settings), HttpItel)
    waiting = get_itel(settings, on_outage="wait")
    assert isinstance(waiting, WaitingItel)
    assert (waiting.api, waiting.batch_size) == (get_itel(settings), 7)
    assert get_itel(tmp_path, on_outage="wait") == FolderItel(tmp_path)


# -- settings


def test_a_process_has_one_connection_for_its_settings(tmp_path: Path) -> None:
    settings = ItelSettings(ConnectionSettings("itel", "https://itel.example"))
    first, second = get_itel(settings), get_itel(ItelSettings(settings.connection))
    assert isinstance(first, HttpItel)
    assert isinstance(second, HttpItel)
    assert first.connection is second.connection
    assert get_itel(tmp_path, outage_seconds=5) == FolderItel(tmp_path, 5)
