"""When a job is due by itself: cron expressions in a time zone, and what becomes of missed times.

Owns which times of a schedule are acted on.  The invariants: a time that a change of the clocks
skips comes once, right after the gap, and one that it repeats comes once; a time is acted on under
the name of its instance, so any number of workers may look at the same schedule; and how far a
schedule was looked at only grows, so that what was missed is known after a stop of any length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, get_args
from zoneinfo import ZoneInfo

from duly.batch.instance import Window
from duly.errors import ConfigurationError, MissingExtraError

if TYPE_CHECKING:
    from cronsim import CronSim

__all__ = ["FIRES_MAX", "Misfire", "Schedule", "default_params"]

FIRES_MAX = 1_000  # acted on in one look; the next look goes on from there

Misfire = Literal["run-latest", "run-all", "skip"]
ParamsAt = Callable[[datetime, datetime], Mapping[str, object]]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """cron: five fields. time_zone: an IANA name. misfire: what becomes of times at which nobody
    looked: only the last of them, all, or none. late_seconds: from how late a time counts as missed
    for ``skip``, and is given up for the others. params_at: (this time, the one before) to the
    parameters of the instance.

    Raises ConfigurationError (BATCH_SCHEDULE), MissingExtraError.
    """

    cron: str
    time_zone: str = "UTC"
    misfire: Misfire = "run-latest"
    late_seconds: float | None = None
    params_at: ParamsAt
    _zone: ZoneInfo = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.misfire not in get_args(Misfire):
            known = ", ".join(get_args(Misfire))
            raise ConfigurationError(f"misfire is one of {known}", code="BATCH_SCHEDULE")
        try:
            object.__setattr__(self, "_zone", ZoneInfo(self.time_zone))
        except (KeyError, ValueError, OSError) as error:
            text = f"there is no time zone {self.time_zone!r:.60}"
            raise ConfigurationError(text, code="BATCH_SCHEDULE") from error
        self.next_after(datetime(2026, 1, 1, tzinfo=UTC))

    def next_after(self, moment: datetime) -> datetime:
        """The first time behind a moment, in the schedule's time zone."""
        return next(self._cron(moment))

    def before(self, moment: datetime) -> datetime:
        """The last time before a moment."""
        return next(self._cron(moment, reverse=True))

    def fires(self, after: datetime, now: datetime) -> tuple[list[datetime], datetime]:
        """The times to act on behind ``after`` and up to ``now``, and how far was looked.

        At most ``FIRES_MAX`` times are looked at; then that is where the next look begins.
        """
        passed: list[datetime] = []
        looked = now
        for moment in self._cron(after):
            if moment > now:
                break
            passed.append(moment)
            if len(passed) == FIRES_MAX:
                looked = moment
                break
        return self._kept(passed, now), looked

    def _kept(self, passed: list[datetime], now: datetime) -> list[datetime]:
        late = self.late_seconds
        if self.misfire == "skip" and late is None:
            late = 60.0
        if late is not None:
            passed = [at for at in passed if now - at <= timedelta(seconds=late)]
        return passed if self.misfire == "run-all" else passed[-1:]

    def _cron(self, moment: datetime, *, reverse: bool = False) -> CronSim:
        try:
            from cronsim import CronSim, CronSimError
        except ImportError as error:
            raise MissingExtraError("cronsim", "batch") from error
        try:
            return CronSim(self.cron, moment.astimezone(self._zone), reverse=reverse)
        except CronSimError as error:
            text = f"{self.cron!r:.60} is no cron expression: {error}"
            raise ConfigurationError(text, code="BATCH_SCHEDULE") from error


def default_params(kinds: Mapping[str, type]) -> ParamsAt:
    """Parameters told by the time alone: a ``date`` is its day in the schedule's time zone, a
    ``datetime`` the time itself, a ``Window`` what has passed since the time before.

    Raises ConfigurationError (BATCH_SCHEDULE) for parameters that a time does not tell.
    """
    known: dict[type, Callable[[datetime, datetime], Any]] = {
        date: lambda at, _: at.date(),
        datetime: lambda at, _: at.astimezone(UTC),
        Window: lambda at, before: Window(before.astimezone(UTC), at.astimezone(UTC)),
    }
    for name, kind in kinds.items():
        if kind not in known:
            text = f"a time does not tell {name}, a {kind.__name__}; say params_at="
            raise ConfigurationError(text, code="BATCH_SCHEDULE")
    return lambda at, before: {name: known[kind](at, before) for name, kind in kinds.items()}
