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
    memory.learning(range(64))
    memory.learn_holds([])
    memory.admit([row(n, key) for n, key in enumerate(keys, 1)], drained=False)
    return memory, memory.take(10)


def test_a_failure_behind_a_row_that_was_not_tried_goes_back_with_it() -> None:
    """Stored as failed it would become the blocker of its key and be sent before the first one."""
    memory, rows = taken("a", "a", "b", None)
    later = memory.judge(rows, [LATER, RETRY, DONE, RETRY])
    assert [other.id for other in later] == [1, 2]
    assert [other.id for other, _ in memory.failing] == [4]
    assert [other.id for other, _ in memory.settling] == [3]


def test_of_two_failures_of_a_key_the_first_is_stored() -> None:
    """The second would be the blocker, or due before the first."""
    memory, rows = taken("a", "a", None, None)
    later = memory.judge(rows, [RETRY, RETRY, RETRY, RETRY])
    assert [other.id for other in later] == [2]
    assert [other.id for other, _ in memory.failing] == [1, 3, 4]


def test_a_failure_in_front_is_stored_and_what_follows_it_waits() -> None:
    memory, rows = taken("a", "a")
    later = memory.judge(rows, [RETRY, LATER])
    assert [other.id for other in later] == [2]
    assert [other.id for other, _ in memory.failing] == [1]
    memory.admit([row(2, "a")], drained=False)
    assert memory.take(10) == []
    assert [other.id for other in memory.following] == [2]


def test_what_was_not_stored_when_the_lanes_were_lost_is_up_to_the_next_owner() -> None:
    memory, (first,) = taken("a")
    memory.judge([first], [RETRY])
    memory.admit([row(2, "a")], drained=False)
    assert memory.take(10) == []
    followers = list(memory.following)
    era = memory.era
    memory.forget_lanes()
    assert memory.era > era
    assert not memory.failing
    assert not memory.following
    memory.learning(range(64))
    memory.learn_holds([])
    memory.admit([row(1, "a")], drained=False)
    memory.failure_stored(first)  # the statement that was under way comes back
    memory.followers_stored(followers)
    assert set(memory.busy) == {1}


def test_what_was_drained_beside_an_unmarked_follower_is_looked_for_again() -> None:
    memory, (first,) = taken("a")
    memory.judge([first], [RETRY])
    memory.failure_stored(first)
    memory.admit([row(3, "a")], drained=False)
    assert memory.take(10) == []
    memory.look_held = False
    memory.admit([row(2, "a")], drained=True)  # void: a follower of its key is being marked
    memory.followers_stored(list(memory.following))
    assert memory.look_held
    assert not memory.busy


def test_a_lane_that_goes_while_its_holds_are_asked_for_is_not_learned() -> None:
    memory = LaneMemory(Atomic())  # type: ignore[arg-type]
    memory.learning({1, 2})
    memory.keep({1})
    memory.learn_holds([])
    assert memory.known_lanes == {1}


def test_a_lane_that_was_given_back_is_unknown_and_voids_the_read_under_way() -> None:
    """Else its rows are sent by two nodes, and a lane that comes back is read without its holds."""
    memory, _ = taken()
    epoch = memory.epoch
    others = frozenset(range(64)) - {3, 4}
    memory.keep(others)
    assert memory.known_lanes == others
    assert memory.epoch > epoch
    memory.keep(others | {3})
    assert memory.known_lanes == others
    assert memory.epoch == epoch + 1
