"""The network between the job and each of Kafka, ClaimX and iTel fails in every way that Toxiproxy knows, while the job
is killed now and then: nothing is lost, and no row or key is there twice.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from itel_cabinet.local.samples import Generator, Shares, produce
from itel_cabinet.local.services import HOST, Broker, Toxiproxy, free_port
from itel_cabinet.local.simulators import ClaimXSimulator, ItelSimulator
from tests.support.accounting import assert_everything_accounted_for
from tests.support.jobs import TOPICS, Stack

pytestmark = pytest.mark.services
EVENTS_A_SECOND = 20.0
SHARES = Shares(assigned=0.4, resubmitted=0.05, late=0.02, repeated=0.02, bad=0.02)

FAULTS: dict[str, Callable[[Toxiproxy, str], None]] = {
    "slow answers": lambda proxies, name: proxies.poison(name, "latency", latency=700, jitter=600),
    "slow requests": lambda proxies, name: proxies.poison(name, "latency", stream="upstream", latency=700, jitter=600),
    "a trickle": lambda proxies, name: proxies.poison(name, "bandwidth", rate=2),
    "small pieces": lambda proxies, name: proxies.poison(name, "slicer", average_size=20, size_variation=10, delay=500),
    "answers that never come": lambda proxies, name: proxies.poison(name, "timeout", timeout=0),
    "requests that never arrive": lambda proxies, name: proxies.poison(name, "timeout", stream="upstream", timeout=0),
    "resets": lambda proxies, name: proxies.poison(name, "reset_peer", timeout=50),
    "answers cut off": lambda proxies, name: proxies.poison(name, "limit_data", bytes=700),
    "nobody there": lambda proxies, name: proxies.cut(name),
}


@dataclass
class Proxied:
    """A stack whose job reaches each service through a proxy, while the test does so directly."""

    stack: Stack
    proxies: Toxiproxy
    ports: dict[str, int]

    @property
    def options(self) -> dict[str, object]:
        return {
            "bootstrap_servers": f"{HOST}:{self.ports['kafka']}",
            "claimx_url": f"http://{HOST}:{self.ports['claimx']}",
            "itel_url": f"http://{HOST}:{self.ports['itel']}",
            "itel_on_outage": "wait",
            "itel_unchanged": "skip",
            "outage_patience_seconds": 60,
            "claimx_deadline_seconds": 4,
            "itel_deadline_seconds": 4,
        }


@pytest.fixture
def proxied(claimx: ClaimXSimulator, itel: ItelSimulator, tmp_path: Path) -> Iterator[Proxied]:
    ports = {name: free_port() for name in ("kafka", "claimx", "itel")}
    with Broker.start(tmp_path / "broker", proxy_port=ports["kafka"]) as broker, Toxiproxy.start(tmp_path) as proxies:
        upstream = {"kafka": broker.proxied_port, "claimx": claimx.port, "itel": itel.port}
        for name, port in ports.items():
            proxies.open(name, f"{HOST}:{upstream[name]}", port)
        for role, partitions in TOPICS.items():
            broker.create_topic(f"network.{role}", partitions)
        yield Proxied(Stack(broker, claimx, itel, tmp_path, "network"), proxies, ports)


@dataclass(frozen=True)
class Trial:
    """``events`` at ``rate`` a second, for ``copies`` of the job, of which one in turn is killed ``kills`` times."""

    events: int
    rate: float
    copies: int
    kills: int
    batch: int = 50


@pytest.mark.timeout(1_800)
@pytest.mark.parametrize(
    "trial",
    [
        pytest.param(Trial(480, 20.0, 1, 1), id="short"),
        pytest.param(Trial(2_400, 20.0, 1, 3), id="two minutes", marks=pytest.mark.slow),
        pytest.param(Trial(60_000, 250.0, 2, 12, batch=2_000), id="60,000 events, two copies", marks=pytest.mark.chaos),
    ],
)
def test_every_fault_of_the_network_on_each_way_with_kills(proxied: Proxied, trial: Trial) -> None:
    stack, proxies, chance = proxied.stack, proxied.proxies, random.Random(16)
    step = timedelta(seconds=1 / trial.rate)
    events = Generator(16, start=datetime.now(UTC), step=step, shares=SHARES).tracking_messages(trial.events)
    rounds = max(1, round(trial.events / trial.rate / 120))
    turns = [(name, fault) for fault in FAULTS for name in proxied.ports] * rounds
    chance.shuffle(turns)
    a_turn = trial.events / trial.rate / len(turns)
    kills = iter((life + 1) * len(turns) // (trial.kills + 1) for life in range(trial.kills))
    kill_after = next(kills)
    options = proxied.options | {"max_batch_records": trial.batch}
    with ThreadPoolExecutor(1) as pool, ExitStack() as running:
        jobs = [running.enter_context(stack.running("cabinet", **options)) for _ in range(trial.copies)]
        servers, topic = stack.broker.bootstrap_servers, stack.topic("tracking")
        producing = pool.submit(produce, servers, topic, events, stack.claimx, rate=trial.rate)
        for number, (name, fault) in enumerate(turns, 1):
            FAULTS[fault](proxies, name)
            time.sleep(a_turn * chance.uniform(0.5, 1.0))
            proxies.cure(name)
            for job in jobs:
                assert job.process.poll() is None, f"{fault} at {name}: {job.errors[-2_000:]}"
            if number == kill_after:
                jobs.pop(0).kill()
                jobs.append(running.enter_context(stack.running("cabinet", **options)))
                kill_after = next(kills, 0)
        receipts = producing.result(600)
        stack.settle("cabinet", 600)
        assert [job.stop() for job in jobs] == [0] * trial.copies
    stack.run("cabinet")
    assert kill_after == 0
    assert_everything_accounted_for(stack, receipts, may_be_unchanged=True, at_once=trial.copies > 1)
