from __future__ import annotations

import threading
import time

from duly.brokers.redis.hand import Hand, Token

A, B, C = b"1-0", b"2-0", b"3-0"


def test_an_entry_is_taken_and_given_once() -> None:
    hand = Hand(1, prefetch=10)
    assert hand.take(0, [A, B], until=10, epoch=0) == {A, B}
    assert hand.take(0, [B, C], until=20, epoch=0) == {C}
    assert hand.room == 7
    assert hand.give(Token(0, A), epoch=0, now=1)
    assert not hand.give(Token(0, A), epoch=0, now=1)
    hand.drop([Token(0, A)])
    assert hand.room == 8
    assert not hand.give(Token(0, A), epoch=0, now=1), "it was dropped"
    assert hand.take(0, [A], until=10, epoch=0) == {A}, "it may come again"


def test_what_others_can_have_claimed_is_not_given() -> None:
    hand = Hand(1, prefetch=10)
    hand.take(0, [A, B], until=10, epoch=0)
    assert hand.renewed(0, asked=[A, B], kept={A}, until=20) == 1
    assert hand.ids(0) == [A]
    assert hand.give(Token(0, A), epoch=0, now=19)
    hand.take(0, [B], until=10, epoch=0)
    assert not hand.give(Token(0, B), epoch=0, now=10)
    assert hand.ids(0) == [A], "room for what comes in its place"


def test_a_heartbeat_brings_nothing_back() -> None:
    hand = Hand(1, prefetch=10)
    hand.take(0, [A], until=10, epoch=0)
    hand.drop([Token(0, A)])
    assert hand.renewed(0, asked=[A], kept={A}, until=20) == 0
    assert hand.ids(0) == []


def test_after_a_turn_nothing_that_was_read_is_given() -> None:
    hand = Hand(2, prefetch=10)
    hand.take(0, [A, B, C], until=10, epoch=0)
    hand.take(1, [A], until=10, epoch=0)
    assert hand.give(Token(0, A), epoch=0, now=1)
    hand.turn(0)
    assert hand.epoch(0) == 1
    assert not hand.give(Token(0, B), epoch=0, now=1)
    assert hand.ids(0) == [A], "what is being worked on stays"
    assert hand.give(Token(1, A), epoch=0, now=1), "another source"
    assert hand.take(0, [B], until=10, epoch=0) == set(), "the answer to an earlier read"
    assert hand.take(0, [A, B, C], until=10, epoch=1) == {B, C}
    assert not hand.give(Token(0, B), epoch=0, now=1), "the copy that was read before"
    assert hand.give(Token(0, B), epoch=1, now=1)


def test_an_ordered_source_ends_with_its_lease() -> None:
    hand = Hand(1, prefetch=10)
    hand.hold(0, 5)
    hand.take(0, [A, B], until=float("inf"), epoch=0)
    assert hand.give(Token(0, A), epoch=0, now=4.9)
    assert not hand.give(Token(0, B), epoch=0, now=5)
    hand.hold(0, 20)
    assert hand.epoch(0) == 1, "or B would be overtaken"
    assert not hand.give(Token(0, B), epoch=0, now=6)


def test_room_is_waited_for_and_never_past_the_limit() -> None:
    hand = Hand(1, prefetch=4)
    hand.take(0, [A, B, C, b"4-0"], until=10, epoch=0)
    assert hand.wait_for_room(0.01) == 0
    timer = threading.Timer(0.05, lambda: hand.drop([Token(0, A)]))
    began = time.monotonic()
    timer.start()
    assert hand.wait_for_room(20.0) == 1
    assert time.monotonic() - began < 10
    timer.join()
