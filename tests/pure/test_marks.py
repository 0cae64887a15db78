"""What stands beside a committed offset: written, read, and never a reason to fail."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from itel_cabinet.io.kafka import Mark, newest_mark

SECONDS = st.integers(0, 2**53 - 1)


@given(
    st.builds(
        Mark,
        topic_id=st.from_regex(r"[A-Za-z0-9_:@.-]{1,60}", fullmatch=True),
        job=st.text(max_size=20),
        at=SECONDS,
        starts=st.lists(SECONDS, max_size=10).map(tuple),
        stopped=st.booleans(),
    )
)
def test_a_mark_survives_its_text(mark: Mark) -> None:
    assert Mark.from_text(mark.to_text()) == mark


@given(st.text(max_size=200))
def test_any_text_can_be_read(text: str) -> None:
    mark = Mark.from_text(text)
    assert mark.topic_id == text.partition(" ")[0]
    assert mark.is_for(mark.topic_id)


@pytest.mark.parametrize(
    ("text", "mark"),
    [
        ("", Mark("", job="")),
        ("Zx3kQ", Mark("Zx3kQ")),
        ("Zx3kQ host-7", Mark("Zx3kQ")),
        ("Zx3kQ {}", Mark("Zx3kQ", job="")),
        ('Zx3kQ {"job":"api","at":7,"starts":[1,2],"new":0}', Mark("Zx3kQ", "api", 7, (1, 2))),
        ('Zx3kQ {"job":"api","at":-7}', Mark("Zx3kQ")),
    ],
)
def test_marks_of_others(text: str, mark: Mark) -> None:
    assert Mark.from_text(text) == mark


def test_only_the_last_ten_starts_are_kept() -> None:
    assert Mark.from_text(Mark("t", "api", 7, tuple(range(50))).to_text()).starts == tuple(range(40, 50))


def test_the_newest_mark_is_one_that_a_job_left() -> None:
    marks = [Mark("t", "api", 5), Mark("t", "tracking", 9), Mark("t", "api", 7), Mark("t"), Mark("t", "", 99)]
    assert newest_mark(marks) == Mark("t", "tracking", 9)
    assert newest_mark([Mark("t"), Mark("t", "", 99)]) is None
