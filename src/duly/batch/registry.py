"""The jobs of one App.

Owns registration and what is wrong with it: names, parameters, options, schedules and declarations
are refused where they are decorated.  The invariant: a job's name is unique and its parameters are
of kinds that have one canonical text, because both are part of every instance's id.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from typing import Literal, TypedDict, TypeVar, Unpack, get_args

from duly.batch.instance import KINDS
from duly.batch.job import Job, Places
from duly.batch.schedule import Misfire, Schedule, default_params
from duly.errors import ConfigurationError, DulyError, NotFoundError
from duly.kernel.backoff import Retry
from duly.kernel.durations import Duration, seconds
from duly.ports import Finding, Severity

__all__ = ["JobOptions", "JobRegistry"]

C = TypeVar("C", bound=type)

_NAME = re.compile(r"[a-z][a-z0-9_.-]{0,59}", re.ASCII)
_PARAM = re.compile(r"[a-z][a-z0-9_]{0,39}", re.ASCII)
_PARAMS_MAX = 8
_PARTS = ("read", "process", "write", "send", "done")
OnChange = Literal["refuse", "fork"]


class JobOptions(TypedDict, total=False):
    """How a job is run.

    params: name -> type; together they identify an instance. str, int, date, datetime, Decimal,
    UUID or ``Window``. schedule: a cron expression; by hand only without one. time_zone: of the
    schedule, an IANA name. misfire: what becomes of times that were missed: ``run-latest``,
    ``run-all`` or ``skip``. max_lateness: from how late a time is given up. params_at: (this time
    of the schedule, the one before) to the parameters; without it the time tells dates, times and
    windows. retry: how often an attempt that got nowhere is repeated, and when. on_change: a run
    that began under another definition is failed (``refuse``) or begins anew (``fork``).
    """

    params: Mapping[str, type]
    schedule: str
    time_zone: str
    misfire: Misfire
    max_lateness: Duration
    params_at: Callable[[datetime, datetime], Mapping[str, object]]
    retry: Retry
    on_change: OnChange


_KNOWN = frozenset(JobOptions.__annotations__)


class JobRegistry:
    """The jobs of one App. places: how their steps get at the outside."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._jobs: dict[str, Job] = {}

    def job(self, name: str, **options: Unpack[JobOptions]) -> Callable[[C], C]:
        """Register a class as a job; see ``App.batch``."""
        unknown = sorted(set(options) - _KNOWN)
        if unknown:
            raise _refused(f"app.batch takes no {', '.join(unknown)}")
        if not _NAME.fullmatch(name):
            text = "use lower case letters, digits, '.', '_' and '-', up to 60"
            raise _refused(f"{ascii(name)[:80]} is no name of a job; {text}")
        if name in self._jobs:
            raise _refused(f"two jobs are named {name!r}")
        params = _params(name, options.get("params", {}))
        options.get("retry", Job.retry).refuse_on(f"job {name}")
        schedule = _schedule(name, params, options)

        def register(cls: C) -> C:
            if not isinstance(cls, type):
                raise _refused(f"job {name}: app.batch decorates a class")
            made = cls()
            if not hasattr(getattr(made, "read", None), "step"):
                raise _refused(f"job {name} has no read, such as Query(...)")
            self._jobs[name] = Job(
                name=name,
                places=self._places,
                params=params,
                schedule=schedule,
                retry=options.get("retry", Job.retry),
                on_change=_on_change(name, options),
                **{part: getattr(made, part, None) for part in _PARTS},
            )
            return cls

        return register

    @property
    def names(self) -> Collection[str]:
        """The names of the jobs, sorted."""
        return sorted(self._jobs)

    def get(self, name: str) -> Job:
        """A job by name. Raises NotFoundError (BATCH_JOB_UNKNOWN)."""
        if name not in self._jobs:
            known = ", ".join(self.names) or "none"
            text = f"there is no job {ascii(name)[:80]}; there are: {known}"
            raise NotFoundError(text, code="BATCH_JOB_UNKNOWN")
        return self._jobs[name]

    def check(self) -> list[Finding]:
        """What is wrong with the jobs by themselves."""
        found = []
        for name in self.names:
            try:
                self._jobs[name].verify()
            except DulyError as error:
                text, fix = f"job {name}: {error.detail}", "correct what the job is made of"
                found.append(Finding(error.code, Severity.RED, text, fix))
        return found


def _params(name: str, params: Mapping[str, type]) -> dict[str, type]:
    if len(params) > _PARAMS_MAX:
        raise _refused(f"job {name} has {len(params)} parameters, at most {_PARAMS_MAX}")
    for one, kind in params.items():
        if not _PARAM.fullmatch(one):
            raise _refused(f"job {name}: {ascii(one)[:60]} is no name of a parameter")
        if kind not in KINDS:
            known = ", ".join(known.__name__ for known in KINDS)
            raise _refused(f"job {name}: the parameter {one} is one of {known}")
    return dict(params)


def _schedule(name: str, params: Mapping[str, type], options: JobOptions) -> Schedule | None:
    if "schedule" not in options:
        needless = {"time_zone", "misfire", "max_lateness", "params_at"} & set(options)
        if needless:
            raise _refused(f"job {name}: {min(needless)} goes with schedule=")
        return None
    late = options.get("max_lateness")
    return Schedule(
        cron=options["schedule"],
        time_zone=options.get("time_zone", "UTC"),
        misfire=options.get("misfire", "run-latest"),
        late_seconds=None if late is None else seconds(late, "max_lateness"),
        params_at=options.get("params_at") or default_params(params),
    )


def _on_change(name: str, options: JobOptions) -> OnChange:
    wanted = options.get("on_change", "refuse")
    if wanted not in get_args(OnChange):
        raise _refused(f"job {name}: on_change is 'refuse' or 'fork'")
    return wanted


def _refused(text: str) -> ConfigurationError:
    return ConfigurationError(text, code="BATCH_JOB")
