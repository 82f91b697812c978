"""What a delivery does next; histories over a crooked server are in tests/property."""

from __future__ import annotations

from dataclasses import replace

import pytest

from duly.kernel.resume import Act, FileFeatures, Goal, Held, Move, Remote, Seen, Way, next_move

ALL = FileFeatures(acknowledges=True, resumes=True, reads=True, replaces=True, refuses=True)
GOAL = Goal("pay.csv", ".pay.1", 100)
SENT = Held(temp=".pay.1", acked_bytes=60)
DONE = replace(SENT, acked_bytes=100, uploaded=True)
READY = replace(DONE, verified=True)


def move(
    held: Held, goal: Goal = GOAL, features: FileFeatures = ALL, **seen: object
) -> tuple[Act, int | Way | str]:
    """The act, and what there is to it."""
    found = next_move(goal, held, Seen(**seen), features=features)  # type: ignore[arg-type]
    return found.act, found.way or found.code or found.offset


def test_nothing_is_there() -> None:
    assert move(Held()) == (Act.CREATE, 0)
    assert move(SENT) == (Act.CREATE, 0)
    assert move(DONE) == (Act.REFUSE, "FILE_TARGET_VANISHED")
    assert move(READY) == (Act.UNKNOWN, 0)
    assert move(Held(failures=1)) == (Act.CREATE, 0)
    assert move(Held(failures=2)) == (Act.REFUSE, "FILE_VERIFY_FAILED")


def test_what_is_of_no_use_is_forgotten_with_the_refusal() -> None:
    assert next_move(GOAL, DONE, Seen(), features=ALL).forget
    assert next_move(GOAL, Held(failures=2), Seen(), features=ALL).forget
    assert not next_move(GOAL, READY, Seen(), features=ALL).forget


@pytest.mark.parametrize(
    ("there", "window", "features", "expected"),
    [
        (80, None, ALL, (Act.CHECK, 60)),  # never further than what was answered
        (50, None, ALL, (Act.CHECK, 50)),  # nor than what is there
        (80, True, ALL, (Act.WRITE, 60)),
        (80, False, ALL, (Act.DISCARD, 0)),
        (101, None, ALL, (Act.DISCARD, 0)),
        (0, None, ALL, (Act.CREATE, 0)),
        (80, None, replace(ALL, resumes=False), (Act.CREATE, 0)),
        (80, True, replace(ALL, acknowledges=False), (Act.WRITE, 80)),
    ],
)
def test_where_a_resume_begins(
    there: int, window: bool | None, features: FileFeatures, expected: tuple[Act, int]
) -> None:
    assert move(SENT, features=features, temp=Remote(there), window=window) == expected


def test_another_attempts_file_is_moved_first() -> None:
    old = replace(SENT, temp=".pay.0")
    assert move(old, temp=Remote(60)) == (Act.CLAIM, 0)
    claimed = replace(old, claim=".pay.1")
    assert move(claimed, temp=None, claim=Remote(60)) == (Act.CLAIMED, 0)
    assert move(claimed, temp=Remote(60)) == (Act.CLAIM, 0)


def test_what_cannot_be_ours_is_not_written_over() -> None:
    assert move(SENT, temp=Remote(0, "link")) == (Act.REFUSE, "FILE_TARGET_NOT_A_FILE")
    for kind in ("folder", "link", "other"):
        for goal in (GOAL, replace(GOAL, replace=True)):
            found = next_move(goal, Held(), Seen(final=Remote(0, kind)), features=ALL)  # type: ignore[arg-type]
            assert found == Move(
                Act.REFUSE, code="FILE_TARGET_NOT_A_FILE", detail=f"pay.csv is a {kind}"
            )


def test_bytes_of_another_content_are_cleared_away() -> None:
    stale = Held(temp=".pay.0", stale=True)
    assert move(stale, temp=Remote(60)) == (Act.DISCARD, 0)
    assert move(stale) == (Act.CREATE, 0)


def test_a_name_that_is_taken() -> None:
    other = Remote(7)
    assert move(Held(), final=other) == (Act.REFUSE, "FILE_TARGET_EXISTS")
    assert move(Held(), final=Remote(100)) == (Act.COMPARE, 0)
    assert move(Held(), final=Remote(100), same=False) == (Act.REFUSE, "FILE_TARGET_EXISTS")
    assert move(Held(), final=Remote(100), same=True) == (Act.ADOPT, 0)
    told = replace(GOAL, replace=True)
    assert move(Held(), told, final=Remote(100)) == (Act.CREATE, 0)
    assert move(READY, told, final=Remote(100)) == (Act.COMPARE, 0)
    assert move(READY, told, final=other, temp=Remote(100)) == (Act.RENAME, Way.ATOMIC)


def test_only_a_verified_file_is_renamed() -> None:
    assert move(DONE, temp=Remote(100)) == (Act.VERIFY, 0)
    assert move(READY, temp=Remote(100)) == (Act.RENAME, Way.PLAIN)
    marked = replace(GOAL, marker="pay.csv.done")
    assert move(READY, marked, temp=Remote(100), marker=Remote(1)) == (Act.UNMARK, 0)
    found = move(READY, marked, temp=Remote(100), marker=Remote(1), says=True)
    assert found == (Act.RENAME, Way.PLAIN)


def ways(goal: Goal, features: FileFeatures, held: Held, *, taken: bool) -> list[object]:
    """What is tried, one after the other, when everything is refused."""
    tried: list[object] = []
    refused: frozenset[tuple[Way, bool]] = frozenset()
    final = Remote(7) if taken else None
    while True:
        seen = Seen(temp=Remote(100), final=final, refused=refused)
        found = next_move(goal, held, seen, features=features)
        if found.act is not Act.RENAME:
            return [*tried, found.code or found.act]
        assert found.way is not None
        tried.append(found.way)
        refused |= {(found.way, taken)}


def test_the_ways_to_the_final_name() -> None:
    told, none = replace(GOAL, replace=True), replace(ALL, replaces=False)
    end = "FILE_TARGET_REFUSED"
    assert ways(GOAL, ALL, READY, taken=False) == [Way.PLAIN, Way.ATOMIC, end]
    assert ways(GOAL, none, READY, taken=False) == [Way.PLAIN, end]
    assert ways(told, ALL, READY, taken=True) == [Way.ATOMIC, Way.PLAIN, Way.ASIDE, end]
    assert ways(told, none, READY, taken=True) == [Way.PLAIN, Way.ASIDE, end]
    aside = replace(READY, aside=".old")
    assert ways(told, none, aside, taken=False) == [Way.PLAIN, Act.RESTORE]
    assert ways(told, none, aside, taken=True)[-1] == end


def test_after_the_rename() -> None:
    done = replace(READY, published=True)
    marked = replace(GOAL, marker="pay.csv.done")
    assert move(done) == (Act.DONE, 0)
    assert move(done, marked) == (Act.MARK, 0)
    assert move(replace(done, marked=True), marked) == (Act.DONE, 0)
    assert move(replace(done, aside=".old"), marked) == (Act.TIDY, 0)
