"""The rules of the fenced lease, as its holder sees them.

A lease is a row ``(name, holder, token, until)``.  The database alone decides who owns it, by its
own clock, and counts the token up whenever the owner changes.  The holder must stop *before* the
database lets somebody else in, although it cannot see that clock and answers may be late.  So it
counts from the moment *before* the request was sent: whatever the database did, it did it later.  A
margin covers the difference in speed of the two clocks.

The invariant: at no moment may two holders act under one name, as long as the clocks drift apart by
less than the margin within one ttl, however long requests and answers are under way.  Taking a
lease is the store's statement; what is written under it carries the token, and a write that meets
another token is dropped.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from duly.errors import ConfigurationError

__all__ = [
    "MARGIN_SECONDS",
    "RENEW_SECONDS",
    "TTL_SECONDS",
    "LeaseTerm",
    "Renewal",
    "check_lease",
    "margin_seconds",
    "may_act",
    "merge",
    "safe_until",
]

TTL_SECONDS = 5.0
RENEW_SECONDS = 1.5
MARGIN_SECONDS = 0.5


class LeaseTerm(NamedTuple):
    """A lease in hand. token: the fence. until_monotonic: when the holder stops, by its own
    CLOCK_BOOTTIME.
    """

    name: str
    token: int
    until_monotonic: float


class Renewal(NamedTuple):
    """What is held after a renewal was answered, and the names that were lost to others."""

    held: dict[str, LeaseTerm]
    lost: frozenset[str]


def margin_seconds(ttl_seconds: float) -> float:
    """The margin that goes with a ttl: a tenth of it, which is MARGIN_SECONDS for TTL_SECONDS."""
    return ttl_seconds / 10


def check_lease(ttl_seconds: float, renew_seconds: float) -> None:
    """Raise ConfigurationError unless two renewals may fail without losing the lease."""
    usable = ttl_seconds - margin_seconds(ttl_seconds)
    if renew_seconds * 3 > usable + 1e-9:
        raise ConfigurationError(
            f"renew_every is {renew_seconds:g} s; "
            f"with lease_ttl {ttl_seconds:g} s it must be at most {usable / 3:g} s"
        )


def safe_until(asked_at_monotonic: float, ttl_seconds: float, margin_seconds: float) -> float:
    """Until when a holder may act that asked at ``asked_at_monotonic``, read before the request was
    sent.
    """
    return asked_at_monotonic + ttl_seconds - margin_seconds


def may_act(term: LeaseTerm, now: float, need_seconds: float = 0.0) -> bool:
    """Whether work that takes ``need_seconds`` may still begin at ``now`` under this term."""
    return now + need_seconds < term.until_monotonic


def merge(
    held: Mapping[str, LeaseTerm],
    asked: Mapping[str, int],
    *,
    renewed: Collection[tuple[str, int]],
    until_monotonic: float,
) -> Renewal:
    """What is held once a renewal has been answered.

    held: the terms in hand *now*. asked: name -> token as they were when the renewal was sent.
    renewed: the (name, token) pairs that the database found and prolonged. until_monotonic:
    ``safe_until`` of this renewal. A lease taken since then was not asked for and stays; one
    released since then is not brought back; the answer of an older, slower renewal shortens
    nothing.  A renewal that got no answer is not merged: its terms run out by themselves.
    """
    kept: dict[str, LeaseTerm] = {}
    lost: set[str] = set()
    for name, term in held.items():
        if asked.get(name) != term.token:
            kept[name] = term
        elif (name, term.token) in renewed:
            kept[name] = term._replace(until_monotonic=max(term.until_monotonic, until_monotonic))
        else:
            lost.add(name)
    return Renewal(kept, frozenset(lost))
