from __future__ import annotations

import dataclasses

import pytest

from duly.errors import ConfigurationError
from duly.kernel.backoff import ATTEMPTS_MAX, Retry


def test_grows_from_base_to_max_and_stays():
    retry = Retry(base="1s", max="10s", factor=2, jitter=False)
    assert [retry.delay(n, 0.0) for n in (1, 2, 3, 4, 5, 6)] == [1, 2, 4, 8, 10, 10]


def test_jitter_lies_between_half_and_the_whole():
    retry = Retry(base="4s", max="1m")
    assert retry.delay(1, 0.0) == 2
    assert retry.delay(1, 1.0) == 4
    assert retry.delay(2, 0.5) == 6


@pytest.mark.parametrize("attempt", [100, 10_000, 10**9])
def test_no_attempt_number_overflows(attempt):
    assert Retry(factor=100.0, max="5m", jitter=False).delay(attempt, 0.3) == 300


def test_factor_one_never_grows():
    assert Retry(base=3, max=7, factor=1, jitter=False).delay(10**6, 0) == 3


def test_base_equal_to_max():
    assert Retry(base=3, max=3, jitter=False).delay(1, 0) == 3


def test_exhausted_counts_attempts_made():
    retry = Retry(attempts=3)
    assert [retry.exhausted(n) for n in (0, 1, 2, 3, 4)] == [False, False, False, True, True]
    assert Retry(attempts=1).exhausted(1)


@pytest.mark.parametrize(("attempt", "chance"), [(0, 0.5), (-1, 0.5), (1, -0.1), (1, 1.1)])
def test_delay_refuses_nonsense(attempt, chance):
    with pytest.raises(ValueError, match="must be at least 1"):
        Retry().delay(attempt, chance)


@pytest.mark.parametrize(
    "bad",
    [
        {"attempts": 0},
        {"attempts": -1},
        {"attempts": True},
        {"attempts": 2.0},
        {"attempts": ATTEMPTS_MAX + 1},
        {"factor": 0.99},
        {"factor": float("nan")},
        {"factor": float("inf")},
        {"factor": True},
        {"factor": "2"},
        {"factor": 101},
        {"jitter": 1},
        {"base": "1"},
        {"base": 0},
        {"max": "0s"},
        {"base": "10s", "max": "9s"},
    ],
)
def test_refused_at_construction(bad):
    with pytest.raises(ConfigurationError, match="Retry"):
        Retry(**bad)


def test_is_a_frozen_value():
    assert Retry(base="1s") == Retry(base="1s")
    assert hash(Retry()) == hash(Retry())
    assert "seconds" not in repr(Retry())
    with pytest.raises(dataclasses.FrozenInstanceError):
        Retry().attempts = 9  # type: ignore[misc]


@pytest.mark.parametrize("on", [OSError, [OSError], ("x",), (KeyboardInterrupt,), (OSError("x"),)])
def test_on_takes_a_tuple_of_exception_classes(on):
    with pytest.raises(ConfigurationError, match="tuple of exception classes"):
        Retry(on=on)


def test_who_is_no_call_refuses_on():
    Retry().refuse_on("a route")
    with pytest.raises(ConfigurationError, match=r"a route: .*for calls"):
        Retry(on=(OSError,)).refuse_on("a route")
