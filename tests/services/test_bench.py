"""The measured ways from Kafka to the history: each by the command line that others call, and with all its rows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from deltalake import DeltaTable

from itel_cabinet.local.samples import Generator, Shares, produce
from itel_cabinet.local.services import Broker
from tests.conftest import TopicFactory

ROOT = Path(__file__).parents[2]
EVENTS = 200


@pytest.mark.parametrize("way", ["beam", "loop"])
def test_a_way_writes_a_row_for_each_event(way: str, broker: Broker, topic: TopicFactory, tmp_path: Path) -> None:
    name = topic()
    nothing_else = dict.fromkeys(Shares.__dataclass_fields__, 0.0) | {"assigned": 1.0}
    messages = [*Generator(1, shares=Shares(**nothing_else)).tracking_messages(EVENTS)]
    produce(broker.bootstrap_servers, name, messages, None)
    command = [sys.executable, "-m", "bench.ways", way, broker.bootstrap_servers, name, str(tmp_path), str(EVENTS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2_000:]
    assert json.loads(done.stdout.splitlines()[-1])["events"] == EVENTS
    rows = DeltaTable(str(tmp_path / "table")).to_pyarrow_table(columns=["event_id"])
    assert sorted(rows["event_id"].to_pylist()) == sorted(json.loads(one.value)["event_id"] for one in messages)
