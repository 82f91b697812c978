from __future__ import annotations

from datetime import timedelta

import pytest

from duly.errors import ConfigurationError
from duly.kernel.durations import SECONDS_MAX, seconds


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("250ms", 0.25),
        ("5s", 5.0),
        ("5m", 300.0),
        ("1.5h", 5_400.0),
        ("2d", 172_800.0),
        (" 30 s ", 30.0),
        ("1.000000001s", 1.000000001),
        (3, 3.0),
        (0.5, 0.5),
        (timedelta(minutes=1, milliseconds=500), 60.5),
        (SECONDS_MAX, SECONDS_MAX),
    ],
)
def test_reads_what_users_write(written, expected):
    assert seconds(written) == pytest.approx(expected)


@pytest.mark.parametrize(
    "written",
    [
        "",
        "5",
        "m",
        "-5s",
        "+5s",
        "5 minutes",
        "5M",
        "1e3s",
        "5s\n5s",
        "0x10s",
        "५s",
        "1.s",
        ".5s",
        "NaN",
        "inf",
        "9999999999999s",
        True,
        False,
        None,
        [],
        b"5s",
        -1,
        -0.001,
        float("nan"),
        float("inf"),
        float("-inf"),
        1e309,
        10**400,
        SECONDS_MAX * 1.001,
        "3653d",
        timedelta(seconds=-1),
        timedelta.max,
        0,
        "0s",
        timedelta(0),
    ],
)
def test_refuses_and_names_the_setting(written):
    with pytest.raises(ConfigurationError, match="lease_ttl") as caught:
        seconds(written, "lease_ttl")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("zero", [0, 0.0, "0s", timedelta(0)])
def test_zero_only_where_it_means_something(zero):
    assert seconds(zero, allow_zero=True) == 0
    with pytest.raises(ConfigurationError, match="at most 10 years"):
        seconds(zero)


def test_allow_zero_still_refuses_negative():
    with pytest.raises(ConfigurationError):
        seconds(-1, allow_zero=True)
