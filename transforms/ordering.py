"""Work on the items of a batch side by side, in order within a key."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Executor, wait
from typing import TypeVar

__all__ = ["MOST_AT_ONCE", "map_in_key_order"]

MOST_AT_ONCE = 256
"""More calls of one batch than this are not made side by side, even if the pool is larger."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_key_order(
    items: Sequence[Item], key: Callable[[Item], Hashable], work: Callable[[Item], Result], pool: Executor
) -> list[Result]:
    """``[work(item) for item in items]``, side by side across keys, in order and never overlapping within one.

    After an exception no further call is begun: an outage must not be waited for again by each item in the queue.

    Raises:
        Exception: what ``work`` raises, but only once every call has ended, so that none overlaps with a later batch's.
    """
    chains: dict[Hashable, list[int]] = defaultdict(list)
    for index, item in enumerate(items):
        chains[key(item)].append(index)
    waiting = deque(chains.values())
    results: dict[int, Result] = {}
    failed = threading.Event()

    def walk() -> None:
        # A future a chain would cost more than a chain that a cache answers; a deque may be shared between threads.
        while waiting:
            try:
                chain = waiting.popleft()
            except IndexError:
                return
            for index in chain:
                if failed.is_set():
                    return
                try:
                    results[index] = work(items[index])
                except BaseException:
                    failed.set()
                    raise

    walkers = [pool.submit(walk) for _ in range(min(len(chains), MOST_AT_ONCE))]
    wait(walkers)
    for walker in walkers:
        walker.result()
    return [results[index] for index in range(len(items))]
