"""Side by side across keys, in order within one, and nothing left running behind an exception."""

from __future__ import annotations

import gc
import itertools
import threading
import weakref
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from itel_cabinet.transforms.ordering import MOST_AT_ONCE, map_in_key_order

PATIENCE_SECONDS = 60


class Lanes:
    """Work that notes what it is given, and sees two calls of one key at once. An item is ``(key, number)``."""

    def __init__(self) -> None:
        self.done: dict[int, list[int]] = defaultdict(list)
        self.overlaps = 0
        self._running: set[int] = set()
        self._lock = threading.Lock()

    def __call__(self, item: tuple[int, int]) -> tuple[int, int]:
        key, number = item
        with self._lock:
            self.overlaps += key in self._running
            self._running.add(key)
        threading.Event().wait(0.0005)  # lets the others in
        with self._lock:
            self._running.discard(key)
            self.done[key].append(number)
        return key, -number


@given(keys=st.lists(st.integers(0, 4), max_size=24), threads=st.integers(1, 6))
def test_results_are_in_input_order_and_calls_in_order_within_a_key(keys: list[int], threads: int) -> None:
    items = [(key, number) for number, key in enumerate(keys)]
    lanes = Lanes()
    with ThreadPoolExecutor(threads) as pool:
        results = map_in_key_order(items, lambda item: item[0], lanes, pool)
    assert results == [(key, -number) for key, number in items]
    assert lanes.done == {key: [number for k, number in items if k == key] for key in set(keys)}
    assert lanes.overlaps == 0


def test_keys_are_worked_on_side_by_side() -> None:
    meeting = threading.Barrier(3)

    def meet(item: int) -> int:
        meeting.wait(PATIENCE_SECONDS)  # returns only once all three are here
        return item * 10

    with ThreadPoolExecutor(3) as pool:
        assert map_in_key_order([1, 2, 3], lambda item: item, meet, pool) == [10, 20, 30]


def test_equal_items_are_each_worked_on() -> None:
    calls = itertools.count(1)
    with ThreadPoolExecutor(2) as pool:
        results = map_in_key_order(["a", "a", "a"], str, lambda item: f"{item}{next(calls)}", pool)
    assert results == ["a1", "a2", "a3"]


def test_an_exception_leaves_only_when_every_call_has_ended() -> None:
    all_begun = threading.Barrier(4)
    ended: list[str] = []

    def work(item: str) -> str:
        all_begun.wait(PATIENCE_SECONDS)
        if item == "bad":
            raise LookupError("bad")
        threading.Event().wait(0.05)  # long enough for an exception that does not wait
        ended.append(item)
        return item

    with ThreadPoolExecutor(4) as pool:
        with pytest.raises(LookupError, match=r"^'?bad'?$"):
            map_in_key_order(["bad", "a", "b", "c"], lambda item: item, work, pool)
        assert sorted(ended) == ["a", "b", "c"]


@pytest.mark.parametrize("keys", [1, 4], ids=["one key", "several keys"])
def test_after_an_exception_no_call_is_begun(keys: int) -> None:
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        if item == 2:
            raise ValueError("two")
        return item

    with ThreadPoolExecutor(1) as pool, pytest.raises(ValueError, match="two"):
        map_in_key_order([1, 2, 3, 4], lambda item: item % keys, work, pool)
    assert begun == [1, 2]


def test_of_several_exceptions_one_is_raised() -> None:
    both_begun = threading.Barrier(2)

    def work(item: int) -> int:
        both_begun.wait(PATIENCE_SECONDS)
        raise ValueError(f"item {item}")

    with ThreadPoolExecutor(2) as pool, pytest.raises(ValueError, match=r"^item [12]$"):
        map_in_key_order([1, 2], lambda item: item, work, pool)


def test_a_batch_of_more_keys_than_are_worked_on_at_once() -> None:
    items = list(range(3 * MOST_AT_ONCE))
    with ThreadPoolExecutor(8) as pool:
        assert map_in_key_order(items, lambda item: item, lambda item: -item, pool) == [-item for item in items]


def test_as_many_walk_as_are_worth_it_now() -> None:
    worth, walking, seen, lock = iter([2] * 40 + [6] * 40 + [1] * 40), [0], list[int](), threading.Lock()
    limits: list[int] = []

    def at_once() -> int:
        limits.append(next(worth, 1))
        return limits[-1]

    def work(item: int) -> int:
        with lock:
            walking[0] += 1
            seen.append(walking[0])
        threading.Event().wait(0.001)  # lets the others in
        with lock:
            walking[0] -= 1
        return -item

    with ThreadPoolExecutor(16) as pool:
        assert map_in_key_order(range(100), lambda item: item, work, pool, at_once) == [-item for item in range(100)]
    assert max(seen[:10]) <= 2
    assert max(seen) == 6
    assert set(seen[-10:]) == {1}


def test_a_walk_leaves_nothing_for_the_collector() -> None:
    """What waits for it holds a batch's answers: 100 MB, with a job that has the collector look seldom."""

    class Answer:
        pass

    gc.collect()
    gc.disable()
    try:
        with ThreadPoolExecutor(4) as pool:
            answers = map_in_key_order(range(20), lambda item: item, lambda _: Answer(), pool, lambda: 2)
        gone = [weakref.ref(answer) for answer in answers]
        del answers
        assert [one() for one in gone] == [None] * 20
    finally:
        gc.enable()


def test_nothing_to_do() -> None:
    with ThreadPoolExecutor(1) as pool:
        assert map_in_key_order([], lambda item: item, lambda item: item, pool) == []
