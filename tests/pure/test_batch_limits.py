"""How many records a batch may have."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from itel_cabinet.io.batch_limits import BatchLimit

SIZES = st.integers(0, 10**9)


def test_a_batch_grows_while_it_fits_and_shrinks_at_once() -> None:
    limit = BatchLimit(most_records=10_000, most_bytes=1_000_000, most_seconds=10.0)
    sizes = []
    for each in (100, 100, 100, 100, 100_000, 100, 10**8, 100):
        sizes.append(limit.records)
        limit.learn(limit.records, limit.records * each, 0.0)
    assert sizes == [100, 200, 400, 800, 1_600, 10, 20, 1]
    assert limit.records == 2


def test_an_empty_batch_says_nothing() -> None:
    limit = BatchLimit(most_records=700, most_bytes=1_000, most_seconds=10.0)
    limit.learn(0, 10**9, 60.0)
    assert limit.records == 100
    limit.learn(100, 0, 0.0)
    assert limit.records == 200


def test_a_batch_is_smaller_while_its_work_takes_long() -> None:
    limit = BatchLimit(most_records=500, most_bytes=1_000_000, most_seconds=10.0)
    sizes = []
    for seconds_a_record in (0.001, 0.001, 0.001, 0.2, 0.2, 30.0, 0.001, 0.001):
        sizes.append(limit.records)
        limit.learn(limit.records, 1, limit.records * seconds_a_record)
    assert sizes == [100, 200, 400, 500, 50, 50, 1, 2]


@given(
    st.integers(1, 10**6),
    st.integers(1_000, 10**9),
    st.lists(st.tuples(st.integers(0, 10**6), SIZES, st.floats(0, 1e6))),
)
def test_a_limit_is_always_one_and_never_too_large(
    most: int, most_bytes: int, seen: list[tuple[int, int, float]]
) -> None:
    limit = BatchLimit(most, most_bytes, 10.0)
    for records, size, seconds in seen:
        before = limit.records
        limit.learn(records, size, seconds)
        assert 1 <= limit.records <= min(most, max(before, 2 * before))
        if records and size:
            assert limit.records == 1 or limit.records * size <= most_bytes * records
        if records and seconds:
            assert limit.records == 1 or limit.records * seconds <= 10.0 * records * (1 + 1e-9)
