"""Records for a job that dies many times, dealt out by its lives."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from typing import Self

from itel_cabinet.local.samples import Produced


class Feed:
    """Records at most one life's worth ahead of the job, so that its last life has something to do too.

    To be iterated by one thread, while another calls :meth:`next_life` as often as there are lives.
    """

    def __init__(self, records: Iterable[Produced], a_life: int) -> None:
        self._records = records
        self._a_life = a_life
        self._lives = threading.Semaphore(0)
        self._ended = False

    def next_life(self) -> None:
        self._lives.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Let a producer that still waits for a life end."""
        self._ended = True
        self._lives.release()

    def __iter__(self) -> Iterator[Produced]:
        for index, record in enumerate(self._records):
            if index % self._a_life == 0:
                self._lives.acquire()
            if self._ended:
                return
            yield record
