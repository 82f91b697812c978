from __future__ import annotations

import pytest

from duly.observe.health import CallHealth, Health, RoleState


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def health(clock):
    return Health(clock)


def states(health: Health) -> dict[str, RoleState]:
    return {role.role: role.state for role in health.report().roles}


def test_a_process_without_roles_is_live_but_not_ready(health):
    assert health.report() == (True, False, (), ())


def test_calls_are_shown_and_make_nobody_unready(health):
    health.expect("relay", within_seconds=5)
    health.turned("relay")
    health.watch_call(lambda: CallHealth("rate", "open", 3, 1))
    health.watch_call(lambda: CallHealth("charge", "", 0, 0))
    report = health.report()
    assert report.ready
    assert [call.call for call in report.calls] == ["charge", "rate"]


def test_a_role_is_starting_until_its_loop_turned(health, clock):
    health.expect("relay", within_seconds=5)
    assert states(health) == {"relay": RoleState.STARTING}
    assert not health.report().ready
    health.turned("relay")
    report = health.report()
    assert report.live
    assert report.ready
    assert states(health) == {"relay": RoleState.HEALTHY}


def test_silence_past_the_limit_is_stalled_whatever_was_said_before(health, clock):
    health.expect("relay", within_seconds=5)
    health.expect("never", within_seconds=5)
    health.turned("relay")
    clock.now += 5
    assert states(health) == {"never": RoleState.STARTING, "relay": RoleState.HEALTHY}
    clock.now += 0.1
    report = health.report()
    assert states(health) == {"never": RoleState.STALLED, "relay": RoleState.STALLED}
    assert not report.live
    assert not report.ready
    assert report.roles[1].silent_seconds == pytest.approx(5.1)
    health.turned("relay")
    assert states(health)["relay"] is RoleState.HEALTHY


def test_a_loop_that_turns_without_working_is_degraded_and_says_why(health, clock):
    health.expect("relay", within_seconds=5)
    health.turned("relay", code="BROKER_UNAVAILABLE")
    report = health.report()
    assert (report.live, report.ready) == (True, False)
    assert report.roles[0].code == "BROKER_UNAVAILABLE"
    clock.now += 6
    assert health.report().roles[0][1:] == (RoleState.STALLED, 6, "BROKER_UNAVAILABLE")
    health.turned("relay")
    assert health.report().roles[0].code == ""


def test_a_role_that_ended_in_order_may_be_silent(health, clock):
    health.expect("relay", within_seconds=5)
    health.stopped("relay")
    clock.now += 1_000
    report = health.report()
    assert states(health) == {"relay": RoleState.STOPPED}
    assert report.live
    assert not report.ready


def test_an_unexpected_role_is_a_mistake_of_the_caller(health):
    with pytest.raises(KeyError):
        health.turned("relay")
    with pytest.raises(KeyError):
        health.stopped("relay")


def test_a_clock_that_goes_back_harms_nobody(health, clock):
    health.expect("relay", within_seconds=5)
    health.turned("relay")
    clock.now -= 50
    assert health.report().roles[0].silent_seconds == 0
