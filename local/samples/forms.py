"""ClaimX answers for made-up assignments: task details without a form, with a filled cabinet form, and with a
resubmitted one.

Shapes and texts are those of domain.md sections 3.2 and 4; people, addresses and numbers are fictional.
"""

from __future__ import annotations

import copy
import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

__all__ = ["TASK_NAME", "SampleForms", "is_held"]

TASK_NAME = "ITEL Cabinet Repair Form"
_FORM_ID = "65f0a1b2c3d4e5f601020304"
_FIRST_MEDIA_ID = 97_000_000

_COUNTER_TYPES = ("Laminate", "Granite", "Quartz", "Marble", "Butcher Block", "Concrete", "Tile", "Solid Surface")
_DAMAGED = ("Yes", "Yes, the whole run", "yes")
_UNDAMAGED = ("No", "There is no damage", "No, only the countertop")
_DETACHED = ("Yes, all of them", "No", "Yes", "No, they are still on the wall")
_AVAILABLE = ("Yes", "No", "Yes, all of them", "Most of them")
_FACES_DAMAGED = ("Yes, all of them", "There is no damage", "No", "Yes")
_PANELS_DAMAGED = ("Yes, on the left", "No", "There is no damage")
_DESCRIPTIONS = (
    "A burst pipe behind the sink soaked the base cabinets over night",
    "Kitchen fire: smoke and heat damage on both sides of the range hood",
    " A shelf fell and cracked two boxes and the counter above them ",
    "Flood water stood in the room for a day; toe kicks and boxes have swollen",
    "Dishwasher leak under the sink run",
    "Façade of the pantry is warped (≈ 2 cm)\nand the hinges are torn out",
)
_NOTES = ("The matching style is no longer made", "Gate code at the office; ring twice", "", None)
_FIRST_NAMES, _LAST_NAMES = ("Pat", "Sam", "Robin", "Alex", "Jo"), ("Roe", "Doe", "Miles", "Fox", "Grant")

# Known control ids of the form; ids are reused across the sections, so all others are made from the question alone.
_CONTROL_IDS = {
    "Upload Overview Photo(s)": "control-110496963",
    "Captured Lower Cabinet Box": "control-989806632",
    "Upload Lower Cabinet Box Photo(s)": "control-989806632",
    "Captured Lower Cabinet End Panels": "control-374047064",
    "Captured Upper Cabinet Box": "control-767670035",
    "Captured Upper Cabinet End Panels": "control-488956803",
    "Captured Full Height/Pantry Cabinets": "control-734859955",
    "Captured Full Height/Pantry End Panels": "control-959393098",
    "Captured Island Cabinet Box": "control-393858054",
    "Captured Island Cabinet End Panels": "control-532071774",
    "Lower Cabinets Damaged?": "control-847167460",
}


@dataclass(frozen=True, slots=True)
class _Section:
    """How the form asks about one of the four kinds of cabinet."""

    name: str
    group: str
    damaged: str
    linear_feet: str
    boxes: str
    detached: str
    end_panels: str
    box_photos: str
    face_photos: str
    end_panel_photos: str
    end_panel_group: str | None = None
    end_panel_present: str | None = None
    counter_group: str | None = None
    counter_type: str | None = None
    face_damage_prefix: str = ""


_SECTIONS = (
    _Section(
        name="lower",
        group="Lower Cabinets",
        damaged="Lower Cabinets Damaged?",
        linear_feet="Lower Cabinets (linear feet)",
        boxes="Enter Number of Damaged Lower Boxes",
        detached="Are The Lower Cabinets Detached?",
        end_panels="Are The Lower Finished End Panels Damaged?",
        box_photos="Captured Lower Cabinet Box",
        face_photos="Captured Lower Face Frames, Doors, and Drawers",
        end_panel_photos="Captured Lower Cabinet End Panels",
        end_panel_group="Capture Lower End Panel",
        end_panel_present="Is there lower cabinet end panel damage?",
        counter_group="Lower Cabinet Counter Type",
        counter_type="Select Lower Cabinet Counter Type",
    ),
    _Section(
        name="upper",
        group="Upper Cabinets",
        damaged="Upper Cabinets Damaged?",
        linear_feet="Upper Cabinets (linear feet)",
        boxes="Enter Number of Damaged Upper Boxes",
        detached="Are The Upper Cabinets Detached?",
        end_panels="Are The Upper Finished End Panels Damaged?",
        box_photos="Captured Upper Cabinet Box",
        face_photos="Captured Upper Face Frames, Doors, and Drawers",
        end_panel_photos="Captured Upper Cabinet End Panels",
        end_panel_group="Capture Upper End Panel",
        end_panel_present="Is there upper cabinet end panel damage?",
    ),
    _Section(
        name="full_height",
        group="Full Height/Pantry Cabinets",
        damaged="Full Height Cabinets Damaged?",
        linear_feet="Full-Height Cabinets (linear feet)",
        boxes="Enter Number of Damaged Full Height Boxes",
        detached="Are The Full Height Cabinets Detached?",
        end_panels="Are the Full Height Finished End Panels Damaged?",
        box_photos="Captured Full Height/Pantry Cabinets",
        face_photos="Captured Full Height/Pantry Face Frames, Doors, and Drawers",
        end_panel_photos="Captured Full Height/Pantry End Panels",
        face_damage_prefix=" ",
    ),
    _Section(
        name="island",
        group="Island Cabinets",
        damaged="Island Cabinets Damaged?",
        linear_feet="Island Cabinets (linear feet)",
        boxes="Enter Number of Damaged Island Boxes",
        detached="Are The Island Cabinets Detached?",
        end_panels="Are the Island Finished End Panels Damaged?",
        box_photos="Captured Island Cabinet Box",
        face_photos="Captured Island Face Frames, Doors, and Drawers",
        end_panel_photos="Captured Island Cabinet End Panels",
        end_panel_group="Capture Island End Panel",
        end_panel_present="Is there island cabinet end panel damage?",
        counter_group="Island Cabinet Counter Type",
        counter_type="Select Island Cabinet Counter Type",
    ),
)

# Which sections are damaged, form after form: all four first, so that even a short run meets each.
_SCENARIOS: tuple[frozenset[str], ...] = tuple(
    frozenset(names.split())
    for names in (
        "lower upper full_height island",
        "lower",
        "lower upper",
        "island",
        "full_height",
        "upper",
        "lower island",
    )
)

Question = dict[str, Any]


class SampleForms:
    """Makes task details, as ``GET /customTasks/assignment/{id}?full=true`` answers them; chance is ``rng``'s alone.

    What is out of the ordinary comes by turns, not by luck, so that a few dozen forms hold all of it: unknown
    questions, an unknown photo question, a photo question by its older text, null answers, no externalLinkData, a box
    count that is no whole number.
    """

    def __init__(self, rng: random.Random, gate: str | None = None) -> None:
        """``gate`` is a question that is asked first, and answered with no in every tenth form."""
        self._random = rng
        self._gate = gate
        self._forms = 0
        self._media = _FIRST_MEDIA_ID

    def without_form(
        self, assignment_id: int, project_id: str, task_id: int, status: str, assigned_at: datetime
    ) -> dict[str, Any]:
        """Details of a task that nobody has filled in."""
        rng = self._random
        first, last = rng.choice(_FIRST_NAMES), rng.choice(_LAST_NAMES)
        phone = 5_550_100 + rng.randrange(100)
        link = {
            "linkId": assignment_id * 7,
            "linkCode": f"{rng.getrandbits(48):012x}",
            "url": f"https://claimx.example.com/link/{assignment_id}",
            "firstName": first,
            "lastName": last,
            "email": f"{first}.{last}@example.com".lower(),
            # ClaimX gives the phone as a number now and then.
            "phone": phone if rng.random() < 0.3 else str(phone),
            "phoneCountryCode": 1,
            "notificationAccessMethod": "EMAIL",
            "countryId": 1,
            "stateId": 1 + rng.randrange(50),
        }
        return {
            "assignmentId": assignment_id,
            "taskId": task_id,
            "projectId": int(project_id),
            "taskName": TASK_NAME,
            "formId": _FORM_ID,
            "formResponseId": None,
            "status": status,
            "assignor": "adjuster@example.com",
            "assigneeId": 800 + rng.randrange(40),
            "assignorId": 700 + rng.randrange(10),
            "dateAssigned": _iso(assigned_at),
            "dateCompleted": None,
            "cancelledDate": _iso(assigned_at) if status == "CANCELLED" else None,
            "cancelledByResourceId": None,
            "dateExported": None,
            "pdfProjectMediaId": None,
            "stpEnabled": False,
            "stpStartedDate": None,
            "mfn": None,
            "xactimateExportable": True,
            "fraudLanguageAcceptedDate": None,
            "resubmitTaskAssignmentId": None,
            "url": f"https://claimx.example.com/tasks/{assignment_id}",
            "customTask": {
                "taskId": task_id,
                "name": TASK_NAME,
                "formId": _FORM_ID,
                "enabled": True,
                "allowReSubmit": True,
            },
            "externalLinkData": link,
            "response": None,
        }

    def filled_in(self, details: dict[str, Any], completed_at: datetime) -> dict[str, Any]:
        """``details`` as COMPLETED with a form; the argument stays as it is."""
        turn, self._forms = self._forms, self._forms + 1
        filled = {**self._completed(details, completed_at), "response": {"groups": self._groups(turn)}}
        if turn % 9 == 4:
            filled["externalLinkData"] = None
        return filled

    def filled_in_again(self, details: dict[str, Any], completed_at: datetime) -> dict[str, Any]:
        """``details`` with its form resubmitted: another description, half a foot more, a photo less."""
        again = copy.deepcopy(self._completed(details, completed_at))
        groups = again["response"]["groups"]
        answers = [
            question["responseAnswerExport"] or {} for group in groups for question in group["questionAndAnswers"]
        ]
        feet = next(answer for answer in answers if "numberAnswer" in answer)
        feet["numberAnswer"]["value"] += 0.5
        photos = max((answer.get("claimMediaIds", []) for answer in answers), key=len)
        if photos:
            photos.pop()
        description = next(group for group in groups if group["name"] == "Damage Description")
        text = f"Seen again: {self._random.choice(_DESCRIPTIONS).strip()}, {self._random.randrange(10_000)}"
        description["questionAndAnswers"][0]["responseAnswerExport"]["text"] = text
        return again

    def _completed(self, details: dict[str, Any], completed_at: datetime) -> dict[str, Any]:
        return {
            **details,
            "status": "COMPLETED",
            "dateCompleted": _iso(completed_at),
            "formResponseId": f"{self._random.getrandbits(96):024x}",
        }

    def _groups(self, turn: int) -> list[dict[str, Any]]:
        damaged = _SCENARIOS[turn % len(_SCENARIOS)]
        lengths = [
            self._number(section.linear_feet, self._feet() if section.name in damaged else 0.0) for section in _SECTIONS
        ]
        gate = self._option(self._gate, ("No",) if turn % 10 == 9 else ("Yes", "Yes, in part")) if self._gate else None
        groups = [
            *([self._group("Damage", [gate])] if gate else []),
            self._group("Overview Photos", [self._photos("Upload Overview Photo(s)", 2, 5)]),
            self._group("Linear Feet Capture", [self._number("Countertops (linear feet)", self._feet()), *lengths]),
            self._group(
                "Cabinet Types Damaged",
                [
                    self._option(section.damaged, _DAMAGED if section.name in damaged else _UNDAMAGED)
                    for section in _SECTIONS
                ],
            ),
        ]
        for section in _SECTIONS:
            if section.name in damaged:
                groups += self._section(section, turn)
        others = [
            self._text(
                "Now that you have been through the process, please provide any other details that you think would be "
                "relevant to the cabinet damage",
                self._random.choice(_NOTES),
            )
        ]
        if turn % 5 == 2:
            others.append(self._text("Is anybody at home in the morning?", "Yes, until ten"))
        if turn % 6 == 1:
            others.append(self._photos("Upload Receipt Photo(s)", 1, 1))
        adjuster = [
            ("Vendor", "Acme Adjusting"),
            ("First name", "Kim"),
            ("Last name", "Lee"),
            ("Phone", "5550199"),
            ("E-mail", "kim@example.com"),
        ]
        return [
            *groups,
            self._group(
                "Damage Description", [self._text("Enter Damaged Description", self._random.choice(_DESCRIPTIONS))]
            ),
            self._group("Other Details and Information", others),
            {**self._group("Adjuster", [self._text(*entry) for entry in adjuster]), "groupId": "group-309019430"},
        ]

    def _section(self, section: _Section, turn: int) -> list[dict[str, Any]]:
        boxes = 2.5 if turn % 11 == 6 else float(self._random.randint(1, 8))
        detached = self._option(section.detached, _DETACHED)
        available = self._option("Are All The Face Frames, Doors, And Drawers Available?", _AVAILABLE)
        if turn % 4 == 3:
            detached["responseAnswerExport"] = None
            available["responseAnswerExport"]["optionAnswer"] = None
        older_text = turn % 8 == 5 or turn == 1
        groups = [
            self._group(
                section.group,
                [
                    self._number(section.boxes, boxes),
                    detached,
                    available,
                    self._option(
                        section.face_damage_prefix + "Are All The Face Frames, Doors, And Drawer Fronts Damaged?",
                        _FACES_DAMAGED,
                    ),
                    self._option(section.end_panels, _PANELS_DAMAGED),
                    self._photos(
                        "Upload Lower Cabinet Box Photo(s)"
                        if older_text and section.name == "lower"
                        else section.box_photos,
                        1,
                        3,
                    ),
                    self._photos(section.face_photos, 0, 2),
                    *([] if section.end_panel_group else [self._photos(section.end_panel_photos, 1, 2)]),
                ],
            )
        ]
        if section.end_panel_group and section.end_panel_present:
            present = self._option(section.end_panel_present, _PANELS_DAMAGED)
            groups.append(self._group(section.end_panel_group, [present, self._photos(section.end_panel_photos, 1, 2)]))
        if section.counter_group and section.counter_type:
            questions = [self._option(section.counter_type, _COUNTER_TYPES)]
            if turn % 5 == 0:
                questions.append(
                    self._text(
                        "If multiple counter types are present, please list the additional types here",
                        "Tile on the window sill",
                    )
                )
            groups.append(self._group(section.counter_group, questions))
        return groups

    def _feet(self) -> float:
        return self._random.randint(8, 60) / 2

    @staticmethod
    def _group(name: str, questions: list[Question]) -> dict[str, Any]:
        return {"name": name, "groupId": f"group-{zlib.crc32(name.encode())}", "questionAndAnswers": questions}

    def _option(self, text: str, names: Sequence[str]) -> Question:
        return _question(text, "radio", {"type": "option", "optionAnswer": {"name": self._random.choice(names)}})

    @staticmethod
    def _text(text: str, answer: str | None) -> Question:
        return _question(text, "textarea", {"type": "text", "text": answer})

    @staticmethod
    def _number(text: str, value: float) -> Question:
        return _question(text, "number", {"type": "number", "numberAnswer": {"value": value}})

    def _photos(self, text: str, least: int, most: int) -> Question:
        first = self._media + 1
        self._media += self._random.randint(least, most)
        return _question(text, "image", {"type": "image", "claimMediaIds": list(range(first, self._media + 1))})


def is_held(groups: Sequence[dict[str, Any]], gate: str | None) -> bool:
    """Whether the gate's question is answered with no."""
    questions = [question for group in groups for question in group["questionAndAnswers"]]
    answers = [one["responseAnswerExport"] for one in questions if one["questionText"] == gate]
    return any(answer["optionAnswer"]["name"] == "No" for answer in answers)


def _question(text: str, component: str, answer: dict[str, Any]) -> Question:
    control_id = _CONTROL_IDS.get(text) or f"control-{zlib.crc32(text.strip().encode())}"
    return {
        "questionText": text,
        "component": component,
        "formControl": {"id": control_id},
        "responseAnswerExport": answer,
    }


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
