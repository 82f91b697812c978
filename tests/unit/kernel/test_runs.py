from __future__ import annotations

import pytest

from duly.errors import RunActiveError, WrongStatusError
from duly.kernel import runs
from duly.kernel.runs import CRASHES_MAX, STATUSES, VERBS, Run, decided


def test_an_attempt_is_counted_and_fenced() -> None:
    first = runs.begun(Run("due"))
    assert first == Run("running", attempt=1, tries=1, token=1)
    taken_over = runs.begun(first)
    assert taken_over == Run("running", attempt=2, tries=2, token=2)
    assert runs.got_on(taken_over).tries == 0
    assert runs.ended(taken_over) == Run("done", attempt=2, tries=0, token=2)


@pytest.mark.parametrize("status", ["stopped", "failed", "done", "abandoned"])
def test_only_a_waiting_run_is_begun(status: str) -> None:
    with pytest.raises(WrongStatusError):
        runs.begun(Run(status))


@pytest.mark.parametrize("change", [runs.got_on, runs.ended, runs.given_back])
def test_what_is_not_running_cannot_get_on_or_end(change: object) -> None:
    with pytest.raises(WrongStatusError):
        change(Run("due"))  # type: ignore[operator]
    with pytest.raises(WrongStatusError):
        runs.broken(Run("stopped"), again=True)


def test_an_error_waits_for_its_next_attempt_or_for_a_person() -> None:
    running = Run("running", attempt=1, tries=1, token=1)
    assert runs.broken(running, again=True) == Run("due", 1, 1, 1)
    assert runs.broken(running, again=False) == Run("failed", 1, 1, 1)


def test_no_other_attempt_follows_where_a_person_wanted_it_to_stop() -> None:
    running = Run("running", attempt=1, tries=1, token=1, wanted="stop")
    assert runs.broken(running, again=True) == Run("stopped", 1, 1, 1)
    assert runs.broken(running, again=False) == Run("failed", 1, 1, 1)


def test_a_safe_point_belongs_to_who_asked_for_it() -> None:
    assert runs.given_back(Run("running", 1, 1, 1, "stop")).status == "stopped"
    assert runs.given_back(Run("running", 1, 1, 1)).status == "due"


def test_a_run_that_always_takes_its_process_along_is_worn_out() -> None:
    assert not runs.worn_out(Run("running", tries=CRASHES_MAX - 1))
    assert runs.worn_out(Run("running", tries=CRASHES_MAX))


@pytest.mark.parametrize("verb", sorted(VERBS))
@pytest.mark.parametrize("status", STATUSES)
def test_each_verb_in_each_status(verb: str, status: str) -> None:
    run = Run(status, attempt=3, tries=2, token=7)
    already = {"restart": "due", "stop": "stopped", "kill": "stopped", "abandon": "abandoned"}
    if already.get(verb) == status:
        assert decided(verb, run) == run
    elif status not in VERBS[verb]:
        kind = RunActiveError if status == "running" else WrongStatusError
        with pytest.raises(WrongStatusError) as refused:
            decided(verb, run)
        assert type(refused.value) is kind
    elif (verb, status) == ("stop", "running"):
        after = decided(verb, run)
        assert after == run._replace(wanted="stop")
        assert decided(verb, after) == after
    else:
        assert decided(verb, run) == Run(VERBS[verb][status], attempt=3, tries=0, token=8)
