"""Digests in little memory: as a set of bytes has them."""

from __future__ import annotations

import tracemalloc
from hashlib import blake2b

import pytest
from hypothesis import given
from hypothesis import strategies as st

from itel_cabinet.io.digests import SIZE, DigestSet

# Of few bytes, so that one's end and the next one's beginning make a third, in the same twelve bits.
DIGESTS = st.lists(
    st.binary(min_size=SIZE, max_size=SIZE) | st.text("ab", min_size=SIZE, max_size=SIZE).map(str.encode)
)


@given(DIGESTS, DIGESTS)
def test_it_holds_what_a_set_holds(given: list[bytes], asked: list[bytes]) -> None:
    held, like = DigestSet(), set(given)
    held.update(given)
    held.update(given[:3])
    assert len(held) == len(like)
    assert [one in held for one in (*given, *asked)] == [one in like for one in (*given, *asked)]
    held.clear()
    assert (len(held), [one in held for one in given]) == (0, [False] * len(given))


def test_what_lies_across_two_is_not_held() -> None:
    held = DigestSet()
    held.update([bytes(16), bytes(14) + b"ab"])
    assert bytes(15) + b"a" not in held
    assert bytes(2) + bytes(12) + b"ab" in held


@pytest.mark.parametrize("size", [0, SIZE - 1, SIZE + 1])
def test_another_length_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"a digest has 16 bytes, not {size}"):
        DigestSet().update([bytes(size)])


def test_a_hundred_thousand_take_two_megabytes() -> None:
    held = DigestSet()
    tracemalloc.start()
    try:
        held.update(blake2b(b"%d" % number, digest_size=SIZE).digest() for number in range(100_000))
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(held) == 100_000
    assert size < 3_000_000
