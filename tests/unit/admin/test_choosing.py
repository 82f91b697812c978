from __future__ import annotations

import ast
from itertools import product
from pathlib import Path

import pytest

from duly.admin.choosing import QUESTIONS, WAYS, Question, Way, choose

ROOT = Path(__file__).resolve().parents[3]
NAMES = [question.name for question in QUESTIONS]


@pytest.mark.parametrize(
    ("answers", "wanted"),
    [
        ({"code": False}, "cdc"),
        ({"code": True, "together": True}, "global-transaction"),
        ({"code": True, "together": False, "bulk": True}, "batch"),
        ({"code": True, "together": False, "bulk": False, "answer": True}, "sync"),
    ],
)
def test_a_way_is_clear_before_all_is_asked(answers, wanted):
    assert choose(answers) is WAYS[wanted]


def test_the_rest_is_a_matter_of_loss_and_place():
    plain = {"code": True, "together": False, "bulk": False, "answer": False}
    assert choose({**plain, "loss": False}).name == "outbox"
    assert choose({**plain, "loss": True, "here": True}).name == "background"
    assert choose({**plain, "loss": True, "here": False}).name == "after-commit"


def test_every_combination_leads_to_one_way_and_every_way_is_reached():
    found = [
        choose(dict(zip(NAMES, bits, strict=True))) for bits in product([True, False], repeat=6)
    ]
    assert all(isinstance(way, Way) for way in found)
    assert {way.name for way in found} == set(WAYS)


def test_the_next_question_is_the_first_that_matters_and_is_open():
    assert choose({}) == QUESTIONS[0]
    asked = choose({"code": True, "here": True})
    assert isinstance(asked, Question)
    assert asked.name == "together"


@pytest.mark.parametrize("way", WAYS.values(), ids=list(WAYS))
def test_what_is_recommended_stands(way):
    ast.parse(way.snippet)
    example = (ROOT / way.example).read_text()
    assert way.snippet in example, "the snippet is not the one that runs"
    assert (ROOT / way.page).exists()
    page = (ROOT / "docs" / "choose.md").read_text()
    for text in (way.title, Path(way.example).name, way.page.removeprefix("docs/")):
        assert text.lower() in page.lower(), f"docs/choose.md does not say {text}"
