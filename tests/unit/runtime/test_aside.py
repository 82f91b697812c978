from __future__ import annotations

from duly.runtime.aside import PAUSE_SECONDS_MAX, REPORT_SECONDS, Aside


def test_pauses_grow_until_something_goes_well() -> None:
    aside, now, pauses = Aside(), 100.0, []
    for _ in range(12):
        trouble = aside.put("orders", "UNROUTED: x", now=now, chance=1.0)
        assert trouble is not None
        pauses.append(trouble.until - now)
        now = trouble.until
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (0.25, PAUSE_SECONDS_MAX)
    aside.went_well(["orders"])
    assert not aside
    again = aside.put("orders", "UNROUTED: x", now=now, chance=1.0)
    assert again is not None
    assert (again.tries, again.since, again.until - now) == (1, now, 0.25)


def test_a_topic_that_is_aside_is_not_counted_twice_and_is_read_again_when_its_time_is_over() -> (
    None
):
    aside = Aside()
    first = aside.put("orders", "UNROUTED: x", now=10.0, chance=1.0)
    assert first is not None
    assert aside.put("orders", "UNROUTED: y", now=10.1, chance=1.0) is None
    assert (first.tries, first.error) == (1, "UNROUTED: x")
    assert aside.topics(10.1) == {"orders"}
    assert not aside.wake(10.2)
    assert aside.wake(10.25)
    assert not aside.wake(10.25), "told once"
    assert aside.topics(10.25) == frozenset()
    second = aside.put("orders", "UNROUTED: z", now=10.3, chance=1.0)
    assert second is first
    assert (second.tries, second.since, second.error) == (2, 10.0, "UNROUTED: z")


def test_only_what_lasts_is_told_and_its_end_is_told_once() -> None:
    aside, now = Aside(), 0.0
    lasting = []
    for _ in range(4):
        trouble = aside.put("orders", "UNROUTED: x", now=now, chance=0.5)
        assert trouble is not None
        lasting.append(trouble.lasting)
        now = trouble.until
    assert lasting == [False, False, True, True]
    trouble.told = True
    aside.put("mails", "UNROUTED: x", now=now, chance=0.5)
    assert aside.went_well(["orders", "mails", "stock"]) == ["orders"]
    assert aside.went_well(["orders"]) == []


def test_what_a_reader_before_has_told_is_taken_back_by_the_next() -> None:
    aside = Aside()
    aside.learn(["orders"], 5.0)
    assert aside.topics(5.0) == frozenset()
    assert not aside.wake(5.0)
    assert aside.went_well(["orders"]) == ["orders"]


def test_it_is_reported_once_a_minute_from_the_first_minute_on() -> None:
    aside, reports = Aside(), []
    for now in range(0, 300, 20):
        trouble = aside.put("orders", "UNROUTED: x", now=float(now), chance=0.0)
        assert trouble is not None
        if trouble.report_due(float(now)):
            reports.append(now)
    assert reports == [REPORT_SECONDS, 120, 180, 240]
