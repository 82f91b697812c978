from __future__ import annotations

import pytest

from duly.wire.options import choice, options_of, whole


def test_options_are_read_and_known() -> None:
    assert options_of("", {"a"}) == {}
    assert options_of("a=1&b=", {"a", "b"}) == {"a": "1", "b": ""}
    with pytest.raises(ValueError, match="unknown option 'c'; known are a, b"):
        options_of("a=1&c=2", {"b", "a"})
    with pytest.raises(ValueError, match="bad query field"):
        options_of("a", {"a"})


def test_a_choice_is_one_of_the_allowed() -> None:
    assert choice({}, "verify", ("yes", "no")) == "yes"
    assert choice({"verify": "no"}, "verify", ("yes", "no")) == "no"
    with pytest.raises(ValueError, match="verify must be yes or no"):
        choice({"verify": ""}, "verify", ("yes", "no"))


@pytest.mark.parametrize("text", ["", "0", "11", "-1", "1.5", "²", "1000000000001", " 1"])
def test_a_whole_number_is_in_its_bounds(text: str) -> None:
    assert whole({}, "n", default=0, most=10) == 0
    assert whole({"n": "10"}, "n", default=0, most=10) == 10
    with pytest.raises(ValueError, match="n must be a whole number from 1 to 10"):
        whole({"n": text}, "n", default=0, most=10)
