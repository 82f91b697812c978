from __future__ import annotations

import json

import pytest

from bench.load import BYTES, body


@pytest.mark.parametrize("number", [0, 7, 123_456_789])
def test_a_body_is_json_of_one_kilobyte(number: int):
    made = body(number)
    assert len(made) == BYTES
    assert json.loads(made)["order_id"] == number
