"""What tests stand on.

| fixture | scope | is |
|---|---|---|
| ``broker`` | session | a real Kafka broker (``local.services.Broker``); to stop one, start your own |
| ``topic`` | test | ``topic(partitions=3, config=None)`` creates a topic that no other test uses and returns its name |
| ``claimx`` | test | a running ``ClaimXSimulator`` that knows no task |
| ``stack`` | test | ``jobs.Stack``: topics, tables and simulators of the test's own, and the jobs that run on them |
| ``cluster`` | session | a real Flink cluster: two TaskManagers, a slot each; to kill its JobManager, start your own |
| ``azurite`` | session | a real object store (``local.services.Azurite``) with the container ``tables`` |
| ``s3`` | test | an ``s3://`` URI that no other test uses, on moto's server, and this process told how to reach it |
| ``azure`` | test | an ``az://`` URI that no other test uses, and this process told how to reach it |
| ``printed`` | test | what commands of `itel-cabinet` print: ``printed.Printed`` |
| ``asked`` | test | what `itel-cabinet status` says of the stack's ``cabinet`` job: ``asked.Asked`` |
| ``itel`` | test | a running ``ItelSimulator`` that checks the committed JSON Schema |

A test that uses the broker or Azurite, itself or through another fixture, is marked ``services``, and one that uses the
cluster ``flink``. A test leaves the cluster without a job of its own, and with two TaskManagers. Nothing skips when one
of them is missing: it fails and says `make setup-tests`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from types import FunctionType
from typing import Any, Protocol

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

from itel_cabinet.local.services import S3, Azurite, Broker, FlinkCluster
from itel_cabinet.local.simulators import ClaimXSimulator, ItelSimulator
from tests.support.asked import Asked
from tests.support.jobs import TOPICS, Stack
from tests.support.printed import Printed

_serial = count(1)
# How long an example takes says more of what else the machine does.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
# What needs a Flink cluster: who shares tests out knows them by their names alone.
_ON_A_CLUSTER = re.compile("flink|cluster|test_workers_")


_TIERS: dict[str, tuple[int, float]] = {}  # how many tests, and the seconds that they took


class TopicFactory(Protocol):
    def __call__(self, partitions: int = 3, config: Mapping[str, str] | None = None) -> str: ...


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name functions by their names: an address would differ between processes that share the tests out."""
    return val.__qualname__.replace(".<locals>", "") if isinstance(val, FunctionType) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by what they stand on; put first what takes longest, so that nothing is left over at the end."""
    for item in items:
        fixtures = {*getattr(item, "fixturenames", ())}
        if {"broker", "azurite", "s3_server"} & fixtures:
            item.add_marker(pytest.mark.services)
        if "cluster" in fixtures:
            item.add_marker(pytest.mark.flink)
            if not _ON_A_CLUSTER.search(item.nodeid):
                raise pytest.UsageError(
                    f"{item.nodeid} uses the cluster: let its name say so ({_ON_A_CLUSTER.pattern})"
                )
    items.sort(key=_turn)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Sum up how long each tier's tests take, as docs/testing.md has the tiers; on processes side by side the sums are
    larger than the time that passes.
    """
    folder = report.nodeid.removeprefix("tests/").partition("/")[0]
    tier = "cluster" if "flink" in report.keywords else "services" if "services" in report.keywords else folder
    number, seconds = _TIERS.get(tier, (0, 0.0))
    _TIERS[tier] = (number + (report.when == "call"), seconds + report.duration)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section("tiers")
    for tier, (number, seconds) in sorted(_TIERS.items(), key=lambda item: item[1][1]):
        terminalreporter.write_line(f"{tier}: {number} tests, {seconds:.0f} s of work")


def _turn(item: pytest.Item) -> int:
    # What asks for more time than others takes longest.
    for turn, marker in enumerate(("flink", "timeout", "services")):
        if item.get_closest_marker(marker):
            return turn
    return 3


class _OneCluster(LoadScopeScheduling):
    """Shares tests out by file, but gives all that need a cluster to one process, so that one runs at a time.

    pytest-xdist 3.8 has groups for this, which pytest 9.2 does not let it attach to tests.
    """

    def _split_scope(self, nodeid: str) -> str:
        return "cluster" if _ON_A_CLUSTER.search(nodeid) else nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _OneCluster:
    return _OneCluster(config, log)


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """Put back the logging of this process: a command that a test calls sets it up for a job."""
    loggers = [logging.getLogger(name) for name in (None, "apache_beam")]
    before = [(logger, logger.handlers[:], logger.level) for logger in loggers]
    yield
    for logger, handlers, level in before:
        logger.handlers[:] = handlers
        logger.setLevel(level)


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with Broker.start(tmp_path_factory.mktemp("broker")) as running:
        yield running


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlinkCluster]:
    with FlinkCluster.start(tmp_path_factory.mktemp("flink"), task_managers=2) as running:
        yield running


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    with Azurite.start(tmp_path_factory.mktemp("azurite")) as running:
        running.create_container("tables")
        yield running


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with S3.start(tmp_path_factory.mktemp("s3")) as running:
        running.create_bucket("tables")
        yield running


@pytest.fixture
def s3(s3_server: S3, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://tables/{next(_serial)}"


@pytest.fixture
def azure(azurite: Azurite, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in azurite.environment.items():
        monkeypatch.setenv(name, value)
    return f"az://tables/{next(_serial)}"


@pytest.fixture
def topic(broker: Broker, request: pytest.FixtureRequest) -> TopicFactory:
    test = re.sub(r"[^A-Za-z0-9_-]", "-", request.node.name)[:80]

    def create(partitions: int = 3, config: Mapping[str, str] | None = None) -> str:
        name = f"{test}.{next(_serial)}"
        broker.create_topic(name, partitions, config)
        return name

    return create


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Printed:
    return Printed(capsys, monkeypatch)


@pytest.fixture
def asked(stack: Stack, capsys: pytest.CaptureFixture[str]) -> Asked:
    return Asked(stack, capsys)


@pytest.fixture
def claimx() -> Iterator[ClaimXSimulator]:
    with ClaimXSimulator() as simulator:
        yield simulator


@pytest.fixture
def itel() -> Iterator[ItelSimulator]:
    with ItelSimulator() as simulator:
        yield simulator


@pytest.fixture
def stack(
    broker: Broker,
    claimx: ClaimXSimulator,
    itel: ItelSimulator,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> Stack:
    prefix = f"{re.sub(r'[^A-Za-z0-9_-]', '-', request.node.name)[:80]}.{next(_serial)}"
    stack = Stack(broker, claimx, itel, tmp_path, prefix)
    for role, partitions in TOPICS.items():
        broker.create_topic(stack.topic(role), partitions)
    return stack
