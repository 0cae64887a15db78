"""What a savepoint holds of this project's own, byte for byte: a job goes on from one that an older version left, and
can be put back to that version, only while both sides of this stay as they are.
"""

from __future__ import annotations

from typing import Any

import apache_beam as beam
import pytest
from apache_beam.coders.coders import Coder, FloatCoder, LengthPrefixCoder, StrUtf8Coder, TupleCoder
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.utils.timestamp import Timestamp

from itel_cabinet.io.kafka import KafkaSource, ReadFromKafka, client_config
from itel_cabinet.io.kafka.spec import ShardPosition

SHARDS = [
    '{"v": 1, "shard": 0, "shards": 4, "salt": 164}',
    '{"v": 1, "shard": 1, "shards": 4, "salt": 163}',
]
TOPIC_ID = "fybja7r1RUyuRpQTyC5cfA"
# Cut out of a savepoint that a job of commit 8ad864f left on Flink 1.19: the shard, its restriction, the state of the
# watermark estimator (which is Beam's own), and the restriction's size.
RESIDUAL = (
    b'.{"v": 1, "shard": 0, "shards": 4, "salt": 164}'
    b'E{"offsets": {"0": 300}, "topic_id": "fybja7r1RUyuRpQTyC5cfA", "v": 1}'
    b"s\xff\x80\x05\x95g\x00\x00\x00\x00\x00\x00\x00\x8c\x1bapache_beam.utils.timestamp\x94\x8c\tTimestamp\x94\x93\x94)"
    b"\x81\x94}\x94(\x8c\n_precision\x94K\x06\x8c\x08_seconds\x94J\xcd}\x08k\x8c\x0b_subseconds\x94JX\x92\x01\x00ub."
    b"?\xf0\x00\x00\x00\x00\x00\x00"
)
# The other shapes of a restriction, by the coder of that commit.
RESTRICTIONS = {
    b'{"offsets": {"0": 300, "12": 0, "4": 7}, "topic_id": "fybja7r1RUyuRpQTyC5cfA", "v": 1}': ShardPosition(
        TOPIC_ID, {0: 300, 4: 7, 12: 0}
    ),
    b'{"ends": {"0": 350, "4": 7}, "offsets": {"0": 300, "4": 7}, "topic_id": "fybja7r1RUyuRpQTyC5cfA", "v": 1}': (
        ShardPosition(TOPIC_ID, {0: 300, 4: 7}, {0: 350, 4: 7})
    ),
}


@pytest.fixture
def source() -> KafkaSource:
    return KafkaSource(client_config("broker:9092"), "orders", "billing", shards=4)


@pytest.fixture
def state_coders(source: KafkaSource) -> tuple[Coder, Coder]:
    """The coders of the restriction and of the watermark estimator's state, as a runner gets them with the job."""
    pipeline = beam.Pipeline()
    _ = pipeline | ReadFromKafka(source)
    job, context = pipeline.to_runner_api(return_context=True)
    payloads = (
        beam_runner_api_pb2.ParDoPayload.FromString(transform.spec.payload)
        for transform in job.components.transforms.values()
        if transform.spec.urn == "beam:transform:pardo:v1"
    )
    [coder_id] = [payload.restriction_coder_id for payload in payloads if payload.restriction_coder_id]
    restriction, watermark = context.coders.get_by_id(coder_id).coders()
    return restriction, watermark


def test_what_an_old_savepoint_holds_is_read_and_written_as_before(state_coders: tuple[Coder, Coder]) -> None:
    state = TupleCoder([LengthPrefixCoder(coder) for coder in state_coders])
    residual: Any = TupleCoder([TupleCoder([StrUtf8Coder(), state]), FloatCoder()])
    (shard, (position, watermark)), size = residual.decode(RESIDUAL)
    assert (shard, position, size) == (SHARDS[0], ShardPosition(TOPIC_ID, {0: 300}), 1.0)
    assert isinstance(watermark, Timestamp)
    assert residual.encode(((shard, (position, watermark)), size)) == RESIDUAL


def test_every_shape_of_an_old_restriction_is_read_and_written_as_before(state_coders: tuple[Coder, Coder]) -> None:
    coder, _ = state_coders
    assert {encoded: coder.decode(encoded) for encoded in RESTRICTIONS} == RESTRICTIONS
    assert [coder.encode(position) for position in RESTRICTIONS.values()] == list(RESTRICTIONS)


def test_shards_are_the_elements_that_old_savepoints_hold(source: KafkaSource) -> None:
    assert source.elements()[:2] == SHARDS
