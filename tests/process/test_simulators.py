"""The simulators of ClaimX and iTel over real sockets: their answers, and every fault as a client meets it."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import requests

from itel_cabinet.local.simulators import (
    ClaimXSimulator,
    Faults,
    ItelSimulator,
    Simulator,
    media_bytes,
)
from tests.support.cabinet_samples import EXAMPLE
from tests.support.jobs import wait_for

DEADLINE_SECONDS = 30.0


def details(assignment_id: int = 5430007, project_id: int = 5400001, media: tuple[int, ...] = ()) -> dict[str, Any]:
    photos = {
        "questionText": "Upload Overview Photo(s)",
        "responseAnswerExport": {"type": "image", "claimMediaIds": [*media]},
    }
    empty = {"questionText": "Anything else?", "responseAnswerExport": None}
    response = {"groups": [{"name": "Overview", "questionAndAnswers": [photos, empty]}]}
    return {"assignmentId": assignment_id, "projectId": project_id, "status": "COMPLETED", "response": response}


def submission(assignment_id: int = 5430007) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(EXAMPLE.read_bytes())
    return {**body, "assignmentId": assignment_id}


@pytest.fixture
def client() -> Iterator[requests.Session]:
    with requests.Session() as session:
        yield session


@pytest.fixture
def task_url(claimx: ClaimXSimulator) -> str:
    claimx.put_task(details())
    return f"{claimx.url}/customTasks/assignment/5430007?full=true"


class Clock:
    def __init__(self) -> None:
        self.now = 1_768_000_000.0

    def __call__(self) -> float:
        return self.now


class TestClaimX:
    def test_answers_with_the_details_that_were_put_last(
        self, claimx: ClaimXSimulator, client: requests.Session
    ) -> None:
        claimx.put_task({**details(), "status": "ASSIGNED"})
        claimx.put_task(details(media=(97000011,)))

        answer = client.get(f"{claimx.url}/customTasks/assignment/5430007", params={"full": "true"})

        assert answer.status_code == 200
        assert answer.json() == details(media=(97000011,)) == claimx.task(5430007)
        assert answer.headers["Content-Type"] == "application/json"

    def test_leaves_the_form_out_unless_asked_for_all(self, claimx: ClaimXSimulator, client: requests.Session) -> None:
        claimx.put_task(details())

        answer = client.get(f"{claimx.url}/customTasks/assignment/5430007").json()

        assert answer == {**details(), "response": None}

    @pytest.mark.parametrize(
        ("path", "reason"),
        [
            ("/customTasks/assignment/1?full=true", "no assignment 1"),
            ("/export/project/1/media", "no project 1"),
            ("/api/v1/tasks/32513", "no such path: /api/v1/tasks/32513"),
        ],
    )
    def test_the_unknown_is_404_with_a_reason(
        self, claimx: ClaimXSimulator, client: requests.Session, path: str, reason: str
    ) -> None:
        answer = client.get(claimx.url + path)

        assert (answer.status_code, answer.json()) == (404, {"error": reason})

    def test_lists_the_named_photos_of_a_project_also_those_of_older_forms(
        self, claimx: ClaimXSimulator, client: requests.Session
    ) -> None:
        claimx.put_task(details(media=(11, 12)))
        claimx.put_task(details(media=(11,)))
        claimx.put_task(details(assignment_id=5430008, media=(13,)))
        claimx.put_task(details(assignment_id=5430009, project_id=5400002, media=(14,)))
        url = f"{claimx.url}/export/project/5400001/media"

        named = client.get(url, params={"mediaIds": "12,13,14"}).json()

        assert [{**item, "fullDownloadLink": ""} for item in named] == [
            {"mediaID": 12, "mediaType": "jpg", "mediaName": "kitchen 12.jpg", "fullDownloadLink": ""},
            {"mediaID": 13, "mediaType": "jpg", "mediaName": "kitchen 13.jpg", "fullDownloadLink": ""},
        ]
        assert [item["mediaID"] for item in client.get(url).json()] == [11, 12, 13]

    def test_a_signed_link_gives_the_photo_until_it_expires(self, client: requests.Session) -> None:
        clock = Clock()
        with ClaimXSimulator(clock=clock, link_seconds=60) as claimx:
            claimx.put_task(details(media=(11, 12)))
            first, second = client.get(f"{claimx.url}/export/project/5400001/media").json()
            link = first["fullDownloadLink"]
            assert link.startswith(f"{claimx.url}/media/11?systemDate=1768000000000&expires=60000&sign=")

            photo = client.get(link)
            assert (photo.status_code, photo.headers["Content-Type"]) == (200, "image/jpeg")
            assert photo.content == media_bytes(11) != media_bytes(12)
            assert photo.content.startswith(b"\xff\xd8\xff\xe0")
            assert photo.content.endswith(b"\xff\xd9")

            forged = second["fullDownloadLink"].replace("/media/12", "/media/11")
            assert client.get(forged).status_code == 403
            assert client.get(f"{claimx.url}/media/11").status_code == 403

            clock.now += 60
            assert client.get(link).status_code == 200
            clock.now += 0.001
            expired = client.get(link)
            assert (expired.status_code, expired.json()) == (403, {"error": "the link has expired"})

    def test_credentials_are_demanded_where_a_token_is_set(
        self, claimx: ClaimXSimulator, client: requests.Session, task_url: str
    ) -> None:
        claimx.token = "user:password"
        assert client.get(task_url).status_code == 401
        assert client.get(task_url, headers={"Authorization": "Bearer other"}).status_code == 401
        assert client.get(task_url, auth=("user", "password")).status_code == 200

        claimx.token = "secret"
        assert client.get(task_url, headers={"Authorization": "Bearer secret"}).status_code == 200
        assert client.get(f"{claimx.url}/_sim/calls").status_code == 200

    def test_another_process_fills_it_and_counts_its_calls(
        self, claimx: ClaimXSimulator, client: requests.Session
    ) -> None:
        put = client.put(
            f"{claimx.url}/_sim/tasks", json=[{**details(), "status": "ASSIGNED"}, details(), details(5430008)]
        )
        assert (put.status_code, put.json()) == (200, {"tasks": 3})

        for assignment_id in (5430007, 5430007, 5430008, 1):
            client.get(f"{claimx.url}/customTasks/assignment/{assignment_id}?full=true")

        assert claimx.task(5430007) == details()
        assert client.get(f"{claimx.url}/_sim/calls").json() == {
            "total": 4,
            "by_path": {
                "/customTasks/assignment/5430007": 2,
                "/customTasks/assignment/5430008": 1,
                "/customTasks/assignment/1": 1,
            },
        }
        assert claimx.lookups(5430007) == 2

    @pytest.mark.parametrize("body", [b"no JSON", b'{"assignmentId": 1}', b"[1]", b'[{"projectId": 1}]'])
    def test_refuses_tasks_of_another_shape(
        self, claimx: ClaimXSimulator, client: requests.Session, body: bytes
    ) -> None:
        answer = client.put(f"{claimx.url}/_sim/tasks", data=body)

        assert answer.status_code == 400
        assert answer.json()["error"].startswith("the body of PUT /_sim/tasks is not as expected: ")


class TestItel:
    @staticmethod
    def send(itel: ItelSimulator, key: str, body: object, path: str = "/api/v1/tasks") -> requests.Response:
        return requests.post(itel.url + path, json=body, headers={"Idempotency-Key": key}, timeout=DEADLINE_SECONDS)

    def test_accepts_once_and_knows_the_key_again(self, itel: ItelSimulator) -> None:
        first = self.send(itel, "event-1", submission())
        again = self.send(itel, "event-1", submission())
        other = self.send(itel, "event-2", submission())

        assert (first.status_code, first.json()) == (
            201,
            {"itel_task_id": "itel-5430007-event-1", "status": "accepted"},
        )
        assert (again.status_code, again.json()) == (
            200,
            {"itel_task_id": "itel-5430007-event-1", "status": "duplicate"},
        )
        assert other.status_code == 201
        assert [(s.idempotency_key, s.assignment_id, s.body, s.times) for s in itel.submissions()] == [
            ("event-1", 5430007, submission(), 2),
            ("event-2", 5430007, submission(), 1),
        ]

    def test_may_call_a_repeat_an_error(self) -> None:
        with ItelSimulator(on_repeat="exists") as itel:
            self.send(itel, "event-1", submission())
            again = self.send(itel, "event-1", submission())

        assert again.status_code == 400
        assert again.json() == {"integration_test_id": ["'5430007-event-1' already exists"]}

    def test_refuses_what_the_schema_refuses_and_names_places_not_values(self, itel: ItelSimulator) -> None:
        body = submission()
        del body["formId"]
        body["customer"]["phone"] = ["5550100"]
        body["overviewMedia"][0]["claimMediaIds"] = ["secret"]

        answer = self.send(itel, "event-1", body)

        assert answer.status_code == 400
        reasons = answer.json()["reasons"]
        assert "the body: 'formId' is a required property" in reasons
        assert "overviewMedia.0.claimMediaIds.0: is not valid by 'type'" in reasons
        assert any(reason.startswith("customer.phone: ") for reason in reasons)
        assert "secret" not in answer.text
        assert itel.submissions() == []

    def test_refuses_what_is_no_submission_at_all(self, itel: ItelSimulator) -> None:
        url, key = f"{itel.url}/api/v1/tasks", {"Idempotency-Key": "event-1"}

        assert requests.post(url, data=b"{", headers=key, timeout=5).json() == {"error": "the body is not JSON"}
        assert requests.post(url, json=submission(), timeout=5).json() == {
            "error": "the header Idempotency-Key is missing"
        }
        assert self.send(itel, "event-1", []).status_code == 400
        assert self.send(itel, "event-1", submission(), path="/api/v1/other").status_code == 404
        assert requests.get(url, timeout=5).status_code == 405
        assert itel.submissions() == []

    def test_paths_token_and_key_header_can_be_others(self) -> None:
        with ItelSimulator(paths=("/api/v1/repairs",), token="secret", key_header="X-Request-Id") as itel:
            url = f"{itel.url}/api/v1/repairs"
            refused = requests.post(url, json=submission(), headers={"X-Request-Id": "1"}, timeout=5)
            headers = {"X-Request-Id": "1", "Authorization": "Bearer secret"}
            accepted = requests.post(url, json=submission(), headers=headers, timeout=5)

        assert (refused.status_code, accepted.status_code) == (401, 201)
        assert [found.idempotency_key for found in itel.submissions()] == ["1"]

    def test_tells_another_process_what_it_has_received(self) -> None:
        with ItelSimulator(clock=lambda: 12.5) as itel:
            self.send(itel, "event-1", submission())
            told = requests.get(f"{itel.url}/_sim/submissions", timeout=5).json()

        assert told == {
            "submissions": [
                {
                    "idempotency_key": "event-1",
                    "assignment_id": 5430007,
                    "body": submission(),
                    "received_at": 12.5,
                    "times": 1,
                }
            ],
            "overlaps": 0,
        }

    def test_the_journal_is_readable_and_can_be_remembered(self, tmp_path: Path) -> None:
        key = "event/1.of 2"
        with ItelSimulator(journal=tmp_path / "itel") as itel:
            self.send(itel, key, submission())
            self.send(itel, "refused", {})
        (written,) = (tmp_path / "itel").iterdir()
        assert written.name == "5430007-event%2F1.of%202.json"
        assert written.read_text().startswith('{\n  "assignmentId": 5430007,\n')
        assert json.loads(written.read_text()) == submission()

        with ItelSimulator(journal=tmp_path / "itel") as itel:
            assert itel.submissions() == []
        with ItelSimulator(journal=tmp_path / "itel", remember=True) as itel:
            assert [(s.idempotency_key, s.assignment_id, s.body) for s in itel.submissions()] == [
                (key, 5430007, submission())
            ]
            assert self.send(itel, key, submission()).json()["status"] == "duplicate"

    def test_takes_a_batch_whole_or_not_at_all(self, itel: ItelSimulator) -> None:
        path = "/api/v1/tasks/batch"
        tasks = [submission(1), submission(2)]
        first = self.send(itel, "batch-1", {"tasks": tasks, "batch_size": 2}, path)
        again = self.send(itel, "batch-1", {"tasks": tasks, "batch_size": 2}, path)
        assert (first.status_code, again.status_code) == (201, 200)
        assert first.json()["tasks"][1] == {"itel_task_id": "itel-2-batch-1/1", "status": "accepted"}
        refused = self.send(itel, "batch-2", {"tasks": [submission(3), {}], "batch_size": 2}, path)
        assert refused.status_code == 400
        assert refused.json()["reasons"][0].startswith("tasks.1: the body: 'additionalNotes' is a required property")
        for body in ({"tasks": tasks, "batch_size": 1}, {"tasks": []}, {"tasks": 1, "batch_size": 1}, tasks, tasks[0]):
            assert self.send(itel, "batch-3", body, path).status_code == 400
        assert [(s.idempotency_key, s.assignment_id, s.times) for s in itel.submissions()] == [
            ("batch-1/0", 1, 2),
            ("batch-1/1", 2, 2),
        ]

    def test_counts_calls_of_one_assignment_that_overlap(self, itel: ItelSimulator) -> None:
        def call(number: int, assignment_id: int) -> None:
            with suppress(requests.ConnectionError):
                self.send(itel, f"event-{number}", submission(assignment_id))

        def start(*assignment_ids: int) -> list[threading.Thread]:
            threads = [threading.Thread(target=call, args=numbered) for numbered in enumerate(assignment_ids)]
            for thread in threads:
                thread.start()
            return threads

        itel.faults.latency_seconds = 0.05
        for thread in start(1, 2, 3):
            thread.join(DEADLINE_SECONDS)
        call(4, 1)
        call(5, 1)
        assert itel.overlaps == 0

        itel.faults.latency_seconds = DEADLINE_SECONDS
        threads = start(1, 1, 2, 1)
        wait_for(lambda: itel.overlaps == 2, "two of the calls have met another one", DEADLINE_SECONDS)

        def call_with_two() -> None:
            with suppress(requests.ConnectionError):
                self.send(itel, "b", {"tasks": [submission(2), submission(9)], "batch_size": 2}, "/api/v1/tasks/batch")

        threads.append(threading.Thread(target=call_with_two))
        threads[-1].start()
        wait_for(lambda: itel.overlaps == 3, "a task of the batch has met a call", DEADLINE_SECONDS)
        itel.stop()
        for thread in threads:
            thread.join(DEADLINE_SECONDS)
        assert itel.overlaps == 3


class TestFaults:
    def test_latency_delays_the_answer(self, claimx: ClaimXSimulator, client: requests.Session, task_url: str) -> None:
        claimx.faults.latency_seconds = 0.3

        with pytest.raises(requests.ReadTimeout):
            client.get(task_url, timeout=0.1)
        started = time.monotonic()
        assert client.get(task_url).status_code == 200
        assert time.monotonic() - started >= 0.3

    @pytest.mark.parametrize("retry_after", [7, "Sat, 10 Jan 2026 15:04:05 GMT"])
    def test_error_status_with_retry_after(
        self, claimx: ClaimXSimulator, client: requests.Session, task_url: str, retry_after: str | int
    ) -> None:
        claimx.faults = Faults(error_status=429, retry_after=retry_after)

        answer = client.get(task_url)

        assert (answer.status_code, answer.headers["Retry-After"]) == (429, str(retry_after))

    def test_error_rate_is_drawn_from_the_seed(self, client: requests.Session) -> None:
        def statuses(seed: int) -> list[int]:
            with ClaimXSimulator(seed=seed) as claimx:
                claimx.put_task(details())
                claimx.faults = Faults(error_status=500, error_rate=0.4)
                url = f"{claimx.url}/customTasks/assignment/5430007?full=true"
                return [client.get(url).status_code for _ in range(60)]

        first = statuses(1)

        assert first == statuses(1) != statuses(2)
        assert 10 <= first.count(500) <= 40
        assert first.count(200) == 60 - first.count(500)

    def test_times_ends_a_fault(self, claimx: ClaimXSimulator, client: requests.Session, task_url: str) -> None:
        claimx.faults = Faults(error_status=503, times=2)

        assert [client.get(task_url).status_code for _ in range(4)] == [503, 503, 200, 200]

    def test_reset_does_nothing_and_resets(self, itel: ItelSimulator) -> None:
        itel.faults.reset = True

        with pytest.raises(requests.ConnectionError, match="Connection reset by peer"):
            TestItel.send(itel, "event-1", submission())
        assert itel.submissions() == []
        assert itel.calls["/api/v1/tasks"] == 1

    def test_reset_after_2xx_does_what_was_asked_and_loses_the_answer(self, itel: ItelSimulator) -> None:
        itel.faults.reset_after_2xx = True
        body = json.dumps(submission()).encode()
        head = f"POST /api/v1/tasks HTTP/1.1\r\nIdempotency-Key: event-1\r\nContent-Length: {len(body)}\r\n\r\n"

        with socket.create_connection(("127.0.0.1", itel.port)) as connection:
            connection.settimeout(DEADLINE_SECONDS)
            connection.sendall(head.encode() + body)
            stream = connection.makefile("rb")
            assert stream.readline() == b"HTTP/1.1 201 Created\r\n"
            with pytest.raises(ConnectionResetError):
                stream.readline()
        with pytest.raises(requests.ConnectionError):
            TestItel.send(itel, "event-1", submission())
        assert [(found.idempotency_key, found.times) for found in itel.submissions()] == [("event-1", 2)]

    def test_a_hanging_call_is_answered_once_the_fault_is_cleared(
        self, claimx: ClaimXSimulator, client: requests.Session, task_url: str
    ) -> None:
        claimx.faults.hang = True
        with pytest.raises(requests.ReadTimeout):
            requests.get(task_url, timeout=0.1)

        answers: list[int] = []
        thread = threading.Thread(target=lambda: answers.append(client.get(task_url).status_code))
        thread.start()
        wait_for(lambda: claimx.calls.total() == 2, "the second call has come in", DEADLINE_SECONDS)
        assert answers == []
        claimx.faults.hang = False
        thread.join(DEADLINE_SECONDS)

        assert answers == [200]

    def test_a_hanging_call_ends_with_the_simulator(self, claimx: ClaimXSimulator, task_url: str) -> None:
        claimx.faults.hang = True
        errors: list[Exception] = []

        def call() -> None:
            try:
                requests.get(task_url, timeout=DEADLINE_SECONDS)
            except requests.RequestException as error:
                errors.append(error)

        thread = threading.Thread(target=call)
        thread.start()
        wait_for(lambda: claimx.calls.total() == 1, "the call has come in", DEADLINE_SECONDS)
        claimx.stop()
        thread.join(DEADLINE_SECONDS)

        assert [type(error) for error in errors] == [requests.ConnectionError]

    def test_malformed_json_does_what_was_asked_and_breaks_off(self, itel: ItelSimulator) -> None:
        itel.faults.malformed_json = True

        answer = TestItel.send(itel, "event-1", submission())

        assert answer.status_code == 201
        with pytest.raises(requests.JSONDecodeError):
            answer.json()
        assert len(itel.submissions()) == 1

    def test_outage_is_503_for_all_and_does_nothing(self, itel: ItelSimulator) -> None:
        itel.faults = Faults(outage=True, retry_after=1, error_rate=0.0)

        answers = [TestItel.send(itel, f"event-{number}", submission()) for number in range(3)]

        assert [(answer.status_code, answer.headers["Retry-After"]) for answer in answers] == [(503, "1")] * 3
        assert itel.submissions() == []

    def test_a_stopped_simulator_refuses_and_comes_back_with_port_and_memory(
        self, claimx: ClaimXSimulator, task_url: str
    ) -> None:
        with requests.Session() as kept_alive:
            assert kept_alive.get(task_url).status_code == 200

            claimx.stop()
            claimx.stop()
            with pytest.raises(requests.ConnectionError, match="Connection refused"):
                kept_alive.get(task_url)

            claimx.start_again()
            claimx.start()
            assert kept_alive.get(task_url).json() == details()
        assert claimx.calls.total() == 2

    def test_another_process_sets_and_clears_them(
        self, claimx: ClaimXSimulator, client: requests.Session, task_url: str
    ) -> None:
        url = f"{claimx.url}/_sim/faults"
        put = client.put(url, json={"error_status": 418, "retry_after": "3", "outage": False})
        assert put.status_code == 200
        assert put.json() == client.get(url).json() == Faults(error_status=418, retry_after="3").model_dump()
        assert client.get(task_url).status_code == 418

        assert client.put(url, json={}).json() == Faults().model_dump()
        assert client.get(task_url).status_code == 200

    @pytest.mark.parametrize(
        ("body", "reason"),
        [
            (b'{"latency": 3}', r"unknown fault 'latency': the known ones are latency_seconds, outage, error_status, "),
            (b'{"error_rate": 1.5}', r"error_rate: Input should be less than or equal to 1$"),
            (b"[]", r"the body: .*object"),
            (b"{", r"the body: Invalid JSON"),
        ],
    )
    def test_an_unknown_fault_is_refused_and_changes_nothing(
        self, claimx: ClaimXSimulator, client: requests.Session, body: bytes, reason: str
    ) -> None:
        claimx.faults.error_status = 500

        answer = client.put(f"{claimx.url}/_sim/faults", data=body)

        assert answer.status_code == 400
        assert re.match(reason, answer.json()["error"])
        assert claimx.faults == Faults(error_status=500)

    def test_an_unknown_control_path_is_404(self, itel: ItelSimulator, client: requests.Session) -> None:
        answer = client.get(f"{itel.url}/_sim/nothing")

        assert (answer.status_code, answer.json()) == (404, {"error": "the simulator knows no GET /_sim/nothing"})


class TestServer:
    def test_one_connection_carries_many_calls(self, claimx: ClaimXSimulator) -> None:
        claimx.put_task(details())
        connection = http.client.HTTPConnection("127.0.0.1", claimx.port, timeout=DEADLINE_SECONDS)
        connection.connect()
        first = connection.sock
        for path, status in [
            ("/customTasks/assignment/5430007", 200),
            ("/none", 404),
            ("/export/project/5400001/media", 200),
        ]:
            connection.request("GET", path)
            answer = connection.getresponse()
            answer.read()
            assert (answer.status, connection.sock) == (status, first)
        connection.close()

    def test_many_clients_at_once_are_all_answered(self, itel: ItelSimulator) -> None:
        statuses: list[int] = []

        def call(number: int) -> None:
            statuses.append(TestItel.send(itel, f"event-{number}", submission(number)).status_code)

        threads = [threading.Thread(target=call, args=(number,)) for number in range(64)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE_SECONDS)

        assert statuses == [201] * 64
        assert {found.idempotency_key for found in itel.submissions()} == {f"event-{number}" for number in range(64)}
        assert itel.overlaps == 0

    def test_a_taken_port_is_an_error(self, claimx: ClaimXSimulator) -> None:
        with pytest.raises(OSError, match="Address already in use"):
            Simulator(port=claimx.port).start()

    @pytest.mark.parametrize(
        ("arguments", "greeting"),
        [
            (["itel_cabinet.local.simulators", "claimx", "--token", "secret"], "ClaimX simulator at http://127.0.0.1:"),
            (
                ["itel_cabinet.local.simulators", "itel", "--path", "/api/v1/repairs", "--remember"],
                "iTel simulator at http://127.0.0.1:",
            ),
        ],
    )
    def test_the_command_serves_until_it_is_told_to_end(
        self, arguments: list[str], greeting: str, tmp_path: Path
    ) -> None:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline().strip()
            assert line.startswith(greeting)
            url = line.rpartition(" ")[2]
            assert requests.get(f"{url}/_sim/calls", timeout=DEADLINE_SECONDS).json() == {"total": 0, "by_path": {}}
            process.send_signal(signal.SIGTERM)
            assert process.communicate(timeout=DEADLINE_SECONDS) == ("", "")
            assert process.returncode == 0
        finally:
            process.kill()
