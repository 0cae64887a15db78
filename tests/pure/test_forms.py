"""Forms: every question by its name, every kind of answer, the photos, and what is wrong with real forms."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from itel_cabinet.transforms.forms import (
    Form,
    Photo,
    Question,
    WrongShapeError,
    parse_details,
    read_int,
    read_text,
    read_timestamp,
)
from tests.support.cabinet_samples import (
    ASSIGNMENT_ID,
    PHOTO_QUESTION_KEYS,
    QUESTIONS,
    answer,
    details,
    group,
    parse_form,
    question,
)

BY_COLUMN = {asked.column: asked for asked in QUESTIONS}
ALL_COLUMNS = {
    "countertops_lf",
    "damage_description",
    "additional_notes",
    *(
        name.format(section)
        for section in ("lower", "upper", "full_height", "island")
        for name in (
            "{}_cabinets_damaged",
            "{}_cabinets_lf",
            "num_damaged_{}_boxes",
            "{}_cabinets_detached",
            "{}_face_frames_doors_drawers_available",
            "{}_face_frames_doors_drawers_damaged",
            "{}_finished_end_panels_damaged",
        )
    ),
    "lower_end_panel_damage_present",
    "upper_end_panel_damage_present",
    "island_end_panel_damage_present",
    "lower_counter_type",
    "island_counter_type",
}


def form(*groups: Any) -> Form:
    return parse_form(details(*groups))


def answered(column: str, given_answer: Any) -> tuple[Any, tuple[str, ...]]:
    """What a question's column holds for an answer, and the warnings about that."""
    asked = BY_COLUMN[column]
    read = form(group(asked.group, question(asked.text, given_answer)))
    return read.answers[column], about_answers(read)


def about_answers(read: Form) -> tuple[str, ...]:
    """The warnings but those that a section is not sent, which one answer by itself calls forth."""
    return tuple(warning for warning in read.warnings if "the section is not sent" not in warning)


def text(content: Any) -> dict[str, Any]:
    return {"type": "text", "text": content}


def number(content: Any) -> dict[str, Any]:
    return {"type": "number", "numberAnswer": {"value": content}}


# ----------------------------------------------------------------------------------------------------------- details


def test_an_answer_is_read() -> None:
    read = details(group("G"))
    assert read.model_dump(exclude={"raw", "text", "groups", "repairs"}) == {
        "assignment_id": ASSIGNMENT_ID,
        "task_id": 32513,
        "project_id": "5400001",
        "task_name": "ITEL Cabinet Repair Form",
        "form_id": "65f0c1d2e3f4a5b6c7d8e9f0",
        "form_response_id": "65f1c1d2e3f4a5b6c7d8e9f1",
        "status": "COMPLETED",
        "assignor_email": "adjuster@example.com",
        "assignee_id": 911,
        "assignor_id": 912,
        "date_assigned": datetime(2026, 1, 9, 9, tzinfo=UTC),
        "date_completed": datetime(2026, 1, 10, 15, 3, 58, tzinfo=UTC),
        "external_link_data": {
            "url": "https://example.com/l/1",
            "first_name": "Pat",
            "last_name": "Roe",
            "email": "pat@example.com",
            "phone": "5550100",
        },
    }
    assert read.groups == [group("G")]
    assert json.loads(read.text) == answer(group("G"))
    assert read.raw == {name: value for name, value in answer(group("G")).items() if name != "response"}
    assert read.without_groups().groups == []
    assert read.has_form


def test_all_but_the_assignment_is_optional() -> None:
    bare = parse_details(b'{"assignmentId": "5430007", "unknown": {}}', ASSIGNMENT_ID)
    values = bare.model_dump(exclude={"assignment_id", "external_link_data", "groups", "raw", "text", "repairs"})
    assert set(values.values()) == {None}
    assert set(bare.external_link_data.model_dump().values()) == {None}
    assert (bare.assignment_id, bare.groups, bare.has_form) == (ASSIGNMENT_ID, [], False)


@pytest.mark.parametrize("wrong", [None, [], {}, True, " "])
def test_optional_values_of_another_type_are_none(wrong: Any) -> None:
    keys = ("taskId", "taskName", "formId", "assignor", "assigneeId", "dateAssigned", "externalLinkData")
    read = details(**dict.fromkeys(keys, wrong))
    assert (read.task_id, read.task_name, read.form_id, read.assignor_email) == (None, None, None, None)
    assert (read.assignee_id, read.date_assigned, read.external_link_data.phone) == (None, None, None)


@pytest.mark.parametrize(
    ("changes", "email"),
    [
        ({"assignor": "a@example.com", "assignorEmail": "b@example.com"}, "a@example.com"),
        ({"assignor": ..., "assignorEmail": "b@example.com"}, "b@example.com"),
        ({"assignor": None, "assignorEmail": "b@example.com"}, "b@example.com"),
        ({"assignor": " ", "assignorEmail": None}, None),
    ],
)
def test_the_assignor_has_two_names(changes: dict[str, Any], email: str | None) -> None:
    assert details(**changes).assignor_email == email


@pytest.mark.parametrize("response", [..., None, {}, {"groups": None}, {"groups": []}])
def test_there_may_be_no_form(response: Any) -> None:
    read = details(response=response)
    assert not read.has_form
    assert parse_form(read) == Form(dict.fromkeys(ALL_COLUMNS), (), {}, ())


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (b"", "the answer is not JSON: EOF while parsing a value"),
        (b"<html>", "the answer is not JSON: expected value at line 1 column 1"),
        (b'{"assignmentId": NaN}', "assignmentId is not the one that was asked for"),
        (b"[" * 100_000, "the answer is not JSON: recursion limit exceeded"),
        (b"[]", "the answer is not an object"),
        (b"{}", "assignmentId is not the one that was asked for"),
        (b'{"assignmentId": 1}', "assignmentId is not the one that was asked for"),
        (b'{"assignmentId": 5430007, "response": []}', "response is neither an object nor null"),
        (
            b'{"assignmentId": 5430007, "response": {"groups": {}}}',
            "response.groups is neither a list nor null",
        ),
    ],
)
def test_an_answer_of_another_shape_is_refused_in_one_line(raw: bytes, error: str) -> None:
    with pytest.raises(WrongShapeError) as refusal:
        parse_details(raw, ASSIGNMENT_ID)
    assert str(refusal.value).startswith(error)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("value", "kept"), [(" a ", "a"), ("", None), (7, "7"), (1.5, "1.5"), (True, None), ([], None), (None, None)]
)
def test_lenient_text(value: Any, kept: str | None) -> None:
    assert read_text(value) == kept


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (7, 7),
        (" 7 ", 7),
        ("-7", -7),
        (2**63, None),
        (-(2**63), -(2**63)),
        ("9" * 19, None),
        (7.0, 7),
        (7.5, None),
        (1e30, None),
        (True, None),
    ],
)
def test_lenient_int(value: Any, kept: int | None) -> None:
    assert read_int(value) == kept


@pytest.mark.parametrize("value", ["", " ", "yesterday", -5, True, 1e300, None, {}])
def test_lenient_timestamp(value: Any) -> None:
    assert read_timestamp(value) is None


# ----------------------------------------------------------------------------------------------------------- answers


def test_the_form_has_36_answers() -> None:
    assert len(QUESTIONS) == 36
    assert BY_COLUMN.keys() == ALL_COLUMNS
    assert len({(asked.group, asked.text) for asked in QUESTIONS}) == 36


@pytest.mark.parametrize("asked", QUESTIONS, ids=lambda asked: asked.column)
def test_each_answer_lands_in_its_column_alone(asked: Question) -> None:
    kinds: dict[str, tuple[Any, Any]] = {
        "yes_no": ("Yes, all of it", True),
        "decimal": (12.5, 12.5),
        "integer": (3.0, 3),
        "text": ("Quartz", "Quartz"),
        "choice": ("Quartz", "Quartz"),
    }
    given_answer, kept = kinds[asked.type]
    # Real forms hold stray spaces around names.
    read = form(group(f" {asked.group}", question(f"{asked.text} ", given_answer)))
    assert read.answers == {**dict.fromkeys(ALL_COLUMNS), asked.column: kept}
    assert type(read.answers[asked.column]) is type(kept)
    raw_answer = True if asked.type == "yes_no" else given_answer
    assert read.raw_data == {asked.group: [{"q": asked.text, "a": raw_answer, "id": "control-1"}]}
    assert about_answers(read) == ()


def test_the_same_text_in_another_group_is_another_question() -> None:
    asked = "Are All The Face Frames, Doors, And Drawers Available?"
    read = form(*(group(name, question(asked, name)) for name in ("Lower Cabinets", "Island Cabinets", "Attic")))
    assert read.answers["lower_face_frames_doors_drawers_available"] == "Lower Cabinets"
    assert read.answers["island_face_frames_doors_drawers_available"] == "Island Cabinets"
    assert read.answers["upper_face_frames_doors_drawers_available"] is None
    assert read.raw_data["Attic"] == [{"q": asked, "a": "Attic", "id": "control-1"}]


@pytest.mark.parametrize("column", [asked.column for asked in QUESTIONS if asked.type == "yes_no"])
def test_yes_and_no_are_read_in_their_columns(column: str) -> None:
    assert column.endswith(("_damaged", "_detached", "_present"))
    assert answered(column, " no ") == (False, ())


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        ("Yes", True),
        (" YES ", True),
        ("Yes, all of them", True),
        ("No", False),
        ("No, they are still on the wall", False),
        ("There is no damage", False),
        ("", None),
        ("  ", None),
    ],
)
def test_how_yes_and_no_begin(words: str, kept: bool | None) -> None:
    assert answered("lower_cabinets_damaged", words) == (kept, ())


@pytest.mark.parametrize("words", ["Yesterday", "Not sure", "none", "Maybe", "Yes."])
def test_neither_yes_nor_no(words: str) -> None:
    warning = f"lower_cabinets_damaged: '{words}' is neither yes nor no"
    assert answered("lower_cabinets_damaged", words) == (None, (warning,))
    read = form(group("Cabinet Types Damaged", question("Lower Cabinets Damaged?", words)))
    assert read.raw_data["Cabinet Types Damaged"][0]["a"] == words


@pytest.mark.parametrize("column", [asked.column for asked in QUESTIONS if asked.type == "text"])
def test_text_is_never_touched(column: str) -> None:
    for words in ("Yes", "No", " Yes, but\nlate ", "There is no trim"):
        assert answered(column, words) == (words, ())
    assert answered(column, text(7)) == ("7", ())
    assert answered(column, text([1])) == (None, (f"{column}: 'list' is not text",))


@pytest.mark.parametrize(
    ("given_answer", "kept"),
    [
        (12.5, 12.5),
        (9, 9.0),
        (0, 0.0),
        (text("12.5"), 12.5),
        (text(" 13. "), 13.0),
        (text(".5"), 0.5),
        (text(""), None),
        ({"type": "number", "numberAnswer": 7}, 7.0),
        ({"type": "number", "numberAnswer": {"name": 8.25}}, 8.25),
        (number(None), None),
        ({"type": "number", "numberAnswer": None}, None),
    ],
)
def test_linear_feet_keep_their_decimals(given_answer: Any, kept: float | None) -> None:
    assert answered("countertops_lf", given_answer) == (kept, ())


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        ("12.5 ft", "12.5 ft"),
        ("nan", "nan"),
        ("1_000", "1_000"),
        ("٣", "٣"),
        ("1e5", "1e5"),
        ("9" * 400, "9" * 47 + "..."),
        (10**400, "1" + "0" * 46 + "..."),
        (True, "True"),
        ({}, "dict"),
    ],
)
def test_other_than_a_number(content: Any, shown: str) -> None:
    assert answered("countertops_lf", text(content)) == (None, (f"countertops_lf: '{shown}' is not a number",))


def test_an_infinite_number() -> None:
    raw = json.dumps(answer(group("Linear Feet Capture", question("Countertops (linear feet)", number(8125))))).replace(
        "8125", "1e999"
    )
    read = parse_form(parse_details(raw.encode(), ASSIGNMENT_ID))
    assert read.answers["countertops_lf"] is None
    assert read.warnings == ("countertops_lf: 'inf' is not a number",)


@pytest.mark.parametrize(
    ("given_answer", "kept"), [(3, 3), (3.0, 3), (text("3"), 3), (text(" 3.0"), 3), (2**31 - 1, 2**31 - 1), (-1, -1)]
)
def test_counts_are_whole(given_answer: Any, kept: int) -> None:
    count, warnings = answered("num_damaged_lower_boxes", given_answer)
    assert (count, type(count), warnings) == (kept, int, ())


@pytest.mark.parametrize(
    ("given_answer", "shown"),
    [(2.5, "2.5"), (text("2.5"), "2.5"), (text("two"), "two"), (2**31, str(2**31)), (1e300, "1e+300")],
)
def test_other_than_a_count(given_answer: Any, shown: str) -> None:
    warning = f"num_damaged_lower_boxes: '{shown}' is not a whole number of 32 bits"
    assert answered("num_damaged_lower_boxes", given_answer) == (None, (warning,))


def test_the_last_answer_wins() -> None:
    asked = BY_COLUMN["num_damaged_lower_boxes"]
    read = form(group(asked.group, question(asked.text, 2.5), question(asked.text, 4)))
    assert (read.answers[asked.column], about_answers(read)) == (4, ())  # 2.5 is no count
    for again, warnings in ((3, (f"{asked.column}: answered more than once: the last answer counts",)), (4, ())):
        twice = form(group(asked.group, question(asked.text, again), question(asked.text, 4)))
        assert (twice.answers[asked.column], about_answers(twice)) == (4, warnings)
    assert [said["a"] for said in read.raw_data[asked.group]] == [2.5, 4]


@pytest.mark.parametrize("no_answer", [None, {}, {"type": "signature", "text": "x"}, {"type": "option"}])
def test_a_question_without_an_answer(no_answer: Any) -> None:
    assert answered("lower_cabinets_damaged", no_answer) == (None, ())


def test_unknown_questions_stay_in_raw_data() -> None:
    counter = "If multiple counter types are present, please list the additional types here"
    read = form(
        group("Lower Cabinet Counter Type", question(counter, text("Yes")), question("Second?", None, None)),
        group(None, question("Who?", "Pat", "control-9")),
    )
    assert read.raw_data == {
        "Lower Cabinet Counter Type": [
            {"q": counter, "a": "Yes", "id": "control-1"},
            {"q": "Second?", "a": None, "id": None},
        ],
        "": [{"q": "Who?", "a": "Pat", "id": "control-9"}],
    }
    assert set(read.answers.values()) == {None}


def test_bad_questions_cost_a_warning_each() -> None:
    read = form(
        "no group",
        {"name": "A", "questionAndAnswers": "none"},
        {"name": "B", "questionAndAnswers": None},
        group("C", 5, {"questionText": None}, question("Q", {"type": "image", "claimMediaIds": 7})),
        group("D", {"questionText": "Q", "responseAnswerExport": [1], "formControl": 5}),
        group("Lower Cabinets", question("Enter Number of Damaged Lower Boxes", 3)),
    )
    assert read.warnings == (
        "groups[0]: not an object",
        "groups[1].questionAndAnswers: not a list",
        "groups[3].questionAndAnswers[0]: not a question",
        "groups[3].questionAndAnswers[1]: not a question",
        "unknown question 'Q' in group 'C'",
        "q: claimMediaIds is not a list",
        "groups[4].questionAndAnswers[0].responseAnswerExport: not an object",
        "lower_cabinets_damaged: not answered, so the section is not sent, though num_damaged_lower_boxes is",
    )
    assert read.answers["num_damaged_lower_boxes"] == 3
    assert read.raw_data["D"] == [{"q": "Q", "a": None, "id": None}]


# ------------------------------------------------------------------------------------------------------------ photos


def photo_keys(*questions: Any) -> list[tuple[str, int, int]]:
    return [(p.question_key, p.claim_media_id, p.display_order) for p in form(group("G", *questions)).photos]


@pytest.mark.parametrize(
    ("asked", "key", "category"),
    [
        ("Upload Overview Photo(s)", "overview_photos", "General"),
        ("Captured Lower Cabinet Box", "lower_cabinet_box", "Lower Cabinets"),
        ("Captured Lower Face Frames, Doors, and Drawers", "lower_face_frames_doors_drawers", "Lower Cabinets"),
        ("Captured Lower Cabinet End Panels", "lower_cabinet_end_panels", "Lower Cabinets"),
        ("Captured Upper Cabinet Box", "upper_cabinet_box", "Upper Cabinets"),
        ("Captured Upper Face Frames, Doors, and Drawers", "upper_face_frames_doors_drawers", "Upper Cabinets"),
        ("Captured Upper Cabinet End Panels", "upper_cabinet_end_panels", "Upper Cabinets"),
        ("Captured Full Height/Pantry Cabinets", "full_height_cabinet_box", "Full Height / Pantry"),
        (
            "Captured Full Height/Pantry Face Frames, Doors, and Drawers",
            "full_height_face_frames_doors_drawers",
            "Full Height / Pantry",
        ),
        ("Captured Full Height/Pantry End Panels", "full_height_end_panels", "Full Height / Pantry"),
        ("Captured Island Cabinet Box", "island_cabinet_box", "Island Cabinets"),
        ("Captured Island Face Frames, Doors, and Drawers", "island_face_frames_doors_drawers", "Island Cabinets"),
        ("Captured Island Cabinet End Panels", "island_cabinet_end_panels", "Island Cabinets"),
    ],
)
def test_each_photo_question(asked: str, key: str, category: str) -> None:
    # The control id belongs to another question: the text goes first.
    read = form(group("Photos", question(f" {asked} ", [97000001], "control-110496963")))
    assert read.photos == (Photo(key, asked, "control-110496963", category, 97000001, 1),)
    assert len(PHOTO_QUESTION_KEYS) == 13


@pytest.mark.parametrize(
    ("control_id", "key"),
    [
        ("control-110496963", "overview_photos"),
        ("control-989806632", "lower_cabinet_box"),
        ("control-374047064", "lower_cabinet_end_panels"),
        ("control-767670035", "upper_cabinet_box"),
        ("control-488956803", "upper_cabinet_end_panels"),
        ("control-734859955", "full_height_cabinet_box"),
        ("control-959393098", "full_height_end_panels"),
        ("control-393858054", "island_cabinet_box"),
        ("control-532071774", "island_cabinet_end_panels"),
    ],
)
def test_a_photo_question_by_its_control(control_id: str, key: str) -> None:
    assert photo_keys(question("Photo(s), please", [5], control_id)) == [(key, 5, 1)]


def test_an_unknown_photo_question_makes_its_own_key() -> None:
    assert photo_keys(question("Sink/Tap left?", [5])) == [("sink_tap_left", 5, 1)]


def test_photos_are_counted_within_a_question() -> None:
    assert photo_keys(
        question("Captured Lower Cabinet Box", [11, None, 0, 12, -3, 11, "13"]),
        question("Captured Upper Cabinet Box", [11]),
        question("Captured Lower Cabinet Box", [12, 14]),
    ) == [
        ("lower_cabinet_box", 11, 1),
        ("lower_cabinet_box", 12, 2),
        ("lower_cabinet_box", 13, 3),
        ("upper_cabinet_box", 11, 1),
        ("lower_cabinet_box", 14, 4),
    ]


def test_other_than_a_media_id() -> None:
    read = form(group("G", question("Captured Island Cabinet Box", [1.5, "x", {}, 2**63, 7])))
    assert [photo.claim_media_id for photo in read.photos] == [7]
    assert read.warnings == tuple(
        f"island_cabinet_box: '{shown}' is not a media id" for shown in ("1.5", "x", "dict", str(2**63))
    )


@pytest.mark.parametrize("media", [None, []])
def test_a_photo_question_without_photos(media: Any) -> None:
    read = form(group("G", question("Captured Island Cabinet Box", {"type": "image", "claimMediaIds": media})))
    assert (read.photos, read.warnings) == ((), ())
    assert read.raw_data["G"][0]["a"] == []


@pytest.mark.parametrize(
    ("group_name", "asked", "category"),
    [
        ("Island lower", "upper", "Island Cabinets"),
        ("Lower", "upper", "Lower Cabinets"),
        ("Pantry", "Upper", "Upper Cabinets"),
        ("PANTRY", "q", "Full Height / Pantry"),
        ("Full Height", "Countertop", "Full Height / Pantry"),
        ("Any", "Countertops", "Countertops"),
        ("Full-Height", "q", "General"),
        (None, "q", "General"),
    ],
)
def test_topic_categories(group_name: Any, asked: str, category: str) -> None:
    assert [photo.topic_category for photo in form(group(group_name, question(asked, [1]))).photos] == [category]


# --------------------------------------------------------------------------------------------------------- any shape

_SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
_ANY = st.recursive(
    _SCALAR,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["value", "name", "id"]), inner),
    max_leaves=5,
)
_ANSWER = _ANY | st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "number", "option", "image", "other"])},
    optional={"text": _ANY, "numberAnswer": _ANY, "optionAnswer": _ANY, "claimMediaIds": _ANY},
)
_QUESTION = _ANY | st.fixed_dictionaries(
    {"questionText": st.sampled_from([asked.text for asked in QUESTIONS]) | _ANY, "responseAnswerExport": _ANSWER},
    optional={"formControl": _ANY},
)
ANY_GROUPS = st.lists(
    _ANY
    | st.fixed_dictionaries(
        {
            "name": st.sampled_from([asked.group for asked in QUESTIONS]) | _ANY,
            "questionAndAnswers": st.lists(_QUESTION, max_size=4) | _ANY,
        }
    ),
    max_size=3,
)


@given(ANY_GROUPS)
def test_any_groups_make_a_form(groups: list[Any]) -> None:
    raw = json.dumps(answer(*groups)).replace("NaN", "1e999").replace("Infinity", "1e999")
    read = parse_form(parse_details(raw.encode(), ASSIGNMENT_ID))
    assert read.answers.keys() == ALL_COLUMNS
    kinds = {"yes_no": bool, "decimal": float, "integer": int, "text": str, "choice": str}
    for asked in QUESTIONS:
        assert read.answers[asked.column] is None or type(read.answers[asked.column]) is kinds[asked.type]
    assert all(0 < photo.claim_media_id < 2**63 for photo in read.photos)
