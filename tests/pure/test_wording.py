"""Questions are known by their words: over what editors, word processors and people do to them."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from itel_cabinet.transforms.wording import normalize
from tests.support.cabinet_samples import PHOTO_QUESTION_KEYS, QUESTIONS, details, group, parse_form, question

SPACES = [chr(code) for code in range(0x3001) if chr(code).isspace()]
INVISIBLE = [one for one in map(chr, range(0x110000)) if unicodedata.category(one) == "Cf"]
INVISIBLE += ["\ufe0e", "\ufe0f", "\x00", "\x08"]
DASHES = [*"\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d"]
APOSTROPHES = "\u2018\u2019\u201b\u2032\u00b4\u0060\u02bc\uff07"
QUOTES = "\u201c\u201d\u201e\u2033\u00ab\u00bb\uff02"
ALL_TEXTS = [question.text for question in QUESTIONS] + list(PHOTO_QUESTION_KEYS)


@st.composite
def spellings(draw: st.DrawFn, text: str) -> str:
    """The same words as somebody else may have typed them."""
    out = draw(st.sampled_from(["", *SPACES, *INVISIBLE]))
    for one in text:
        shapes = [one, one.upper() if len(one.upper()) == 1 else one, one.lower()]
        if one == " ":
            shapes = draw(st.lists(st.sampled_from(SPACES), min_size=1, max_size=3).map(lambda found: ["".join(found)]))
        elif one == "-":
            shapes += DASHES
        elif one.isascii() and one.isprintable():
            shapes.append(chr(ord(one) + 0xFEE0))  # its full-width form
        out += draw(st.sampled_from(shapes)) + draw(st.just("") | st.sampled_from(INVISIBLE))
    return out + draw(st.sampled_from(["", *SPACES]))


@given(st.data(), st.sampled_from(QUESTIONS))
def test_a_question_is_known_however_it_is_spelt(data: st.DataObject, asked: object) -> None:
    known = next(one for one in QUESTIONS if one is asked)
    group_name, text = data.draw(spellings(known.group)), data.draw(spellings(known.text))
    value = {"yes_no": "Yes", "decimal": 9.5, "integer": 3}.get(known.type, "Quartz")
    read = parse_form(details(group(group_name, question(text, value))))
    assert read.answers[known.column] == (True if value == "Yes" else value)
    assert read.unknown_questions == ()


@given(st.data(), st.sampled_from(sorted(PHOTO_QUESTION_KEYS)))
def test_a_photo_question_is_known_however_it_is_spelt(data: st.DataObject, text: str) -> None:
    read = parse_form(details(group("G", question(data.draw(spellings(text)), [7], "control-0"))))
    assert [photo.question_key for photo in read.photos] == [PHOTO_QUESTION_KEYS[text]]
    assert read.unknown_questions == ()


@given(st.text(max_size=60))
def test_what_is_normal_stays_so(text: str) -> None:
    assert normalize(normalize(text)) == normalize(text)


def test_no_two_questions_become_one() -> None:
    places = {(normalize(question.group), normalize(question.text)) for question in QUESTIONS}
    assert len(places) == len(QUESTIONS)
    assert len({normalize(text) for text in PHOTO_QUESTION_KEYS}) == len(PHOTO_QUESTION_KEYS)


@pytest.mark.parametrize(("plain", "others"), [("it's", APOSTROPHES), ('"it"', QUOTES)])
def test_quotes_are_of_one_kind(plain: str, others: str) -> None:
    mark = "'" if "'" in plain else '"'
    assert {normalize(plain.replace(mark, other)) for other in others} == {plain}


@pytest.mark.parametrize("text", ["Lower Cabinets Damaged", "Lower Cabinets  Broken?", "Low-er Cabinets Damaged?", ""])
def test_other_words_are_another_question_and_said(text: str) -> None:
    read = parse_form(details(group("Cabinet Types Damaged", question(text, "Yes"))))
    assert read.answers["lower_cabinets_damaged"] is None
    assert read.unknown_questions == (normalize(text),)
    assert f"unknown question '{' '.join(text.split())}' in group 'Cabinet Types Damaged'" in read.warnings
    assert read.raw_data["Cabinet Types Damaged"][0]["a"] == "Yes"


def test_a_section_does_not_disappear_without_a_word() -> None:
    boxes = group("Lower Cabinets", question("Enter Number of Damaged Lower Boxes", 3))
    said = "lower_cabinets_damaged: not answered, so the section is not sent, though num_damaged_lower_boxes is"
    assert said in parse_form(details(boxes)).warnings
    for answer in ("Yes", "No"):
        damaged = group("Cabinet Types Damaged", question("Lower Cabinets Damaged?", answer))
        assert parse_form(details(boxes, damaged)).warnings == ()
