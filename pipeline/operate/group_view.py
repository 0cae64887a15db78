"""Where a group stands in a topic, looked at from outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from itel_cabinet.io.kafka import Cluster, LogReader, PartitionLag, Topic, group_positions, open_onlooker

__all__ = ["GroupView"]


class GroupView:
    """A group's positions on a topic, and the age of its oldest unread record. Joins no group and moves no offset.

    Not thread-safe; to be closed. Methods raise KafkaException and UnknownTopicError.
    """

    def __init__(
        self, client: Mapping[str, object], group: str, topic: str, *, epoch: int = 0, timeout: float = 10.0
    ) -> None:
        self.group, self.topic = group, topic
        self._epoch, self._timeout = epoch, timeout
        self._client = dict(client)
        self._cluster = Cluster(client, timeout=timeout)
        self._consumer = open_onlooker(self._client, group)

    def close(self) -> None:
        self._consumer.close()

    def positions(self) -> tuple[Topic, list[PartitionLag]]:
        """The present incarnation of the topic, and where the group stands in it."""
        topic = self._cluster.topic(self.topic, epoch=self._epoch)
        return topic, group_positions(self._cluster, self._consumer, topic, timeout=self._timeout)

    def open_transactions(self, positions: Sequence[PartitionLag], now: float) -> dict[int, float]:
        """For each partition that ends in a transaction which is still open, how many seconds its first record lies
        there, by Kafka's time of it; a record without one counts as just written. One fetch a partition, all at once.
        """
        held = [one for one in positions if one.held]
        if not held:
            return {}
        with self._reader(committed_only=False) as reader:
            firsts = reader.first(self.topic, {one.partition: one.end for one in held})
        times = {p: one.timestamp_ms / 1000 for p, one in firsts.items() if one.timestamp_ms >= 0}
        return {one.partition: max(0.0, now - times.get(one.partition, now)) for one in held}

    def ages(self, positions: Sequence[PartitionLag], now: float) -> dict[int, float]:
        """For each partition with something unread, how many seconds its oldest unread record lies there, by Kafka's
        time of it. ``now`` is in epoch seconds. One fetch a partition, all at once.
        """
        unread = [one for one in positions if one.lag]
        if not unread:
            return {}
        with self._reader() as reader:
            oldest = reader.first(self.topic, {one.partition: one.position for one in unread})
        times = {p: record.timestamp_ms / 1000 for p, record in oldest.items() if record.timestamp_ms >= 0}
        return {p: max(0.0, now - at) for p, at in times.items()}

    def _reader(self, *, committed_only: bool = True) -> LogReader:
        return LogReader(
            self._client,
            epoch=self._epoch,
            timeout=self._timeout,
            committed_only=committed_only,
            cluster=self._cluster,
        )
