"""Topics that are set aside because their destination is in trouble.

Owns when each is tried again, since when it is in trouble, and the note that tells the operator so;
the rows wait in their table and the other topics go on.  How often a topic has failed is remembered
until something of it goes well, so pauses grow; nothing is decided here about a single row.  Pure:
the time and the chance are given.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from duly.kernel.backoff import Retry

__all__ = [
    "PAUSE_SECONDS_MAX",
    "REPORT_SECONDS",
    "Aside",
    "Trouble",
    "note",
    "note_name",
    "noted",
]

PAUSE_SECONDS_MAX = 15.0
REPORT_SECONDS = 60.0
_TRIES_TOLD = 3  # a topic that is only being declared is no news
_PAUSES = Retry(attempts=10_000, base="250ms", max=PAUSE_SECONDS_MAX)


@dataclass(slots=True)
class Trouble:
    """Of one topic. tries: failed ones; since, until: by the clock's ``monotonic``; error: the last
    one's ``CODE: text``; told: whether it is written down for the operator; next_report: when it is
    reported as a fact (again).
    """

    since: float
    tries: int = 0
    until: float = 0.0
    error: str = ""
    told: bool = False
    next_report: float = 0.0

    @property
    def lasting(self) -> bool:
        """Whether somebody should know."""
        return self.tries >= _TRIES_TOLD

    def report_due(self, now: float) -> bool:
        """Whether to say that it is still so; True once in REPORT_SECONDS."""
        if now < max(self.next_report, self.since + REPORT_SECONDS):
            return False
        self.next_report = now + REPORT_SECONDS
        return True


class Aside:
    """The topics of one reader that are in trouble."""

    def __init__(self) -> None:
        self._troubles: dict[str, Trouble] = {}

    def learn(self, topics: Iterable[str], now: float) -> None:
        """These were told as in trouble by a reader before: it will be this one's to take back."""
        for topic in topics:
            self._troubles.setdefault(topic, Trouble(now)).told = True

    def put(self, topic: str, error: str, *, now: float, chance: float) -> Trouble | None:
        """It failed again: set it aside; None where it is aside already. chance: from 0 to 1."""
        trouble = self._troubles.setdefault(topic, Trouble(now))
        if trouble.until > now:
            return None
        trouble.tries += 1
        trouble.error = error
        trouble.until = now + _PAUSES.delay(trouble.tries, chance)
        return trouble

    def topics(self, now: float) -> frozenset[str]:
        """What is not to be read now."""
        return frozenset(topic for topic, t in self._troubles.items() if t.until > now)

    def wake(self, now: float) -> bool:
        """Whether the time of some is over, since this was last asked."""
        over = [t for t in self._troubles.values() if 0 < t.until <= now]
        for trouble in over:
            trouble.until = 0.0
        return bool(over)

    def went_well(self, topics: Iterable[str]) -> list[str]:
        """These are in no trouble any more; returns those that were told as such."""
        ended = [(topic, t) for topic in topics if (t := self._troubles.pop(topic, None))]
        return [topic for topic, trouble in ended if trouble.told]

    def __bool__(self) -> bool:
        return bool(self._troubles)


# --- what the operator is told --------------------------------------------------------------------
def note_name(box: str, topic: str) -> str:
    """Under which name ``duly_meta`` holds the note on a topic."""
    return f"stuck/{box}/{topic}"


def note(error: str, *, since: float, tries: int) -> str:
    """The note. since: seconds since 1970; error: ``CODE: text``."""
    return json.dumps({"error": error[:300], "since": since, "tries": tries})


def noted(names: Iterable[str], box: str) -> list[str]:
    """The topics that there are notes on."""
    prefix = note_name(box, "")
    return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
