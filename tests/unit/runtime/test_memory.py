"""What a lane reader has in memory: the rules that the interleavings of the model do not meet."""

from __future__ import annotations

from duly.runtime.memory import LaneMemory
from duly.runtime.work import Row, Verdict, VerdictKind

DONE = Verdict(VerdictKind.DONE)
LATER = Verdict(VerdictKind.LATER, "BROKER_UNAVAILABLE: gone")
RETRY = Verdict(VerdictKind.RETRY, "REFUSED: no")


class Atomic:
    """Work whose batches are whole and in order: rows of one key go together."""

    box = scope = "outbox"
    group = ""
    batch_max, in_flight_max = 10, 1

    def order_key(self, row: Row) -> tuple[str, str] | None:
        return None if row.key is None else (row.topic, row.key)

    def wave_key(self, row: Row) -> None:
        return None


def row(number: int, key: str | None) -> Row:
    return Row(number, f"m{number}", "t", "event", "t", key, 0, b"", "{}", "ready", 0)


def taken(*keys: str | None) -> tuple[LaneMemory, list[Row]]:
    memory = LaneMemory(Atomic())  # type: ignore[arg-type]
    memory.learn_holds([], range(64))
    memory.admit([row(n, key) for n, key in enumerate(keys, 1)], drained=False)
    return memory, memory.take(10)


def test_a_failure_behind_a_row_that_was_not_tried_goes_back_with_it() -> None:
    """Stored as failed it would become the blocker of its key and be sent before the first one."""
    memory, rows = taken("a", "a", "b", None)
    later = memory.judge(rows, [LATER, RETRY, DONE, RETRY])
    assert [other.id for other in later] == [1, 2]
    assert [other.id for other, _ in memory.failing] == [4]
    assert [other.id for other, _ in memory.settling] == [3]


def test_a_failure_in_front_is_stored_and_what_follows_it_waits() -> None:
    memory, rows = taken("a", "a")
    later = memory.judge(rows, [RETRY, LATER])
    assert [other.id for other in later] == [2]
    assert [other.id for other, _ in memory.failing] == [1]
    memory.admit([row(2, "a")], drained=False)
    assert memory.take(10) == []
    assert [other.id for other in memory.following] == [2]


def test_a_lane_that_was_given_back_is_unknown_and_voids_the_read_under_way() -> None:
    """Else its rows are sent by two nodes, and a lane that comes back is read without its holds."""
    memory, _ = taken()
    epoch = memory.epoch
    memory.release({3, 4})
    assert memory.known_lanes == frozenset(range(64)) - {3, 4}
    assert memory.epoch > epoch
    memory.release({3})
    assert memory.epoch == epoch + 1
