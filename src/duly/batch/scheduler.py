"""Makes the instances whose time has come.

Owns the notes ``batch/JOB/looked`` and ``batch/JOB/hold`` in ``duly_meta``.  The invariants: an
instance and the note that says how far was looked are one transaction; any number of processes may
look at once, because an instance of the same parameters is the same row; and while a schedule is
held nothing is made and the note stays, so that a release acts on what was missed as the job's
``misfire`` says.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from duly.batch.instance import canonical, check_params, instance_id
from duly.batch.job import Job
from duly.batch.registry import JobRegistry
from duly.batch.runs import add
from duly.batch.schedule import Schedule
from duly.errors import ConfigurationError, DulyError
from duly.observe.facts import BatchScheduled
from duly.observe.hooks import Hooks
from duly.ports import Clock, Statement, Steps
from duly.runtime.connection import ConnectionThread

__all__ = ["Scheduler", "hold_name"]

_log = logging.getLogger("duly.batch")


def hold_name(job: str) -> str:
    """The note that holds a job's schedule."""
    return f"batch/{job}/hold"


def _looked_name(job: str) -> str:
    return f"batch/{job}/looked"


class Scheduler:
    """Looks at the schedules of an App. Used by one thread's loop."""

    def __init__(self, jobs: JobRegistry, *, clock: Clock, hooks: Hooks) -> None:
        self._jobs, self._clock, self._hooks = jobs, clock, hooks
        self._next: dict[str, datetime] = {}
        self._complained: set[str] = set()

    async def look(self, connection: ConnectionThread) -> int:
        """Make what is due now; returns how many instances are new. Raises RetryableError."""
        now = datetime.fromtimestamp(self._clock.time(), UTC)
        made = 0
        for name in self._jobs.names:
            job = self._jobs.get(name)
            # Until its next time a schedule costs no statement; a clock set back is seen, too.
            if job.schedule is None or self._early(name, now):
                continue
            try:
                count = await connection.run(lambda job=job: self._due(job, now))  # type: ignore[misc]  # bound now
            except DulyError as error:
                self._complain(name, error)
                continue
            self._complained.discard(name)
            if count:
                self._hooks.emit(BatchScheduled(job=name, count=count))
            made += count
        return made

    def _early(self, name: str, now: datetime) -> bool:
        due = self._next.get(name)
        return due is not None and now < due

    def _complain(self, name: str, error: DulyError) -> None:
        if name not in self._complained:
            self._complained.add(name)
            _log.error("schedule of %s: %s", name, error, extra={"code": error.code})

    def _due(self, job: Job, now: datetime) -> Steps[int]:
        assert job.schedule is not None
        meta = dict((yield Statement("meta.all")).rows)
        looked = meta.get(_looked_name(job.name))
        if hold_name(job.name) in meta:
            if looked is None:
                yield _looked(job.name, now)
            return 0
        if looked is None:  # a new schedule begins with its next time
            yield _looked(job.name, now)
            self._next[job.name] = job.schedule.next_after(now)
            return 0
        after = datetime.fromisoformat(looked)
        fires, reached = job.schedule.fires(after, now)
        made = 0
        for at, params in _instances(job, job.schedule, fires):
            found, new = yield from add(
                instance_id(job.name, params),
                job=job.name,
                params=canonical(params),
                scheduled_for=at.isoformat(),
            )
            made += new
            _log.debug("%s is due since %s", found.instance, at)
        if reached > after:
            yield _looked(job.name, reached)
        self._next[job.name] = job.schedule.next_after(max(reached, after))
        return made


def _looked(job: str, at: datetime) -> Statement:
    values = {"name": _looked_name(job), "value": at.astimezone(UTC).isoformat()}
    return Statement("meta.put", values)


def _instances(
    job: Job, schedule: Schedule, fires: Sequence[datetime]
) -> list[tuple[datetime, Mapping[str, object]]]:
    found: list[tuple[datetime, Mapping[str, object]]] = []
    for at in fires:
        try:
            params = schedule.params_at(at, schedule.before(at))
        except Exception as error:
            text = f"params_at of {job.name} raised {type(error).__name__}"
            raise ConfigurationError(text, code="BATCH_SCHEDULE") from error
        found.append((at, check_params(job.params, params)))
    return found
