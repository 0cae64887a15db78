"""What ClaimX knows of a cabinet task, and the form in it: 36 typed answers, the photos, and all that was asked.

ClaimX's answers are read leniently: an optional key that is missing, null or of another type is None, and a bad
question costs a warning, never the form. Only what is not such an answer at all is refused. All functions are pure and
thread-safe.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict
from pydantic.alias_generators import to_camel

from itel_cabinet.transforms.events import INT64_MAX, parse_timestamp, without_fraction
from itel_cabinet.transforms.json_text import read_json
from itel_cabinet.transforms.wording import normalize

__all__ = [
    "PHOTO_QUESTION_KEYS",
    "QUESTIONS",
    "AnswerValue",
    "ExternalLink",
    "Form",
    "Photo",
    "Question",
    "TaskDetails",
    "WrongShapeError",
    "parse_details",
    "parse_form",
    "read_int",
    "read_text",
    "read_timestamp",
]

AnswerValue = bool | float | int | str | None


class Question(NamedTuple):
    """A question with a column of its own, found by its group and text as ``normalize`` has them."""

    column: str
    kind: Literal["yes_no", "linear_feet", "count", "text"]
    group: str
    text: str


_FULL_HEIGHT = "Full Height/Pantry Cabinets"
_FRAMES_AVAILABLE = "Are All The Face Frames, Doors, And Drawers Available?"
_FRAMES_DAMAGED = "Are All The Face Frames, Doors, And Drawer Fronts Damaged?"
# In the order of the forms table's columns.
QUESTIONS = (
    Question("damage_description", "text", "Damage Description", "Enter Damaged Description"),
    Question(
        "additional_notes",
        "text",
        "Other Details and Information",
        "Now that you have been through the process, please provide any other details that you think would be relevant"
        " to the cabinet damage",
    ),
    Question("countertops_lf", "linear_feet", "Linear Feet Capture", "Countertops (linear feet)"),
    Question("lower_cabinets_damaged", "yes_no", "Cabinet Types Damaged", "Lower Cabinets Damaged?"),
    Question("lower_cabinets_lf", "linear_feet", "Linear Feet Capture", "Lower Cabinets (linear feet)"),
    Question("num_damaged_lower_boxes", "count", "Lower Cabinets", "Enter Number of Damaged Lower Boxes"),
    Question("lower_cabinets_detached", "yes_no", "Lower Cabinets", "Are The Lower Cabinets Detached?"),
    Question("lower_face_frames_doors_drawers_available", "text", "Lower Cabinets", _FRAMES_AVAILABLE),
    Question("lower_face_frames_doors_drawers_damaged", "yes_no", "Lower Cabinets", _FRAMES_DAMAGED),
    Question(
        "lower_finished_end_panels_damaged", "yes_no", "Lower Cabinets", "Are The Lower Finished End Panels Damaged?"
    ),
    Question(
        "lower_end_panel_damage_present",
        "yes_no",
        "Capture Lower End Panel",
        "Is there lower cabinet end panel damage?",
    ),
    Question("lower_counter_type", "text", "Lower Cabinet Counter Type", "Select Lower Cabinet Counter Type"),
    Question("upper_cabinets_damaged", "yes_no", "Cabinet Types Damaged", "Upper Cabinets Damaged?"),
    Question("upper_cabinets_lf", "linear_feet", "Linear Feet Capture", "Upper Cabinets (linear feet)"),
    Question("num_damaged_upper_boxes", "count", "Upper Cabinets", "Enter Number of Damaged Upper Boxes"),
    Question("upper_cabinets_detached", "yes_no", "Upper Cabinets", "Are The Upper Cabinets Detached?"),
    Question("upper_face_frames_doors_drawers_available", "text", "Upper Cabinets", _FRAMES_AVAILABLE),
    Question("upper_face_frames_doors_drawers_damaged", "yes_no", "Upper Cabinets", _FRAMES_DAMAGED),
    Question(
        "upper_finished_end_panels_damaged", "yes_no", "Upper Cabinets", "Are The Upper Finished End Panels Damaged?"
    ),
    Question(
        "upper_end_panel_damage_present",
        "yes_no",
        "Capture Upper End Panel",
        "Is there upper cabinet end panel damage?",
    ),
    Question("full_height_cabinets_damaged", "yes_no", "Cabinet Types Damaged", "Full Height Cabinets Damaged?"),
    Question("full_height_cabinets_lf", "linear_feet", "Linear Feet Capture", "Full-Height Cabinets (linear feet)"),
    Question("num_damaged_full_height_boxes", "count", _FULL_HEIGHT, "Enter Number of Damaged Full Height Boxes"),
    Question("full_height_cabinets_detached", "yes_no", _FULL_HEIGHT, "Are The Full Height Cabinets Detached?"),
    Question("full_height_face_frames_doors_drawers_available", "text", _FULL_HEIGHT, _FRAMES_AVAILABLE),
    Question("full_height_face_frames_doors_drawers_damaged", "yes_no", _FULL_HEIGHT, _FRAMES_DAMAGED),
    Question(
        "full_height_finished_end_panels_damaged",
        "yes_no",
        _FULL_HEIGHT,
        "Are the Full Height Finished End Panels Damaged?",
    ),
    Question("island_cabinets_damaged", "yes_no", "Cabinet Types Damaged", "Island Cabinets Damaged?"),
    Question("island_cabinets_lf", "linear_feet", "Linear Feet Capture", "Island Cabinets (linear feet)"),
    Question("num_damaged_island_boxes", "count", "Island Cabinets", "Enter Number of Damaged Island Boxes"),
    Question("island_cabinets_detached", "yes_no", "Island Cabinets", "Are The Island Cabinets Detached?"),
    Question("island_face_frames_doors_drawers_available", "text", "Island Cabinets", _FRAMES_AVAILABLE),
    Question("island_face_frames_doors_drawers_damaged", "yes_no", "Island Cabinets", _FRAMES_DAMAGED),
    Question(
        "island_finished_end_panels_damaged", "yes_no", "Island Cabinets", "Are the Island Finished End Panels Damaged?"
    ),
    Question(
        "island_end_panel_damage_present",
        "yes_no",
        "Capture Island End Panel",
        "Is there island cabinet end panel damage?",
    ),
    Question("island_counter_type", "text", "Island Cabinet Counter Type", "Select Island Cabinet Counter Type"),
)
_QUESTION_AT = {(normalize(question.group), normalize(question.text)): question for question in QUESTIONS}
# Asked in forms of this kind, and kept in raw_data alone.
_WITHOUT_COLUMN = frozenset({normalize("If multiple counter types are present, please list the additional types here")})
# The answers that a section is made of; without the first two it is not sent.
_SECTIONS = {
    section: tuple(question.column for question in QUESTIONS if re.search(rf"(^|_){section}_", question.column))
    for section in ("lower", "upper", "full_height", "island")
}

PHOTO_QUESTION_KEYS: Mapping[str, str] = {
    "Upload Overview Photo(s)": "overview_photos",
    "Captured Lower Cabinet Box": "lower_cabinet_box",
    "Captured Lower Face Frames, Doors, and Drawers": "lower_face_frames_doors_drawers",
    "Captured Lower Cabinet End Panels": "lower_cabinet_end_panels",
    "Captured Upper Cabinet Box": "upper_cabinet_box",
    "Captured Upper Face Frames, Doors, and Drawers": "upper_face_frames_doors_drawers",
    "Captured Upper Cabinet End Panels": "upper_cabinet_end_panels",
    "Captured Full Height/Pantry Cabinets": "full_height_cabinet_box",
    "Captured Full Height/Pantry Face Frames, Doors, and Drawers": "full_height_face_frames_doors_drawers",
    "Captured Full Height/Pantry End Panels": "full_height_end_panels",
    "Captured Island Cabinet Box": "island_cabinet_box",
    "Captured Island Face Frames, Doors, and Drawers": "island_face_frames_doors_drawers",
    "Captured Island Cabinet End Panels": "island_cabinet_end_panels",
}
_PHOTO_KEY_AT = {normalize(text): key for text, key in PHOTO_QUESTION_KEYS.items()}
# Only asked where the text is unknown: ids are reused across sections.
_PHOTO_CONTROL_KEYS = {
    "control-110496963": "overview_photos",
    "control-989806632": "lower_cabinet_box",
    "control-374047064": "lower_cabinet_end_panels",
    "control-767670035": "upper_cabinet_box",
    "control-488956803": "upper_cabinet_end_panels",
    "control-734859955": "full_height_cabinet_box",
    "control-959393098": "full_height_end_panels",
    "control-393858054": "island_cabinet_box",
    "control-532071774": "island_cabinet_end_panels",
}


def read_text(value: object) -> str | None:
    """Trimmed text; a number (a phone, say) as its text, a whole one without a fraction; None for blank and everything
    else."""
    if isinstance(value, str):
        return value.strip() or None
    value = without_fraction(value)
    return str(value) if type(value) in (int, float) else None


def read_int(value: object) -> int | None:
    """A 64-bit whole number, also from its digits as text and from a double; None for everything else."""
    value = without_fraction(value)
    if isinstance(value, str) and re.fullmatch(r"\s*-?[0-9]{1,19}\s*", value):
        value = int(value)
    return value if type(value) is int and -INT64_MAX - 1 <= value <= INT64_MAX else None


def read_timestamp(value: object) -> datetime | None:
    """ISO 8601 text or seconds or milliseconds since 1970 as an aware UTC datetime (without a zone it is UTC); None for
    everything else."""
    try:
        return parse_timestamp(value)
    except ValueError:
        return None


_Text = Annotated[str | None, BeforeValidator(read_text)]
_Int = Annotated[int | None, BeforeValidator(read_int)]
_Timestamp = Annotated[datetime | None, BeforeValidator(read_timestamp)]


class WrongShapeError(ValueError):
    """Not an answer about a task; one line that names the key at fault, without values."""


class _Lenient(BaseModel):
    model_config = ConfigDict(frozen=True, alias_generator=to_camel)


class ExternalLink(_Lenient):
    """The policyholder's link to the task, and who they are."""

    url: _Text = None
    first_name: _Text = None
    last_name: _Text = None
    email: _Text = None
    phone: _Text = None


_NO_LINK = ExternalLink()


class TaskDetails(_Lenient):
    """ClaimX's answer about one assignment. ``raw`` is all of it, ``groups`` its form as it came, or empty; ``repairs``
    says what had to be put right to read it."""

    assignment_id: int
    task_id: _Int = None
    project_id: _Text = None
    task_name: _Text = None
    form_id: _Text = None
    form_response_id: _Text = None
    status: _Text = None
    assignor_email: _Text = None
    assignee_id: _Int = None
    assignor_id: _Int = None
    date_assigned: _Timestamp = None
    date_completed: _Timestamp = None
    external_link_data: Annotated[
        ExternalLink, BeforeValidator(lambda link: link if isinstance(link, dict) else _NO_LINK)
    ] = _NO_LINK
    groups: list[Any]
    raw: dict[str, Any]
    repairs: tuple[str, ...] = ()

    @property
    def has_form(self) -> bool:
        """Whether the form has been filled in at all."""
        return bool(self.groups)


@dataclass(frozen=True, slots=True)
class Photo:
    """A photo in an answer. ``display_order`` counts from 1 within a question key; the media id is positive."""

    question_key: str
    question_text: str
    control_id: str | None
    topic_category: str
    claim_media_id: int
    display_order: int


@dataclass(frozen=True, slots=True)
class Form:
    """A form, read. ``answers`` has every column of QUESTIONS: bool, float (linear feet), int (32 bits), text, or None.

    ``raw_data`` holds all that was asked, known or not: group name -> list of ``{"q": text, "a": answer, "id": ...}``.
    ``warnings`` say in one line each which answer could not be read and became None, what was answered twice, which
    question is not known, and which section has answers but is not sent. ``unknown_questions`` are their texts as
    ``normalize`` has them, each once.
    """

    answers: Mapping[str, AnswerValue]
    photos: tuple[Photo, ...]
    raw_data: Mapping[str, list[dict[str, Any]]]
    warnings: tuple[str, ...]
    unknown_questions: tuple[str, ...] = ()


def parse_details(raw: bytes, assignment_id: int) -> TaskDetails:
    """ClaimX's answer to the question for ``assignment_id``. Raises WrongShapeError."""
    try:
        content, repairs = read_json(raw)
    except ValueError as error:
        raise WrongShapeError(f"the answer is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise WrongShapeError("the answer is not an object")
    if read_int(content.get("assignmentId")) != assignment_id:
        raise WrongShapeError("assignmentId is not the one that was asked for")
    response = content.get("response")
    if not isinstance(response, dict | None):
        raise WrongShapeError("response is neither an object nor null")
    groups = (response or {}).get("groups")
    if not isinstance(groups, list | None):
        raise WrongShapeError("response.groups is neither a list nor null")
    assignor = read_text(content.get("assignor")) or content.get("assignorEmail")
    return TaskDetails.model_validate(
        {
            **content,
            "assignmentId": assignment_id,
            "assignorEmail": assignor,
            "groups": groups or [],
            "raw": content,
            "repairs": repairs,
        }
    )


def parse_form(details: TaskDetails) -> Form:
    """The form in ClaimX's answer; never raises. Where a question is answered twice the last answer counts, with a
    warning if another one is lost by that.

    Yes and no are read in yes/no questions only, by how the answer begins ("Yes, ..." / "No, ..." / "There is no ...");
    all other text stays as it was typed.
    """
    warnings = list(details.repairs)
    answers: dict[str, AnswerValue] = dict.fromkeys(question.column for question in QUESTIONS)
    raw_data: dict[str, list[dict[str, Any]]] = {}
    photos: dict[tuple[str, int], Photo] = {}
    photos_of: dict[str, int] = {}
    # A column's warning goes when a later answer to the same question replaces it.
    complaints: dict[str, str | None] = {}
    unknown: dict[str, None] = {}
    for asked in _questions(details.groups, warnings):
        value: Any = asked.value
        if question := _QUESTION_AT.get((normalize(asked.group), normalize(asked.text))):
            answer, complaint = _typed(question.kind, value)
            if answers[question.column] not in (None, answer):
                warnings.append(f"{question.column}: answered more than once: the last answer counts")
            answers[question.column] = answer
            complaints[question.column] = complaint
            if question.kind == "yes_no" and answer is not None:
                value = answer
        elif not _is_known(asked) and (text := normalize(asked.text)) not in unknown:
            unknown[text] = None
            warnings.append(f"unknown question {_excerpt(asked.text)} in group {_excerpt(asked.group)}")
        raw_data.setdefault(asked.group, []).append({"q": asked.text, "a": value, "id": asked.control_id})
        if not asked.is_photo:
            continue
        key = _question_key(asked)
        for media_id in _media_ids(asked, warnings):
            if (key, media_id) not in photos:
                photos_of[key] = photos_of.get(key, 0) + 1
                photos[key, media_id] = Photo(
                    key, asked.text, asked.control_id, _topic_category(asked), media_id, photos_of[key]
                )
    warnings += [f"{column}: {complaint}" for column, complaint in complaints.items() if complaint]
    warnings += _lost_sections(answers)
    return Form(answers, tuple(photos.values()), raw_data, tuple(warnings), tuple(unknown))


def _lost_sections(answers: Mapping[str, AnswerValue]) -> Iterator[str]:
    """A warning for each section that is not sent, as nobody said that it is damaged, though the rest is answered."""
    for section, columns in _SECTIONS.items():
        damaged, feet = f"{section}_cabinets_damaged", f"{section}_cabinets_lf"
        if answers[damaged] is None and not answers[feet]:
            answered = [column for column in columns if column not in (damaged, feet) and answers[column] is not None]
            if answered:
                yield f"{damaged}: not answered, so the section is not sent, though {answered[0]} is"


class _Asked(NamedTuple):
    group: str
    text: str
    control_id: str | None
    is_photo: bool
    value: Any


def _questions(groups: list[Any], warnings: list[str]) -> Iterator[_Asked]:
    for g, group in enumerate(groups):
        if not isinstance(group, dict):
            warnings.append(f"groups[{g}]: not an object")
            continue
        questions = group.get("questionAndAnswers")
        if not isinstance(questions, list):
            if questions is not None:
                warnings.append(f"groups[{g}].questionAndAnswers: not a list")
            continue
        for q, question in enumerate(questions):
            where = f"groups[{g}].questionAndAnswers[{q}]"
            if not isinstance(question, dict) or not isinstance(question.get("questionText"), str):
                warnings.append(f"{where}: not a question")
                continue
            answer = question.get("responseAnswerExport")
            if not isinstance(answer, dict | None):
                warnings.append(f"{where}.responseAnswerExport: not an object")
            control = question.get("formControl")
            is_photo, value = _value(answer) if isinstance(answer, dict) else (False, None)
            yield _Asked(
                read_text(group.get("name")) or "",
                question["questionText"].strip(),
                read_text(control.get("id")) if isinstance(control, dict) else None,
                is_photo,
                value,
            )


def _value(answer: dict[str, Any]) -> tuple[bool, Any]:
    """Whether an answer is made of photos, and its value."""
    match answer.get("type"):
        case "text":
            return False, answer.get("text")
        case "number":
            number = answer.get("numberAnswer")
            return False, number.get("value", number.get("name")) if isinstance(number, dict) else number
        case "option":
            option = answer.get("optionAnswer")
            return False, option.get("name") if isinstance(option, dict) else None
        case "image":
            media = answer.get("claimMediaIds")
            return True, [] if media is None else media
    return False, None


def _typed(kind: str, value: object) -> tuple[AnswerValue, str | None]:
    """The answer in the type of its column, or None with a complaint; unanswered is None without one."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None, None
    match kind:
        case "yes_no":
            answer: AnswerValue = _yes_no(value)
            wanted = "neither yes nor no"
        case "linear_feet":
            answer = _number(value)
            wanted = "not a number"
        case "count":
            answer = _count(value)
            wanted = "not a whole number of 32 bits"
        case _:
            answer = value if isinstance(value, str) else read_text(value)
            wanted = "not text"
    return answer, f"{_excerpt(value)} is {wanted}" if answer is None else None


def _yes_no(value: object) -> bool | None:
    if isinstance(value, bool):
        return value
    words = value.strip().lower() if isinstance(value, str) else ""
    if words == "yes" or words.startswith("yes,"):
        return True
    if words == "no" or words.startswith(("no,", "there is no")):
        return False
    return None


def _number(value: object) -> float | None:
    if isinstance(value, str):
        plain = re.fullmatch(r"\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)\s*", value)
        number = float(value) if plain else math.nan
    elif type(value) in (int, float):
        try:
            number = float(value)  # type: ignore[arg-type]
        except OverflowError:
            return None
    else:
        return None
    return number if math.isfinite(number) else None


def _count(value: object) -> int | None:
    number = _number(value)
    # A double holds every whole number of 32 bits exactly.
    return int(number) if number is not None and number.is_integer() and -(2**31) <= number < 2**31 else None


def _excerpt(value: object) -> str:
    text = value if isinstance(value, str) else type(value).__name__ if isinstance(value, list | dict) else repr(value)
    text = " ".join(text.split())
    return f"'{text[:47]}...'" if len(text) > 50 else f"'{text}'"


def _media_ids(asked: _Asked, warnings: list[str]) -> Iterator[int]:
    if not isinstance(asked.value, list):
        warnings.append(f"{_question_key(asked)}: claimMediaIds is not a list")
        return
    for item in asked.value:
        media_id = read_int(item)
        if media_id is not None and media_id > 0:
            yield media_id
        elif media_id is None and item is not None:
            warnings.append(f"{_question_key(asked)}: {_excerpt(item)} is not a media id")


def _is_known(asked: _Asked) -> bool:
    return _known_photo_key(asked) is not None if asked.is_photo else normalize(asked.text) in _WITHOUT_COLUMN


def _known_photo_key(asked: _Asked) -> str | None:
    return _PHOTO_KEY_AT.get(normalize(asked.text)) or _PHOTO_CONTROL_KEYS.get(asked.control_id or "")


def _question_key(asked: _Asked) -> str:
    return _known_photo_key(asked) or re.sub(r"[ /]", "_", normalize(asked.text)).replace("?", "")


def _topic_category(asked: _Asked) -> str:
    words = f"{normalize(asked.group)} {normalize(asked.text)}"
    for needles, category in (
        (("island",), "Island Cabinets"),
        (("lower",), "Lower Cabinets"),
        (("upper",), "Upper Cabinets"),
        (("full height", "pantry"), "Full Height / Pantry"),
        (("countertop",), "Countertops"),
    ):
        if any(needle in words for needle in needles):
            return category
    return "General"
