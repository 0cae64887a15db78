"""Each process's watch on the error topics: how many of its group's dead letters are open, and for how long.

Counters forget what was before a restart, and nothing else would show a letter that nobody replays until retention
deletes it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from confluent_kafka import KafkaException

from itel_cabinet.io.kafka import ClientConfig, LogReader, UnknownTopicError, resolve_config
from itel_cabinet.io.worker import OUTCOMES, RefusedError, metrics, once_per_process
from itel_cabinet.transforms.open_letters import OpenLetters, describe_old_letters

__all__ = ["LetterWatch", "watch_letters"]

_LOGGER = logging.getLogger(__name__)

_EVERY_SECONDS = 60.0
_NEWEST = 10_000  # messages of a partition; letters before those are not counted


class LetterWatch:
    """The open letters of a group, as of the last look. Not thread-safe. ``clock`` tells epoch seconds."""

    def __init__(self, topics: tuple[str, ...], group: str, clock: Callable[[], float] = time.time) -> None:
        self._topics, self._clock = topics, clock
        self._letters = OpenLetters(group)
        self._next: dict[str, dict[int, int]] = {}

    def look(self, reader: LogReader) -> None:
        """Read what the topics have got since the last look, and report it. Raises what the reader raises."""
        for topic in self._topics:
            starts = {partition: start for partition, (start, _) in reader.bounds(topic).items()}
            places = self._next.setdefault(topic, {})
            for message in reader.all(topic, _NEWEST, places):
                self._letters.add(message)
                places[message.partition] = message.offset + 1
            deleted = self._letters.forget_deleted(topic, starts)
            if deleted:
                metrics.LETTERS_LOST.inc(deleted)
                _LOGGER.warning("%s: retention deleted %d dead letters that nobody had replayed", topic, deleted)
        oldest_at = self._letters.oldest_at
        metrics.OPEN_LETTERS.set(len(self._letters))
        metrics.OLDEST_OPEN_LETTER.set(oldest_at or 0.0)
        OUTCOMES.note("letters", describe_old_letters(len(self._letters), oldest_at, self._clock()))


@once_per_process
def watch_letters(client: ClientConfig, topics: tuple[str, ...], group: str, epoch: int) -> threading.Thread:
    """Look at once, and then each minute for as long as the process lives. A look that fails is left to the next."""
    watch = LetterWatch(topics, group)

    def run() -> None:
        while True:
            try:
                with LogReader(resolve_config(client), epoch=epoch) as reader:
                    watch.look(reader)
            except (KafkaException, UnknownTopicError, RefusedError) as error:
                _LOGGER.debug("the error topics were not looked at: %s", error)
            time.sleep(_EVERY_SECONDS)

    thread = threading.Thread(target=run, name="letters", daemon=True)
    thread.start()
    return thread
