"""Waves: of one key one row at a time, in order; nothing is lost from the queue."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from duly.kernel.waves import Waves

Row = tuple[int, str | None]


def key_of(row: Row) -> str | None:
    return row[1]


def test_free_rows_go_together_and_keyed_rows_one_at_a_time() -> None:
    waves: Waves[Row] = Waves(key_of)
    waves.offer([(1, None), (2, "a"), (3, "a"), (4, None), (5, "b")])
    assert waves.take(10) == [(1, None), (2, "a"), (4, None), (5, "b")]
    assert waves.take(10) == []
    assert len(waves) == 1
    waves.finish([(1, None), (2, "a")])
    assert waves.take(10) == [(3, "a")]
    assert len(waves) == 0


def test_take_is_bounded() -> None:
    waves: Waves[Row] = Waves(key_of)
    waves.offer((n, None) for n in range(5))
    assert [row[0] for row in waves.take(2)] == [0, 1]
    assert len(waves) == 3


def test_a_key_is_free_again_after_its_last_row() -> None:
    waves: Waves[Row] = Waves(key_of)
    waves.offer([(1, "a")])
    waves.finish(waves.take(1))
    waves.offer([(2, "a")])
    assert waves.take(1) == [(2, "a")]


def test_forget_drops_waiting_and_runnable_rows_and_lets_the_next_one_go() -> None:
    waves: Waves[Row] = Waves(key_of)
    waves.offer([(1, "a"), (2, "a"), (3, "a"), (4, None), (5, "b")])
    assert waves.forget(lambda row: row[0] in (1, 4)) == [(1, "a"), (4, None)]
    assert sorted(waves.take(10)) == [(2, "a"), (5, "b")]
    assert len(waves) == 1


def test_forget_keeps_a_key_in_use_while_its_row_is_under_way() -> None:
    waves: Waves[Row] = Waves(key_of)
    waves.offer([(1, "a"), (2, "a"), (3, "a")])
    under_way = waves.take(1)
    assert waves.forget(lambda row: row[0] == 2) == [(2, "a")]
    assert waves.take(1) == []
    waves.finish(under_way)
    assert waves.take(1) == [(3, "a")]


def test_forget_everything_leaves_no_trace_of_idle_keys() -> None:
    waves: Waves[Row] = Waves(key_of)
    waves.offer([(1, "a"), (2, "b")])
    assert len(waves.forget(lambda _: True)) == 2
    waves.offer([(3, "a")])
    assert waves.take(5) == [(3, "a")]


@given(st.lists(st.sampled_from([None, "a", "b", "c"]), max_size=60), st.integers(0, 10_000))
def test_per_key_the_rows_taken_are_the_rows_offered_in_order(
    keys: list[str | None], seed: int
) -> None:
    chance = random.Random(seed)
    waves: Waves[Row] = Waves(key_of)
    rows = [(n, key) for n, key in enumerate(keys)]
    todo, under_way, taken = list(rows), [], []
    while todo or under_way or len(waves):
        if todo and chance.random() < 0.5:
            cut = chance.randint(1, len(todo))
            waves.offer(todo[:cut])
            todo = todo[cut:]
        for row in waves.take(chance.randint(1, 5)):
            assert row[1] is None or row[1] not in [other[1] for other in under_way]
            under_way.append(row)
            taken.append(row)
        if under_way and chance.random() < 0.7:
            done = under_way.pop(chance.randrange(len(under_way)))
            waves.finish([done])
    assert sorted(taken) == rows
    for key in ("a", "b", "c"):
        assert [row for row in taken if row[1] == key] == [row for row in rows if row[1] == key]
