"""The network between the job and each of Kafka, ClaimX and iTel fails in every way that Toxiproxy knows, while the job
is killed now and then: nothing is lost, and no row or key is there twice.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
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
            "outage_patience_seconds": 60,
            "claimx_deadline_seconds": 4,
            "itel_deadline_seconds": 4,
            "max_batch_records": 50,
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


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("seconds", "kills"),
    [pytest.param(36, 1, id="short"), pytest.param(120, 3, id="two minutes", marks=pytest.mark.slow)],
)
def test_every_fault_of_the_network_on_each_way_with_kills(proxied: Proxied, seconds: int, kills: int) -> None:
    stack, proxies, chance = proxied.stack, proxied.proxies, random.Random(16)
    events = Generator(16, start=datetime.now(UTC), shares=SHARES).tracking_messages(int(seconds * EVENTS_A_SECOND))
    turns = [(name, fault) for fault in FAULTS for name in proxied.ports]
    chance.shuffle(turns)
    a_turn = seconds / len(turns)
    kill_after = {(life + 1) * len(turns) // (kills + 1) for life in range(kills)}
    with ThreadPoolExecutor(1) as pool:
        servers, topic = stack.broker.bootstrap_servers, stack.topic("tracking")
        producing = pool.submit(produce, servers, topic, events, stack.claimx, rate=EVENTS_A_SECOND)
        left = iter(turns)
        number = 0
        for _ in range(kills + 1):
            with stack.running("cabinet", **proxied.options) as job:
                for name, fault in left:
                    FAULTS[fault](proxies, name)
                    time.sleep(a_turn * chance.uniform(0.5, 1.0))
                    proxies.cure(name)
                    assert job.process.poll() is None, f"{fault} at {name}: {job.errors}"
                    number += 1
                    if number in kill_after:
                        job.kill()
                        break
                else:
                    receipts = producing.result(60)
                    stack.settle("cabinet", 120)
                    assert job.stop() == 0, job.errors
    assert number == len(turns)
    assert_everything_accounted_for(stack, receipts)
