"""Payloads: what iTel receives for a form, what is never sent, and the documents committed for iTel to read."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from jsonschema import Draft7Validator

from itel_cabinet.transforms.contracts import Refusal
from tests.pure.test_forms import ANY_GROUPS
from tests.support.cabinet_samples import (
    ASSIGNMENT_ID,
    CONTRACT,
    EXAMPLE,
    PHOTO_QUESTION_KEYS,
    QUESTIONS,
    build_payload,
    details,
    event,
    group,
    parse_form,
    question,
    refuse_payload,
)

SECTIONS = {
    "lower": "lowerCabinets",
    "upper": "upperCabinets",
    "full_height": "fullHeightCabinets",
    "island": "islandCabinets",
}
SCHEMA = CONTRACT.file.body_schema
BY_COLUMN = {asked.column: asked for asked in QUESTIONS}
TEXT_OF = {key: text for text, key in PHOTO_QUESTION_KEYS.items()}


def built(*groups: Any, event_changes: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    read = details(*groups, **changes)
    payload = build_payload(read, parse_form(read), event(**(event_changes or {})))
    sent: dict[str, Any] = json.loads(payload)
    Draft7Validator(SCHEMA).validate(sent)
    return sent


def asking(column: str, given_answer: Any) -> dict[str, Any]:
    return group(BY_COLUMN[column].group, question(BY_COLUMN[column].text, given_answer))


def photos(key: str, *media: int) -> dict[str, Any]:
    return group("Photos", question(TEXT_OF[key], list(media)))


def test_a_form_as_itel_receives_it() -> None:
    sent = built(
        asking("lower_cabinets_damaged", "Yes, all"),
        asking("lower_cabinets_lf", 12.5),
        asking("num_damaged_lower_boxes", 3),
        asking("lower_cabinets_detached", "No"),
        asking("lower_face_frames_doors_drawers_available", "Yes"),
        asking("lower_face_frames_doors_drawers_damaged", "Yes"),
        asking("lower_finished_end_panels_damaged", "There is no damage"),
        asking("lower_end_panel_damage_present", "No, none"),
        asking("lower_counter_type", "Quartz"),
        asking("countertops_lf", 9),
        asking("damage_description", "Dishwasher leak under the sink run"),
        photos("lower_cabinet_end_panels", 97000013),
        photos("lower_cabinet_box", 97000011, 97000012),
        photos("overview_photos", 97000001),
        group("Photos", question("A photo nobody asked for", [97000099])),
    )
    assert sent == {
        "assignmentId": ASSIGNMENT_ID,
        "projectId": 5400001,
        "formId": "65f0c1d2e3f4a5b6c7d8e9f0",
        "formResponseId": "65f1c1d2e3f4a5b6c7d8e9f1",
        "status": "COMPLETED",
        "dateAssigned": "2026-01-09T09:00:00+00:00",
        "dateCompleted": "2026-01-10T15:03:58+00:00",
        "assignorEmail": "adjuster@example.com",
        "damageDescription": "Dishwasher leak under the sink run",
        "additionalNotes": None,
        "countertopsLf": 9.0,
        "customer": {"firstName": "Pat", "lastName": "Roe", "email": "pat@example.com", "phone": "5550100"},
        "lowerCabinets": {
            "damaged": True,
            "linearFeet": 12.5,
            "numDamagedBoxes": 3,
            "detached": False,
            "faceFramesDoorsDrawersAvailable": "Yes",
            "faceFramesDoorsDrawersDamaged": True,
            "finishedEndPanelsDamaged": False,
            "endPanelDamagePresent": False,
            "counterType": "Quartz",
            "media": [
                {
                    "questionKey": "lower_cabinet_box",
                    "questionText": "Captured Lower Cabinet Box",
                    "claimMediaIds": [97000011, 97000012],
                },
                {
                    "questionKey": "lower_cabinet_end_panels",
                    "questionText": "Captured Lower Cabinet End Panels",
                    "claimMediaIds": [97000013],
                },
            ],
        },
        "upperCabinets": None,
        "fullHeightCabinets": None,
        "islandCabinets": None,
        "overviewMedia": [
            {
                "questionKey": "overview_photos",
                "questionText": "Upload Overview Photo(s)",
                "claimMediaIds": [97000001],
            }
        ],
    }


@pytest.mark.parametrize("section", SECTIONS)
def test_each_section_has_its_own_answers(section: str) -> None:
    columns = {
        "damaged": (f"{section}_cabinets_damaged", "Yes", True),
        "linearFeet": (f"{section}_cabinets_lf", 4.25, 4.25),
        "numDamagedBoxes": (f"num_damaged_{section}_boxes", 2, 2),
        "detached": (f"{section}_cabinets_detached", "Yes", True),
        "faceFramesDoorsDrawersAvailable": (f"{section}_face_frames_doors_drawers_available", "Most", "Most"),
        "faceFramesDoorsDrawersDamaged": (f"{section}_face_frames_doors_drawers_damaged", "No", False),
        "finishedEndPanelsDamaged": (f"{section}_finished_end_panels_damaged", "Yes", True),
        "endPanelDamagePresent": (f"{section}_end_panel_damage_present", "Yes", True),
        "counterType": (f"{section}_counter_type", "Marble", "Marble"),
    }
    asked = {key: place for key, place in columns.items() if place[0] in BY_COLUMN}
    sent = built(*(asking(column, given_answer) for column, given_answer, _ in asked.values()))
    expected = {**dict.fromkeys(columns), **{key: kept for key, (_, _, kept) in asked.items()}, "media": []}
    assert sent[SECTIONS[section]] == expected
    assert [sent[other] for name, other in SECTIONS.items() if name != section] == [None] * 3


@pytest.mark.parametrize(
    ("section", "keys"),
    [
        ("lower", ["lower_cabinet_box", "lower_face_frames_doors_drawers", "lower_cabinet_end_panels"]),
        ("upper", ["upper_cabinet_box", "upper_face_frames_doors_drawers", "upper_cabinet_end_panels"]),
        (
            "full_height",
            ["full_height_cabinet_box", "full_height_face_frames_doors_drawers", "full_height_end_panels"],
        ),
        ("island", ["island_cabinet_box", "island_face_frames_doors_drawers", "island_cabinet_end_panels"]),
    ],
)
def test_a_section_s_photos_are_box_then_faces_then_end_panels(section: str, keys: list[str]) -> None:
    last_first = [photos(key, 10 + order) for order, key in reversed(list(enumerate(keys)))]
    sent = built(asking(f"{section}_cabinets_damaged", "Yes"), *last_first)
    assert sent[SECTIONS[section]]["media"] == [
        {"questionKey": key, "questionText": TEXT_OF[key], "claimMediaIds": [10 + order]}
        for order, key in enumerate(keys)
    ]


@pytest.mark.parametrize(
    ("damaged", "feet", "there"),
    [
        ("Yes", None, True),
        ("Yes", 0, True),
        ("No", 3, True),
        (None, 0.5, True),
        ("No", None, False),
        ("No", 0, False),
        (None, 0, False),
        (None, None, False),
        ("Maybe", None, False),
    ],
)
def test_a_section_is_null_if_neither_damaged_nor_measured(damaged: Any, feet: Any, there: bool) -> None:
    sent = built(asking("island_cabinets_damaged", damaged), asking("island_cabinets_lf", feet))
    assert (sent["islandCabinets"] is not None) == there


def test_all_keys_are_always_sent() -> None:
    sent = built(externalLinkData=None, assignor=None, dateCompleted=None)
    assert sent.keys() == set(SCHEMA["required"]) == set(SCHEMA["properties"])
    assert sent["customer"] == {"firstName": None, "lastName": None, "email": None, "phone": None}
    assert (sent["assignorEmail"], sent["dateCompleted"], sent["overviewMedia"]) == (None, None, [])


def test_dates_are_sent_in_utc() -> None:
    assert built(dateAssigned="2026-01-09T10:00:00.5+01:00")["dateAssigned"] == "2026-01-09T09:00:00.500000+00:00"


@pytest.mark.parametrize(
    ("changes", "event_changes", "missing"),
    [
        ({"formId": None}, {}, ["formId"]),
        ({"formResponseId": " "}, {}, ["formResponseId"]),
        ({"dateAssigned": "soon"}, {}, ["dateAssigned"]),
        ({}, {"project_id": "proj_1"}, ["projectId"]),
        ({}, {"project_id": "-5"}, ["projectId"]),
        ({}, {"project_id": "9" * 30}, ["projectId"]),
        (
            {"formId": ..., "formResponseId": ..., "dateAssigned": ...},
            {"project_id": "x"},
            ["projectId", "formId", "formResponseId", "dateAssigned"],
        ),
    ],
)
def test_half_a_payload_is_never_built(
    changes: dict[str, Any], event_changes: dict[str, Any], missing: list[str]
) -> None:
    read = details(**changes)
    refusal = refuse_payload(read, parse_form(read), event(**event_changes))
    assert refusal == Refusal("incomplete", f"required by iTel but missing: {', '.join(missing)}")


def test_an_equal_form_has_an_equal_body() -> None:
    first, other = (details(asking("countertops_lf", feet)) for feet in (9, 9.5))
    again = build_payload(first, parse_form(first), event())
    assert build_payload(first, parse_form(first), event()) == again
    assert build_payload(other, parse_form(other), event()) != again


@given(ANY_GROUPS)
def test_any_form_makes_a_valid_payload(groups: list[Any]) -> None:
    sendable = json.loads(json.dumps(groups).replace("NaN", "null").replace("-Infinity", "0").replace("Infinity", "0"))
    assert built(*sendable)["assignmentId"] == ASSIGNMENT_ID


# --------------------------------------------------------------------------------------------------------- documents


def test_the_schema_is_draft_07() -> None:
    document = SCHEMA
    Draft7Validator.check_schema(document)
    assert document["$schema"] == "http://json-schema.org/draft-07/schema#"
    assert "$defs" not in json.dumps(document)
    assert document["definitions"].keys() == {"CabinetSection", "Customer", "MediaItem"}
    assert all(part["additionalProperties"] is False for part in (document, *document["definitions"].values()))


@pytest.mark.parametrize(
    "spoil",
    [
        {"projectId": "5400001"},
        {"extra": 1},
        {"status": None},
        {"lowerCabinets": {}},
        {"overviewMedia": None},
        {"countertopsLf": "9"},
    ],
)
def test_the_schema_accepts_the_example_and_nothing_else(spoil: dict[str, Any]) -> None:
    validator = Draft7Validator(SCHEMA)
    document = json.loads(EXAMPLE.read_bytes())
    assert list(validator.iter_errors(document)) == []
    assert not validator.is_valid({**document, **spoil})
    assert not validator.is_valid({key: value for key, value in document.items() if key != "customer"})
