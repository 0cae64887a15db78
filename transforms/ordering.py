"""Working on a batch side by side without disturbing the order that matters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Executor, wait
from typing import TypeVar

__all__ = ["in_order_per_key"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order_per_key(
    items: Sequence[Item], key: Callable[[Item], Hashable], work: Callable[[Item], Result], pool: Executor
) -> list[Result]:
    """``[work(item) for item in items]``, side by side across keys, in order and never overlapping within one.

    Raises what ``work`` raises, but only once every call has ended, so that no call can overlap with a later batch's.
    """
    chains: dict[Hashable, list[int]] = defaultdict(list)
    for index, item in enumerate(items):
        chains[key(item)].append(index)

    def walk(chain: list[int]) -> list[tuple[int, Result]]:
        return [(index, work(items[index])) for index in chain]

    running = [pool.submit(walk, chain) for chain in chains.values()]
    wait(running)
    done = dict(pair for chain in running for pair in chain.result())
    return [done[index] for index in range(len(items))]
