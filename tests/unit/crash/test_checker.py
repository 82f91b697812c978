"""What a death leaves open, by the journals: the only excuse for a second delivery."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.crash.checker import Deliveries, Verdict, duplicates
from tests.crash.stage import Stage

DEATH = 100.0
DONE = {"free": {"notes/0": 11}}


def line(what: str, at: float, pid: int, **more: Any) -> dict[str, Any]:
    return {"what": what, "at": at, "pid": pid, "group": "free", **more}


def received(at: float, pid: int, *offsets: int) -> dict[str, Any]:
    return line("recv", at, pid, got=[[f"m{n}", "notes/0", str(n)] for n in offsets])


def acked(at: float, pid: int, *offsets: int) -> dict[str, Any]:
    places = [["notes/0", str(n)] for n in offsets]
    return line("ack", at, pid, ids=[f"m{n}" for n in offsets], places=places)


def judged(
    folder: Path, *journal: Mapping[str, Any], looked: float = DEATH + 0.1
) -> tuple[int, int]:
    """How many deliveries were beyond the first, and how many of those have no reason."""
    death = {"what": "fault", "n": 1, "point": "at random", "unsettled": [], "at": DEATH}
    files = {"worker-1": journal, "faults": [{**death, "pid": 1, "done": DONE, "looked": looked}]}
    for name, lines in files.items():
        text = "".join(json.dumps(one) + "\n" for one in lines)
        (folder / f"{name}.jsonl").write_text(text)
    verdict = Verdict()
    duplicates(verdict, Deliveries(Stage(folder, "postgres", "", "kafka://x")), batch_max=1)
    return verdict.duplicated, verdict.unexplained


def test_what_a_log_knew_to_be_done_has_no_reason_to_come_again(tmp_path: Path) -> None:
    first = received(98.0, 1, 10, 11, 12)
    acks = acked(99.9, 1, 10, 11, 12)
    assert judged(tmp_path, first, acks, received(102.0, 2, 12)) == (1, 0)
    assert judged(tmp_path, first, acks, received(102.0, 2, 11, 12)) == (2, 1)


def test_what_was_under_way_when_its_partition_moved_may_come_again(tmp_path: Path) -> None:
    moved = line("moved", 99.0, 1, places=["notes/0"])
    first = (received(98.0, 1, 10, 11, 12), acked(98.1, 1, 11), moved, acked(99.1, 1, 12))
    again = received(99.2, 2, 10, 11, 12)
    assert judged(tmp_path, *first, again) == (3, 1)
    given_back = (line("closing", 98.5, 1), *first, line("release", 99.2, 1, ids=["m10", "m12"]))
    assert judged(tmp_path, *given_back, again) == (3, 1)


def test_one_message_at_two_places_has_an_ack_for_each(tmp_path: Path) -> None:
    twice = line("recv", 98.0, 1, got=[["m1", "notes/0", "10"], ["m1", "notes/0", "20"]])
    ack = line("ack", 98.1, 1, ids=["m1"], places=[["notes/0", "10"]])
    again = line("recv", 102.0, 2, got=[["m1", "notes/0", "20"]])
    assert judged(tmp_path, twice, ack, again, looked=101.5) == (2, 1)  # its second send, by nobody


@pytest.mark.parametrize(("looked", "unexplained"), [(100.2, 2), (101.5, 0)])
def test_a_position_read_late_is_that_of_the_heir(
    tmp_path: Path, looked: float, unexplained: int
) -> None:
    journal = (received(98.0, 1, 10, 11), acked(99.9, 1, 10, 11), received(101.0, 2, 10, 11))
    assert judged(tmp_path, *journal, looked=looked) == (2, unexplained)


def test_a_position_read_late_excuses_nothing_that_was_acked_in_time(tmp_path: Path) -> None:
    first = (received(97.0, 1, 9, 10, 11), acked(97.1, 1, 9, 11))  # 10 is not done: 11 comes again
    assert judged(tmp_path, *first, received(101.0, 2, 9, 10, 11), looked=102.0) == (3, 1)


def test_a_second_delivery_without_a_death_has_no_reason(tmp_path: Path) -> None:
    journal = (received(98.0, 2, 20), acked(98.1, 2, 20), received(99.0, 2, 20))
    assert judged(tmp_path, *journal) == (1, 1)


def test_an_ack_of_a_process_that_stood_still_may_not_have_arrived(tmp_path: Path) -> None:
    journal = (received(98.0, 1, 10, 11), acked(99.45, 1, 10, 11), received(102.0, 2, 10, 11))
    steady = [line("pulse", DEATH - n * 0.25 - 0.1, 1) for n in reversed(range(16))]
    assert judged(tmp_path, *steady, *journal, looked=101.5) == (2, 2)
    assert judged(tmp_path, *steady[:-1], *journal, looked=101.5) == (2, 0)  # 0.35 s to its death
    stood = [one for one in steady if not 98.2 < one["at"] < 98.8]
    assert judged(tmp_path, *stood, *journal, looked=101.5) == (2, 0)
    before = [one for one in steady if not 96.2 < one["at"] < 96.8]  # of no account any more
    assert judged(tmp_path, *before, *journal, looked=101.5) == (2, 2)
