from __future__ import annotations

from typing import Any

import pytest

from duly.batch.formats.fixed_width import FixedWidth, Width
from duly.batch.formats.text import RowRefusedError
from duly.errors import ConfigurationError

FORM = FixedWidth(
    "a",
    widths={"id": Width(5, "right", "0"), "name": 4, "note": Width(2, null="--")},
    first_line="H{day}",
    last_line="T{rows:04d}",
)


def test_every_value_has_its_places():
    assert FORM.columns == ("id", "name", "note")
    encoder = FORM.encoder([], {"day": "d"})
    data = encoder.begin() + encoder.rows([(1, "ab", None), (22, None, "x")]) + encoder.end(2)
    assert data == b"Hd\n00001ab  --\n00022    x \nT0002\n"


@pytest.mark.parametrize("value", ["abcde", "a\nb", "\r"])
def test_what_does_not_fit_is_refused_and_not_cut(value: str):
    with pytest.raises(RowRefusedError, match="name") as caught:
        FORM.encoder([], {"day": "d"}).rows([(1, "a", None), (1, value, None)])
    assert caught.value.index == 1


@pytest.mark.parametrize(
    "widths",
    [
        {},
        {"a": 0},
        {"a": Width(3, pad="ab")},
        {"a": Width(1, null="--")},
        {"a": Width(3, "middle")},  # type: ignore[arg-type]
    ],
)
def test_widths_that_cannot_be_are_refused(widths: dict[str, Any]):
    with pytest.raises(ConfigurationError, match="BATCH_FORMAT"):
        FixedWidth("a", widths=widths)
