"""Digests by day: as sets have them, in little memory."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date
from hashlib import blake2b
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from itel_cabinet.io.digests import DigestsByDay
from itel_cabinet.io.worker import RefusedError

FIRST, SECOND = date(2026, 1, 10), date(2026, 1, 11)
DIGESTS = st.lists(st.sampled_from([f"{number:032x}" for number in range(20)]))


@given(DIGESTS, DIGESTS, DIGESTS)
def test_it_holds_what_sets_hold(first: list[str], second: list[str], asked: list[str]) -> None:
    held = DigestsByDay()
    held.add(FIRST, first)
    held.add(SECOND, second)
    held.add(SECOND, second[:3])
    assert len(held) == len({*first}) + len({*second})
    assert held.find(asked) == {*asked} & {*first, *second}
    held.forget(FIRST)
    assert (len(held), held.find(asked)) == (len({*second}), {*asked} & {*second})
    held.add(FIRST, first)
    assert held.find(asked) == {*asked} & {*first, *second}


def resident_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS"))) / 1024


def test_many_take_no_more_memory_than_few() -> None:
    def some(numbers: Iterable[int]) -> list[str]:
        return [blake2b(b"%d" % number, digest_size=16).hexdigest() for number in numbers]

    held = DigestsByDay()
    held.add(FIRST, some(range(50_000)))
    before = resident_mb()
    for start in range(50_000, 300_000, 10_000):
        held.add(FIRST, some(range(start, start + 10_000)))
    assert len(held) == 300_000
    assert held.find(some([0, 299_999, 300_000])) == {*some([0, 299_999])}
    assert resident_mb() - before < 6  # in a set these would take 35 MB more


def test_a_disk_without_room_is_named() -> None:
    held = DigestsByDay()
    held._database.execute("PRAGMA max_page_count = 3")
    with pytest.raises(RefusedError, match=r"^the events that are settled cannot be kept in .*disk is full: free some"):
        held.add(FIRST, [f"{number:032x}" for number in range(10_000)])
