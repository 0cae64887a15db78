"""Who reads a topic, as offsets say it, and what a move from one group to another would leave undone."""

from __future__ import annotations

from itertools import product

import pytest

from itel_cabinet.io.kafka import Committed, Mark
from itel_cabinet.pipeline.operate import ReadingGroup, describe_left_behind, find_job, lowest_offsets, reading_groups

NOW = 10_000


@pytest.mark.parametrize(
    ("mark", "job", "silent", "read_with"),
    [
        (Mark("t", "api", NOW - 10), "api", False, True),
        (Mark("t", "api", NOW - 10, stopped=True), "api", True, False),
        (Mark("t", "api", NOW - 400), "api", True, False),
        (Mark("t", "", NOW - 10), None, False, False),
        (Mark("t"), None, False, False),
        (Mark("", ""), None, False, False),
    ],
)
def test_whether_a_job_reads_with_a_group(mark: Mark, job: str | None, silent: bool, read_with: bool) -> None:
    group = reading_groups({"g": {0: Committed(5, mark)}}, "t")["g"]
    assert (group.job, dict(group.offsets)) == (job, {0: 5})
    assert (group.is_silent(NOW), group.is_read_with(NOW)) == (silent, read_with)


def test_offsets_of_another_topic_are_none() -> None:
    assert reading_groups({"g": {0: Committed(5, Mark("earlier", "api", NOW))}}, "t") == {}


def test_a_group_without_word_is_known_by_its_name() -> None:
    groups = reading_groups({"itel_cabinet_api_worker_group": {0: Committed(5, Mark("t"))}}, "t")
    assert groups["itel_cabinet_api_worker_group"].job == "api"
    assert find_job("itel_cabinet_group", groups) == "cabinet"
    assert find_job("another", groups) is None


def test_of_several_groups_the_lowest_offset_counts_and_only_where_all_have_one() -> None:
    groups = [ReadingGroup("a", None, {0: 5, 1: 7, 2: 1}), ReadingGroup("b", None, {0: 6, 1: 2})]
    assert lowest_offsets(groups) == {0: 5, 1: 2}
    assert lowest_offsets([]) == {}


def test_what_the_other_half_has_left_is_never_skipped() -> None:
    """Over all jobs that a group may be of, all that may go on, and who is behind."""
    jobs = ("tracking", "api", "cabinet", "trigger", None)
    for taken, to, behind in product(jobs, (*jobs[:3], None), ("tracking", "api")):
        groups = {"taken": ReadingGroup("taken", taken, {0: 9}), "other": ReadingGroup("other", behind, {0: 4})}
        left = describe_left_behind([groups["taken"]], to, groups)
        halves = {taken, behind} == {"tracking", "api"}
        assert (left is not None) == (halves and to in (None, "cabinet", behind)), (taken, to, behind)
        assert describe_left_behind([*groups.values()], to, groups) is None
        level = groups | {"other": ReadingGroup("other", behind, {0: 9})}
        assert describe_left_behind([groups["taken"]], to, level) is None
