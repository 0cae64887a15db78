"""Work on the items of a batch side by side, in order within a key."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Executor, Future, wait
from typing import Generic, TypeVar

__all__ = ["MOST_AT_ONCE", "map_in_key_order"]

MOST_AT_ONCE = 256
"""More calls of one batch than this are not made side by side, even if the pool is larger."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_key_order(
    items: Sequence[Item],
    key: Callable[[Item], Hashable],
    work: Callable[[Item], Result],
    pool: Executor,
    calls_at_once: Callable[[], int] = lambda: MOST_AT_ONCE,
) -> list[Result]:
    """``[work(item) for item in items]``, side by side across keys, in order and never overlapping within one.

    ``calls_at_once`` tells how many calls are worth making side by side; it is asked again before each, from any of the
    threads.

    After an exception no further call is begun: an outage must not be waited for again by each item in the queue.

    Raises:
        Exception: what ``work`` raises, but only once every call has ended, so that none overlaps with a later batch's.
    """
    chains: dict[Hashable, list[int]] = defaultdict(list)
    for index, item in enumerate(items):
        chains[key(item)].append(index)
    results = _Walk(items, work, pool, calls_at_once, deque(chains.values())).done()
    return [results[index] for index in range(len(items))]


class _Walk(Generic[Item, Result]):
    """Walkers, each of which takes one chain of items after the other.

    A future a chain would cost more than a chain that a cache answers. Where fewer threads than there are have work,
    those that wait for a turn would only take the interpreter from them.
    """

    def __init__(
        self,
        items: Sequence[Item],
        work: Callable[[Item], Result],
        pool: Executor,
        calls_at_once: Callable[[], int],
        chains: deque[list[int]],
    ) -> None:
        self._items, self._work, self._pool, self._at_once, self._waiting = items, work, pool, calls_at_once, chains
        self._results: dict[int, Result] = {}
        self._failed = threading.Event()
        self._walkers: list[Future[None]] = []
        self._walking, self._lock = 0, threading.Lock()

    def done(self) -> dict[int, Result]:
        """All results, by index."""
        with self._lock:
            self._send_walkers()
        for walker in self._walkers:  # which may become more meanwhile
            wait([walker])
        for walker in self._walkers:
            walker.result()
        return self._results

    def _send_walkers(self) -> None:
        while self._walking < min(self._at_once(), MOST_AT_ONCE, self._walking + len(self._waiting)):
            self._walkers.append(self._pool.submit(self._walk))
            self._walking += 1

    def _next_chain(self) -> list[int] | None:
        """None where there is none left, or too many walk."""
        with self._lock:
            if not self._waiting or self._walking > max(1, self._at_once()):
                self._walking -= 1
                return None
            chain = self._waiting.popleft()
            self._send_walkers()
            return chain

    def _walk(self) -> None:
        while chain := self._next_chain():
            for index in chain:
                if self._failed.is_set():
                    return
                try:
                    self._results[index] = self._work(self._items[index])
                except BaseException:
                    self._failed.set()
                    raise
