from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duly.kernel.retry_after import SECONDS_MAX, retry_after

NOW = 784_111_777.0  # Sun, 06 Nov 1994 08:49:37 GMT


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("0", 0), (" 120 ", 120), ("99999999999999999999", SECONDS_MAX),
     ("Sun, 06 Nov 1994 08:49:47 GMT", 10), ("Sun, 06 Nov 1994 08:49:27 GMT", 0),
     ("Sun, 06 Nov 2094 08:49:27 GMT", SECONDS_MAX)],
)  # fmt: skip
def test_reads_both_forms(text, wanted):
    assert retry_after(text, NOW) == wanted


@pytest.mark.parametrize(
    "text",
    ["", "soon", "-1", "1.5", "1e3", "٣", "Sun, 99 Foo 1994 08:49:37 GMT", "9" * 21,
     "x" * 65 + "GMT",
     "Sun, 06 Nov 1994 08:49:37"],
)  # fmt: skip
def test_what_says_nothing(text):
    assert retry_after(text, NOW) is None


@given(st.text(max_size=80), st.floats(0, 1e11))
def test_whatever_a_peer_writes_is_bounded(text, now):
    found = retry_after(text, now)
    assert found is None or (math.isfinite(found) and 0 <= found <= SECONDS_MAX)
