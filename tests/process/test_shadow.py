"""Sending to a second endpoint: it gets what it should, is only counted, and holds nothing up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from itel_cabinet.io.http import Connection, ConnectionSettings
from itel_cabinet.io.itel import ItelSettings
from itel_cabinet.io.shadow import Shadow
from itel_cabinet.io.worker import metrics
from itel_cabinet.local.simulators import ItelSimulator
from itel_cabinet.pipeline.options import OptionError, Settings
from itel_cabinet.transforms.contracts import load_shipped
from itel_cabinet.transforms.enrichment import CabinetTask
from itel_cabinet.transforms.submissions import Submission, Submitted, build_submissions
from itel_cabinet.transforms.submitting import Accepted, NewestContents, submit
from tests.pure.test_contracts import ADJUSTER, GATE, VARS
from tests.support.cabinet_samples import CONTRACT, EXAMPLE, details, event, parse_form, record, submission
from tests.support.faulty_server import FaultyServer
from tests.support.jobs import wait_for


class First:
    """Accepts everything at once."""

    batch_size = 1

    def calls_at_once(self) -> int:
        return 8

    def submit(self, _: Submission) -> Accepted:
        return Accepted(201, 1, "")

    def submit_batch(self, _: Any) -> Accepted:
        raise AssertionError("one by one")


def counted() -> dict[tuple[str, str], float]:
    return {
        (sample.labels["itel"], sample.labels["shadow"]): sample.value
        for family in metrics.SHADOW_SUBMISSIONS.collect()
        for sample in family.samples
        if sample.name.endswith("_total")
    }


@pytest.fixture
def since() -> Callable[[], dict[tuple[str, str], float]]:
    before = counted()
    return lambda: {key: value - before.get(key, 0) for key, value in counted().items() if value > before.get(key, 0)}


LIMIT_SECONDS = 1.0


def shadow_at(url: str, **options: Any) -> Shadow:
    link = ConnectionSettings("itel_shadow", url, deadline_seconds=5.0, read_timeout_seconds=LIMIT_SECONDS)
    return Shadow(ItelSettings(link), Connection(link), **options)


def hand_in(shadow: Shadow, *ones: Submission) -> list[Any]:
    with ThreadPoolExecutor(4) as pool:
        return submit(
            ones,
            client=First,
            newest=lambda: NewestContents(0),
            pool=lambda: pool,
            clock=time.time,
            count=lambda *_: None,
            shadow=lambda: shadow.offer,
        )


def with_shadow(number: int, payload: bytes = b"{}") -> Submission:
    second = submission(number, f"e{number}", payload)
    return Submission(record(b""), f"e{number}", number, b"{}", (), shadow=second)


@pytest.fixture
def itel() -> Iterator[ItelSimulator]:
    with ItelSimulator() as running:
        yield running


def test_it_gets_what_is_sent_and_its_answers_are_compared(itel: ItelSimulator, since: Callable[[], Any]) -> None:
    shadow = shadow_at(itel.url)
    good, bad = with_shadow(5430007, EXAMPLE.read_bytes()), with_shadow(7, b'{"assignmentId": 7}')
    assert all(isinstance(one, Submitted) for one in hand_in(shadow, good, bad))
    wait_for(lambda: sum(since().values()) == 2, "both are answered")
    assert since() == {("accepted", "accepted"): 1, ("accepted", "refused"): 1}
    assert [one.idempotency_key for one in itel.submissions()] == ["e5430007"]


def test_one_that_hangs_or_is_away_holds_nothing_up(since: Callable[[], Any]) -> None:
    # First, as those that are still queued for the other one find nobody once it has gone.
    nowhere = shadow_at("http://127.0.0.1:9")
    hand_in(nowhere, with_shadow(1))
    wait_for(lambda: since().get(("accepted", "unreachable"), 0) == 1, "nobody is there")
    released = threading.Event()

    def hang(_: Any) -> None:
        released.wait(20)

    with FaultyServer(hang) as server:
        shadow = shadow_at(server.url, threads=1)
        began = time.monotonic()
        ended = hand_in(shadow, *(with_shadow(number) for number in range(1_200)))
        seconds = time.monotonic() - began
        # Less than one answer's time limit for each of them.
        assert seconds < LIMIT_SECONDS * len(ended)
        assert len(ended) == 1_200
        # Of those that do not fit into the queue all but what the one thread has given up meanwhile, one in each limit.
        assert since()["accepted", "dropped"] >= 1_200 - 1_000 - 2 - seconds / LIMIT_SECONDS
        wait_for(lambda: since().get(("accepted", "timeout"), 0) > 0, "the first runs into its time limit")
        released.set()


def test_the_body_is_that_of_its_own_contract() -> None:
    vendor = load_shipped("vendor", dict(VARS))
    found = details(GATE, ADJUSTER)
    task = CabinetTask(record(b""), event(), found, parse_form(found))
    build = {"contract": CONTRACT, "statuses": frozenset({"COMPLETED"}), "clock": lambda: 0.0}
    (one,) = build_submissions([task], **build, shadow=vendor)  # type: ignore[arg-type]
    assert isinstance(one, Submission)
    assert one.shadow is not None
    assert one.shadow.key == f"5430007-{'9f2c' * 16}"
    assert one.payload.startswith(b'{"assignmentId":5430007')
    held = CabinetTask(record(b""), event(), details(ADJUSTER), parse_form(details(ADJUSTER)))
    (one,) = build_submissions([held], **build, shadow=vendor)  # type: ignore[arg-type]
    assert isinstance(one, Submission)
    assert one.shadow is None


GIVEN = {
    "job": "api",
    "bootstrap_servers": "b:9092",
    "claimx_url": "https://claimx.example",
    "itel_url": "https://itel.example",
}


def test_its_settings_come_from_its_contract() -> None:
    given = {**GIVEN, "itel_shadow_url": "https://next.example", "itel_auth": "bearer:env:T"}
    same = Settings.of(given)
    assert same.shadow_contract is same.contract.loaded
    assert (same.shadow_settings().path, same.shadow_settings().connection.auth) == ("/api/v1/tasks", "bearer:env:T")
    own = Settings.of(
        {
            **given,
            "itel_shadow_contract": "vendor",
            "itel_shadow_vars": '{"carrier_id": "C", "subscription_key": "env:K"}',
        }
    )
    second = own.shadow_settings()
    assert (second.path, second.idempotency_header) == ("/cabinet-repair-orv", "")
    assert second.connection.auth.startswith("oauth2:")
    assert second.connection.secret_headers == (("Ocp-Apim-Subscription-Key", "env:K"),)
    assert Settings.of(GIVEN).shadow_contract is None


def test_a_contract_that_lacks_its_vars_is_refused() -> None:
    with pytest.raises(OptionError, match=r"^--itel_shadow_contract: vendor: line \d+: vars: carrier_id is not given"):
        Settings.of({**GIVEN, "itel_shadow_url": "https://next.example", "itel_shadow_contract": "vendor"})
