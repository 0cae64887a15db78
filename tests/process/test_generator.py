"""The generator of events: the same for a seed, each record as its kind says, every form fit to be submitted."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import pytest
from jsonschema.validators import validator_for

from itel_cabinet.local.samples import BAD_KINDS, ENRICHED_BAD_KINDS, Generator, Produced, Shares, produce
from itel_cabinet.local.services import Broker
from itel_cabinet.local.simulators import ClaimXSimulator
from itel_cabinet.transforms.events import ClaimXEvent, TaskEvent, parse_claimx_event, parse_event
from itel_cabinet.transforms.forms import Form, parse_details
from itel_cabinet.transforms.records import Failure, Record, Skip
from tests.conftest import TopicFactory
from tests.support.cabinet_samples import CONTRACT, PHOTO_QUESTION_KEYS, QUESTIONS, TASK_IDS, build_payload, parse_form

START = datetime(2026, 1, 10, 8, tzinfo=UTC)

# What the parse step must say of each bad kind; an unknown assignment only shows at the lookup.
ERROR_CLASSES = {
    "not_json": "not_json",
    "not_an_object": "not_an_object",
    "wrong_type": "wrong_type",
    "missing_key": "missing_field",
    "empty_value": "empty",
    "null_value": "empty",
    "huge_garbage": "not_json",
    "missing_assignment": "missing_field",
}


@pytest.fixture(scope="module")
def messages() -> list[Produced]:
    return list(Generator(7, start=START).tracking_messages(1000))


@pytest.fixture(scope="module")
def events() -> list[Produced]:
    return list(Generator(7, start=START).claimx_events(1000))


@pytest.fixture(scope="module")
def forms(messages: list[Produced]) -> list[Form]:
    return [form_of(produced) for produced in of_kind("completed", messages)]


def record(produced: Produced) -> Record:
    return Record("topic", "id", 0, 0, 0, produced.key, produced.value, produced.headers)


def form_of(produced: Produced) -> Form:
    assert produced.details_json is not None
    assert produced.assignment_id is not None
    return parse_form(parse_details(produced.details_json, produced.assignment_id))


def event_of(produced: Produced) -> TaskEvent:
    event = parse_event(record(produced), 0.0, task_ids=TASK_IDS)
    assert isinstance(event, TaskEvent)
    return event


def of_kind(kind: str, records: list[Produced]) -> list[Produced]:
    found = [produced for produced in records if produced.kind == kind]
    assert found, f"no record of kind {kind}"
    return found


class TestSeed:
    def test_the_same_seed_gives_the_same_records(self, messages: list[Produced], events: list[Produced]) -> None:
        assert list(Generator(7, start=START).tracking_messages(1000)) == messages
        assert list(Generator(7, start=START).claimx_events(1000)) == events

    def test_another_seed_gives_others(self, messages: list[Produced]) -> None:
        others = list(Generator(8, start=START).tracking_messages(1000))

        assert {m.event_id for m in messages if m.event_id}.isdisjoint(m.event_id for m in others if m.event_id)

    def test_calls_go_on_where_the_one_before_ended(self) -> None:
        generator = Generator(7, start=START)
        first, second = list(generator.tracking_messages(50)), list(generator.tracking_messages(50))

        fresh = [{m.event_id for m in half if m.event_id and m.kind != "repeated"} for half in (first, second)]
        assert fresh[0].isdisjoint(fresh[1])
        assert max(event_of(m).timestamp for m in first if m.kind == "assigned") < min(
            event_of(m).timestamp for m in second if m.kind == "assigned"
        )


class TestShares:
    def test_shares_are_kept_to_the_record(self, messages: list[Produced]) -> None:
        counts = Counter(produced.kind for produced in messages)

        assert len(messages) == 1000
        assert {kind: count for kind, count in counts.items() if kind not in BAD_KINDS} == {
            "completed": 390,
            "assigned": 300,
            "in_progress": 40,
            "cancelled": 10,
            "resubmitted": 60,
            "late": 40,
            "repeated": 40,
            "completed_without_form": 10,
            "other_task": 50,
        }
        assert sum(counts[kind] for kind in BAD_KINDS) == 60
        assert counts["huge_garbage"] == 3

    @pytest.mark.parametrize("seed", range(3))
    def test_two_hundred_records_hold_each_bad_kind(self, seed: int) -> None:
        shares = Shares(bad=0.01)

        messages = list(Generator(seed, shares=shares).tracking_messages(200))
        events = list(Generator(seed, shares=shares).claimx_events(200))

        assert len(messages) == len(events) == 200
        assert {m.kind for m in messages} >= set(BAD_KINDS)
        assert {e.kind for e in events} >= set(ENRICHED_BAD_KINDS)

    @pytest.mark.parametrize("n", [0, 1, 5, 33])
    def test_any_number_can_be_asked_for(self, n: int) -> None:
        assert len(list(Generator(1).tracking_messages(n))) == n
        assert len(list(Generator(1).claimx_events(n))) == n

    def test_other_shares(self) -> None:
        none = Shares(0, 0, 0, 0, 0, 0, 0, 0, 0)

        assert {m.kind for m in Generator(1, shares=none).tracking_messages(300)} == {"completed"}

    @pytest.mark.parametrize("shares", [{"bad": -0.1}, {"bad": 0.5, "assigned": 0.6}])
    def test_impossible_shares_are_refused(self, shares: dict[str, float]) -> None:
        with pytest.raises(ValueError, match="shares must not be negative and must not sum to more than 1"):
            Shares(**shares)


class TestTrackingMessages:
    def test_each_is_parsed_as_it_is_expected(self, messages: list[Produced]) -> None:
        for produced in messages:
            parsed = parse_event(record(produced), 0.0, task_ids=TASK_IDS)
            match produced.expect:
                case "skipped":
                    assert isinstance(parsed, Skip), produced.kind
                    assert parsed.reason == "other_task"
                case "dead_letter" if produced.kind != "unknown_assignment":
                    assert isinstance(parsed, Failure), produced.kind
                    assert parsed.error_class == ERROR_CLASSES[produced.kind], produced.kind
                case _:
                    assert isinstance(parsed, TaskEvent), produced.kind
                    assert (parsed.event_id, parsed.assignment_id) == (produced.event_id, produced.assignment_id)

    def test_keys_and_headers(self, messages: list[Produced]) -> None:
        for produced in messages:
            assert produced.key.isdigit()
            assert [name for name, _ in produced.headers] == ["x-trigger-name", "x-task-id", "x-event-type"]
            if produced.assignment_id is not None:
                assert produced.key == str(produced.assignment_id).encode()

    def test_statuses(self, messages: list[Produced]) -> None:
        for kind, status in {"assigned": "ASSIGNED", "in_progress": "IN_PROGRESS", "cancelled": "CANCELLED"}.items():
            found = of_kind(kind, messages)
            assert {event_of(m).task_status for m in found} == {status}
            assert {m.expect for m in found} == {"tracked"}
        for kind in ("completed", "resubmitted", "completed_without_form"):
            assert {event_of(m).task_status for m in of_kind(kind, messages)} == {"COMPLETED"}
        raw = {json.loads(m.value or b"")["task_status"] for m in messages if m.expect == "submitted"}
        assert raw == {"COMPLETED", "completed"}

    def test_event_ids_are_unique_but_for_repeated_records(self, messages: list[Produced]) -> None:
        seen: dict[str, Produced] = {}
        for produced in messages:
            if produced.event_id is None:
                continue
            if produced.kind == "repeated":
                original = seen[produced.event_id]
                assert (produced.key, produced.value, produced.headers) == (
                    original.key,
                    original.value,
                    original.headers,
                )
                assert (produced.expect, produced.details_json) == (original.expect, None)
            else:
                assert produced.event_id not in seen
                assert len(produced.event_id) == 64
                seen[produced.event_id] = produced

    def test_late_events_are_older_than_the_completion_before_them(self, messages: list[Produced]) -> None:
        completed_at: dict[int, datetime] = {}
        late = Counter[str]()
        for produced in messages:
            assert produced.assignment_id is not None or produced.expect in {"skipped", "dead_letter"}
            if produced.kind in {"completed", "resubmitted"}:
                completed_at[event_of(produced).assignment_id] = event_of(produced).timestamp
            elif produced.kind == "late":
                event = event_of(produced)
                assert event.timestamp < completed_at[event.assignment_id]
                assert produced.details_json is None
                assert (event.task_status == "COMPLETED") == (produced.expect == "submitted")
                late[event.task_status] += 1
        assert late == {"ASSIGNED": 20, "COMPLETED": 20}

    def test_event_times_move_on_from_the_start(self, messages: list[Produced]) -> None:
        times = [event_of(m).timestamp for m in messages if m.kind not in {"late", "repeated"} and m.details_json]

        assert times == sorted(times)
        assert times[0] > START

    def test_a_resubmission_changes_answers_and_takes_a_photo_away(self, messages: list[Produced]) -> None:
        forms: dict[int, Form] = {}
        for produced in messages:
            if produced.kind not in {"completed", "resubmitted"}:
                continue
            form, assignment_id = form_of(produced), int(produced.key)
            if produced.kind == "resubmitted":
                before = forms[assignment_id]
                assert str(form.answers["damage_description"]).startswith("Seen again: ")
                assert form.answers["damage_description"] != before.answers["damage_description"]
                assert float(str(form.answers["countertops_lf"])) == float(str(before.answers["countertops_lf"])) + 0.5
                media, media_before = ({photo.claim_media_id for photo in f.photos} for f in (form, before))
                assert media < media_before
                assert len(media) == len(media_before) - 1
            forms[assignment_id] = form

    def test_an_assignment_is_known_before_it_is_asked_for(self, messages: list[Produced]) -> None:
        known: dict[int, dict[str, Any]] = {}
        for produced in messages:
            if produced.details is not None:
                known[int(produced.key)] = produced.details
            if produced.kind == "unknown_assignment":
                assert produced.assignment_id not in known
            elif produced.expect == "submitted":
                assert known[int(produced.key)]["response"]["groups"]
            elif produced.kind == "completed_without_form":
                assert known[int(produced.key)]["response"] is None
            elif produced.expect == "tracked":
                assert int(produced.key) in known
        unknown = {m.assignment_id for m in of_kind("unknown_assignment", messages)}
        assert unknown.isdisjoint(known)

    def test_each_completed_form_can_be_submitted(self, messages: list[Produced]) -> None:
        schema = CONTRACT.file.body_schema
        validator = validator_for(schema)(schema)
        for produced in messages:
            if produced.details_json is None or produced.expect != "submitted":
                continue
            details = parse_details(produced.details_json, int(produced.key))
            built = build_payload(details, form_of(produced), event_of(produced))
            body = json.loads(built)
            assert [error.message for error in validator.iter_errors(body)] == []
            assert (body["assignmentId"], body["status"]) == (produced.assignment_id, "COMPLETED")
            assert body["dateAssigned"] < body["dateCompleted"] or produced.kind != "completed"

    def test_huge_garbage_is_900_kilobytes(self, messages: list[Produced]) -> None:
        assert {len(m.value or b"") for m in of_kind("huge_garbage", messages)} == {900_000}

    def test_null_and_empty_values_differ(self, messages: list[Produced]) -> None:
        assert {m.value for m in of_kind("null_value", messages)} == {None}
        assert {m.value for m in of_kind("empty_value", messages)} == {b""}


class TestForms:
    def test_the_first_form_answers_all_questions(self, forms: list[Form]) -> None:
        unanswered = {name for name, answer in forms[0].answers.items() if answer is None}

        assert unanswered <= {"additional_notes"}

    def test_the_forms_hold_every_question_and_photo_key(self, forms: list[Form]) -> None:
        answered = {name for form in forms for name, answer in form.answers.items() if answer is not None}
        assert answered == {question.column for question in QUESTIONS}
        keys = {photo.question_key for form in forms for photo in form.photos}
        assert keys == {*PHOTO_QUESTION_KEYS.values(), "upload_receipt_photo(s)"}

    def test_sentences_and_leading_spaces_are_understood(self, forms: list[Form], messages: list[Produced]) -> None:
        damaged = {form.answers["full_height_face_frames_doors_drawers_damaged"] for form in forms}
        assert damaged == {True, False, None}
        available = {form.answers["lower_face_frames_doors_drawers_available"] for form in forms}
        assert {"Yes", "No", "Yes, all of them", "Most of them"} < available
        text = b"".join(m.details_json or b"" for m in messages)
        assert b'"questionText":" Are All The Face Frames, Doors, And Drawer Fronts Damaged?"' in text
        assert b'"name":"There is no damage"' in text

    def test_feet_have_decimals_and_box_counts_may_be_no_whole_number(self, forms: list[Form]) -> None:
        feet = {form.answers["countertops_lf"] for form in forms}
        assert {12.5, 12.0} <= feet
        assert any("boxes" in warning for form in forms for warning in form.warnings)

    def test_parts_are_missing_by_turns(self, messages: list[Produced]) -> None:
        completed = [m.details or {} for m in of_kind("completed", messages)]
        questions = [q for d in completed for g in d["response"]["groups"] for q in g["questionAndAnswers"]]
        answers = [question["responseAnswerExport"] for question in questions]

        assert {details["externalLinkData"] is None for details in completed} == {True, False}
        assert None in answers
        assert {"type": "option", "optionAnswer": None} in answers
        assert {"type": "text", "text": None} in answers
        assert {type(d["externalLinkData"]["phone"]) for d in completed if d["externalLinkData"]} == {int, str}

    def test_unknown_questions_and_older_texts_are_there(self, forms: list[Form]) -> None:
        known = {(question.group, question.text) for question in QUESTIONS}
        asked = {(group, entry["q"]) for form in forms for group, entries in form.raw_data.items() for entry in entries}

        assert ("Other Details and Information", "Is anybody at home in the morning?") in asked - known
        photos = {(photo.question_text, photo.question_key) for form in forms for photo in form.photos}
        assert ("Upload Lower Cabinet Box Photo(s)", "lower_cabinet_box") in photos

    def test_media_ids_are_never_used_twice(self, forms: list[Form]) -> None:
        media = [photo.claim_media_id for form in forms for photo in form.photos]

        assert len(media) == len(set(media))


class TestClaimXEvents:
    def test_each_is_parsed_as_it_is_expected(self, events: list[Produced]) -> None:
        for produced in events:
            parsed = parse_claimx_event(record(produced), 0.0)
            match produced.kind:
                case "other_event":
                    assert isinstance(parsed, Skip)
                    assert (parsed.reason, produced.expect) == ("not_a_task_event", "skipped")
                case "with_task":
                    assert isinstance(parsed, ClaimXEvent)
                    assert parsed.task is not None
                    assert (parsed.task["task_id"], parsed.task["assignment_id"]) == (32513, produced.assignment_id)
                    assert produced.expect == "published"
                case "with_assignment_only":
                    assert isinstance(parsed, ClaimXEvent)
                    assert (parsed.task, parsed.task_assignment_id) == (None, produced.assignment_id)
                    assert produced.expect == "published"
                case "other_task":
                    assert isinstance(parsed, ClaimXEvent)
                    assert (produced.details or {})["taskId"] in {24454, 32615}
                    assert produced.expect == "skipped"
                case "unknown_assignment":
                    assert isinstance(parsed, ClaimXEvent)
                    assert (parsed.task, produced.expect) == (None, "dead_letter")
                case _:
                    assert isinstance(parsed, Failure), produced.kind
                    assert parsed.error_class == ERROR_CLASSES[produced.kind], produced.kind
                    assert produced.expect == "dead_letter"

    def test_other_tasks_come_with_their_row_and_without(self, events: list[Produced]) -> None:
        rows = {"task" in json.loads(e.value or b"") for e in of_kind("other_task", events)}

        assert rows == {True, False}

    def test_claimx_knows_each_assignment_but_the_unknown_ones(self, events: list[Produced]) -> None:
        known = {e.assignment_id for e in events if e.details_json}
        assert known >= {e.assignment_id for e in events if e.expect == "published"}
        assert known.isdisjoint(e.assignment_id for e in of_kind("unknown_assignment", events))


class TestProduce:
    @pytest.fixture(params=["in this process", "by its URL"])
    def where(self, request: pytest.FixtureRequest, claimx: ClaimXSimulator) -> ClaimXSimulator | str:
        return claimx if request.param == "in this process" else f"{claimx.url}/"

    def test_writes_all_in_order_and_fills_claimx(
        self, broker: Broker, topic: TopicFactory, claimx: ClaimXSimulator, where: ClaimXSimulator | str
    ) -> None:
        name = topic()
        messages = list(Generator(3, start=START).tracking_messages(250))

        receipts = produce(broker.bootstrap_servers, name, iter(messages), where)

        assert [receipt.produced for receipt in receipts] == messages
        written = {(message.partition, message.offset): message for message in broker.read(name)}
        assert len(written) == len(messages)
        for receipt in receipts:
            message = written[receipt.partition, receipt.offset]
            produced = receipt.produced
            assert (message.key, message.value, message.headers) == (produced.key, produced.value, produced.headers)
        last: dict[bytes, int] = {}
        for receipt in receipts:
            assert receipt.offset > last.get(receipt.produced.key, -1)
            last[receipt.produced.key] = receipt.offset
        newest = {m.assignment_id: m.details for m in messages if m.assignment_id and m.details}
        assert {assignment_id: claimx.task(assignment_id) for assignment_id in newest} == newest

    def test_a_rate_is_kept_and_claimx_may_be_left_alone(self, broker: Broker, topic: TopicFactory) -> None:
        name = topic(partitions=1)

        receipts = produce(broker.bootstrap_servers, name, Generator(3).tracking_messages(20), None, rate=100.0)

        assert [receipt.offset for receipt in receipts] == list(range(20))
        first, last = (broker.read(name)[index].timestamp for index in (0, -1))
        assert last - first >= 50

    def test_what_cannot_be_written_is_one_error(self, broker: Broker) -> None:
        with pytest.raises(RuntimeError, match=r"^5 of 5 records were not written to topic missing: .*nknown topic"):
            produce(broker.bootstrap_servers, "missing", Generator(3).tracking_messages(5), None)
