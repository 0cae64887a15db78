"""What iTel receives: the submission of one completed form, its JSON Schema, and an example of it.

``python -m itel_cabinet.transforms.payload`` prints the schema that is committed under ``schemas/``.
All functions are pure and thread-safe.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib import resources
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel
from pydantic.json_schema import GenerateJsonSchema

from itel_cabinet.transforms.events import TaskEvent
from itel_cabinet.transforms.forms import AnswerValue, Form, Photo, TaskDetails, read_int

__all__ = [
    "CabinetRepairSubmission",
    "CabinetSection",
    "Customer",
    "IncompletePayloadError",
    "MediaItem",
    "build_payload",
    "encode_payload",
    "load_example",
    "make_schema",
]

_EXAMPLE = resources.files("itel_cabinet.transforms").joinpath("schemas/cabinet_repair_submission.example.json")

Instant = Annotated[str, Field(json_schema_extra={"format": "date-time"})]


class _Part(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
    )


class MediaItem(_Part):
    """The photos that answer one question, in the adjuster's order."""

    question_key: str
    question_text: str
    claim_media_ids: Annotated[list[int], Field(min_length=1)]


class Customer(_Part):
    """The policyholder, as far as known."""

    first_name: str | None
    last_name: str | None
    email: str | None
    phone: str | None


class CabinetSection(_Part):
    """One kind of cabinets. What was not asked or not answered is null."""

    damaged: bool | None
    linear_feet: float | None
    num_damaged_boxes: int | None
    detached: bool | None
    face_frames_doors_drawers_available: Annotated[str | None, Field(description="The option chosen: Yes, No ...")]
    face_frames_doors_drawers_damaged: bool | None
    finished_end_panels_damaged: bool | None
    end_panel_damage_present: bool | None
    counter_type: str | None
    media: list[MediaItem]


class CabinetRepairSubmission(_Part):
    """A completed cabinet repair form. All keys are there; a section is null if it is neither damaged nor measured."""

    assignment_id: int
    project_id: int
    form_id: str
    form_response_id: str
    status: str
    date_assigned: Instant
    date_completed: Annotated[str | None, Field(json_schema_extra={"format": "date-time"})]
    assignor_email: str | None
    damage_description: str | None
    additional_notes: str | None
    countertops_lf: float | None
    customer: Customer
    lower_cabinets: CabinetSection | None
    upper_cabinets: CabinetSection | None
    full_height_cabinets: CabinetSection | None
    island_cabinets: CabinetSection | None
    overview_media: list[MediaItem]


class IncompletePayloadError(ValueError):
    """A form that cannot be submitted; ``missing`` lists the required payload fields that have no valid value."""

    def __init__(self, missing: Sequence[str]) -> None:
        super().__init__(f"required by iTel but missing: {', '.join(missing)}")
        self.missing = tuple(missing)


_SECTION_MEDIA = {
    "lower": ("lower_cabinet_box", "lower_face_frames_doors_drawers", "lower_cabinet_end_panels"),
    "upper": ("upper_cabinet_box", "upper_face_frames_doors_drawers", "upper_cabinet_end_panels"),
    # The one end-panel key without "cabinet" in it.
    "full_height": ("full_height_cabinet_box", "full_height_face_frames_doors_drawers", "full_height_end_panels"),
    "island": ("island_cabinet_box", "island_face_frames_doors_drawers", "island_cabinet_end_panels"),
}


def build_payload(details: TaskDetails, form: Form, event: TaskEvent) -> CabinetRepairSubmission:
    """The submission of a completed form. ``status`` and the project are the event's. Raises IncompletePayloadError."""
    required = {
        "assignmentId": event.assignment_id,
        "projectId": _positive(event.project_id),
        "formId": details.form_id,
        "formResponseId": details.form_response_id,
        "status": event.task_status,
        "dateAssigned": _iso(details.date_assigned),
    }
    if missing := [name for name, value in required.items() if value is None]:
        raise IncompletePayloadError(missing)
    answers = form.answers
    sections = {f"{section}_cabinets": _section(section, answers, form.photos) for section in _SECTION_MEDIA}
    return CabinetRepairSubmission.model_validate(
        {
            **required,
            "date_completed": _iso(details.date_completed),
            "assignor_email": details.assignor_email,
            "damage_description": answers["damage_description"],
            "additional_notes": answers["additional_notes"],
            "countertops_lf": answers["countertops_lf"],
            "customer": Customer.model_validate(details.external_link_data, from_attributes=True),
            **sections,
            "overview_media": _media(["overview_photos"], form.photos),
        }
    )


def encode_payload(payload: CabinetRepairSubmission) -> bytes:
    """The request body: compact UTF-8 JSON, the same bytes for an equal payload."""
    return payload.model_dump_json().encode()


class _UntitledFields(GenerateJsonSchema):
    """Pydantic's generator without a title for each field, which would only repeat its name."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002
        return False


def make_schema() -> dict[str, Any]:
    """The JSON Schema (draft-07) of a submission."""
    generated = CabinetRepairSubmission.model_json_schema(
        mode="serialization", ref_template="#/definitions/{model}", schema_generator=_UntitledFields
    )
    definitions = generated.pop("$defs")
    return {"$schema": "http://json-schema.org/draft-07/schema#", **generated, "definitions": definitions}


def load_example() -> CabinetRepairSubmission:
    """A submission of invented content, as iTel may receive it."""
    return CabinetRepairSubmission.model_validate_json(_EXAMPLE.read_bytes())


def _section(section: str, answers: Mapping[str, AnswerValue], photos: Sequence[Photo]) -> CabinetSection | None:
    damaged, feet = answers[f"{section}_cabinets_damaged"], answers[f"{section}_cabinets_lf"]
    if not damaged and not feet:
        return None
    return CabinetSection.model_validate(
        {
            "damaged": damaged,
            "linear_feet": feet,
            "num_damaged_boxes": answers[f"num_damaged_{section}_boxes"],
            "detached": answers[f"{section}_cabinets_detached"],
            "face_frames_doors_drawers_available": answers[f"{section}_face_frames_doors_drawers_available"],
            "face_frames_doors_drawers_damaged": answers[f"{section}_face_frames_doors_drawers_damaged"],
            "finished_end_panels_damaged": answers[f"{section}_finished_end_panels_damaged"],
            # Not asked of every section.
            "end_panel_damage_present": answers.get(f"{section}_end_panel_damage_present"),
            "counter_type": answers.get(f"{section}_counter_type"),
            "media": _media(_SECTION_MEDIA[section], photos),
        }
    )


def _media(keys: Sequence[str], photos: Sequence[Photo]) -> list[MediaItem]:
    taken = {key: [photo for photo in photos if photo.question_key == key] for key in keys}
    return [
        MediaItem(
            question_key=key,
            question_text=those[0].question_text,
            claim_media_ids=[photo.claim_media_id for photo in those],
        )
        for key, those in taken.items()
        if those
    ]


def _positive(text: str) -> int | None:
    number = read_int(text)
    return number if number and number > 0 else None


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


if __name__ == "__main__":
    print(json.dumps(make_schema(), indent=2))
