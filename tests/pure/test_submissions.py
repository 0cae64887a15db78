"""What is handed to iTel, what is not, and that nothing about a person comes back into an error text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from itel_cabinet.transforms.enrichment import CabinetTask
from itel_cabinet.transforms.forms import TaskDetails
from itel_cabinet.transforms.records import Failure, Skip
from itel_cabinet.transforms.submissions import Submission, build_submissions, scrub
from tests.support.cabinet_samples import CONTRACT, build_payload, details, event, group, parse_form, question, record

NOW = 1_768_057_500.0
FORM = (
    group("Damage Description", question("Enter Damaged Description", {"type": "text", "text": "Leak at Mrs Roe's"})),
    group("Linear Feet Capture", question("Countertops (linear feet)", 9.5)),
)


def task(found: TaskDetails | None = None, *, offset: int = 41, **changes: Any) -> CabinetTask:
    known = found or details(*FORM)
    form = parse_form(known) if known.has_form else None
    return CabinetTask(record(b"", offset=offset), event(**changes), known, form)


def build(*tasks: CabinetTask, statuses: tuple[str, ...] = ("COMPLETED",)) -> list[Submission | Failure | Skip]:
    return list(build_submissions(tasks, contract=CONTRACT, statuses=frozenset(statuses), clock=lambda: NOW))


def submission(*personal: str) -> Submission:
    return Submission(record(b""), "e1", 7, b"{}", tuple(sorted(personal, key=len, reverse=True)))


# -- what becomes of a task


def test_a_completed_form_becomes_its_payload() -> None:
    one = task()
    (built,) = build(one)
    assert isinstance(built, Submission)
    assert one.form is not None
    assert (built.record, built.event_id, built.assignment_id) == (one.record, "9f2c" * 16, 5430007)
    assert built.payload == build_payload(one.details, one.form, one.event)
    content = json.loads(built.payload)
    assert (content["assignmentId"], content["projectId"], content["countertopsLf"]) == (5430007, 5400001, 9.5)


def test_what_is_about_a_person_is_known_longest_first() -> None:
    (built,) = build(task())
    assert isinstance(built, Submission)
    assert sorted(built.personal) == [
        "5550100",
        "Leak at Mrs Roe's",
        "Pat",
        "Roe",
        "adjuster@example.com",
        "https://example.com/l/1",
        "pat@example.com",
    ]
    assert list(map(len, built.personal)) == sorted(map(len, built.personal), reverse=True)
    assert "Roe" not in repr(built)


def test_each_task_has_its_outcome_in_its_place() -> None:
    tasks = [
        task(offset=1, task_status="ASSIGNED"),
        task(offset=2),
        task(details(response=None), offset=3),
        task(details(*FORM, formResponseId=None, dateAssigned=...), offset=4),
        task(offset=5, project_id="not a number"),
        task(offset=6, task_status="Cancelled"),
    ]
    assigned, good, formless, incomplete, no_project, cancelled = build(*tasks)
    assert [assigned, cancelled] == [Skip(tasks[n].record, "status_not_submitted") for n in (0, 5)]
    assert isinstance(good, Submission)
    assert [formless, incomplete, no_project] == [
        Failure(
            one.record,
            "payload",
            error_class,
            error,
            first_at=NOW,
            last_at=NOW,
            event_id="9f2c" * 16,
            assignment_id=5430007,
        )
        for one, error_class, error in (
            (tasks[2], "no_form", "ClaimX has no form for this task yet; replay the event once it has"),
            (tasks[3], "incomplete", "required by iTel but missing: formResponseId, dateAssigned"),
            (tasks[4], "incomplete", "required by iTel but missing: projectId"),
        )
    ]


def test_a_task_that_claimx_does_not_call_completed_yet_is_a_failure() -> None:
    one = task(details(*FORM, status="IN_PROGRESS"))
    (failed,) = build(one)
    assert isinstance(failed, Failure)
    assert (failed.stage, failed.error_class) == ("payload", "not_completed_yet")
    assert failed.error == "ClaimX says IN_PROGRESS, the event COMPLETED; replay it once both agree"


def test_other_statuses_are_submitted_where_the_option_says_so() -> None:
    one = task(task_status="in_progress")
    assert build(one) == [Skip(one.record, "status_not_submitted")]
    (built,) = build(one, statuses=("COMPLETED", "IN_PROGRESS"))
    assert isinstance(built, Submission)
    assert json.loads(built.payload)["status"] == "IN_PROGRESS"


def test_nothing_gives_nothing() -> None:
    assert build() == []


# -- scrubbing


@pytest.mark.parametrize(
    ("personal", "text", "scrubbed"),
    [
        (("Roe",), "bad name Roe", "bad name [redacted]"),
        (("Roe",), "ROE and roe", "[redacted] and [redacted]"),
        (("pat@example.com", "Pat"), "no pat@example.com, no pat", "no [redacted], no [redacted]"),
        (("a.c",), "abc a.c", "abc [redacted]"),
        (("(1+1)*", "[x]", "a|b", "^$", "\\d"), "1 (1+1)* [x] a|b ^$ \\d", "1 " + " ".join(["[redacted]"] * 5)),
        # A short value is not sought within the mark that another has left.
        (("Edgar", "ed"), "Edgar, ed", "[redacted], [redacted]"),
        # As JSON has it, letters escaped or not.
        (('a "leak"\nhere',), '{"d":"a \\"leak\\"\\nhere"}', '{"d":"[redacted]"}'),
        (
            ("Zoë",),
            '{"a":"Zo\\u00eb","b":"Zo\\u00EB","c":"zoË"}',
            '{"a":"[redacted]","b":"[redacted]","c":"[redacted]"}',
        ),
        # An excerpt is one line.
        (("a leak\n\n  under the\tsink",), "no: a leak under the sink", "no: [redacted]"),
        # An excerpt may end anywhere, also within a value or its JSON spelling.
        (("a long story about a leak",), "what is A long story ab", "what is [redacted]"),
        (('a "long" story',), '{"d":"a \\"long\\', '{"d":"[redacted]'),
        (("patricia",), "who is pat", "who is pat"),
        ((), "as it is", "as it is"),
        (("Roe",), "", ""),
    ],
)
def test_an_answer_without_what_is_about_a_person(personal: tuple[str, ...], text: str, scrubbed: str) -> None:
    assert scrub(text, [submission(*personal)]) == scrubbed


VALUES = st.text(st.characters(codec="utf-8"), min_size=2, max_size=12).filter(lambda text: len(text.strip()) > 1)
NOISE = st.text(st.characters(codec="utf-8"), max_size=8)


@given(
    personal=st.lists(VALUES.map(str.strip), min_size=1, max_size=5, unique=True),
    noise=st.lists(NOISE, min_size=1, max_size=6),
    picks=st.lists(st.integers(0, 4), min_size=6, max_size=6),
    spelling=st.sampled_from(["plain", "json", "ascii", "upper"]),
    cut=st.integers(1, 120),
)
@example(personal=["re", "redacted"], noise=["x", "y"], picks=[0, 1, 0, 0, 0, 0], spelling="plain", cut=99)
def test_no_personal_value_survives(
    personal: list[str], noise: list[str], picks: list[int], spelling: str, cut: int
) -> None:
    spellings: dict[str, Callable[[str], str]] = {
        "plain": str,
        "json": lambda value: json.dumps(value, ensure_ascii=False)[1:-1],
        "ascii": lambda value: json.dumps(value)[1:-1],
        "upper": lambda value: value.upper() if re.fullmatch(re.escape(value), value.upper(), re.I) else value,
    }
    spell = spellings[spelling]
    echoed = "".join(part + spell(personal[pick % len(personal)]) for part, pick in zip(noise, picks, strict=False))
    excerpt = " ".join(echoed.split())[:cut]  # as io/http/connection.py makes one
    left = scrub(excerpt, [submission(*personal)]).split("[redacted]")
    for written in (" ".join(form.split()) for value in personal for form in (value, spell(value))):
        assert not any(re.search(re.escape(written), part, re.IGNORECASE) for part in left)
        assert len(written) < 4 or not left[-1].endswith(written[:4])
