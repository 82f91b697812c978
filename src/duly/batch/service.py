"""What a person, or a program, may ask of the runs: start, look, restart, stop, give up.

Owns the verbs; the command line, the REST service and Python are thin callers of these.  The
invariants: every change is one transaction with its line in the audit (who, why); it acts on the
row that it read, so two people cannot both win; what has been done already is not done again and
says so (``changed``); and a request with a key of its own is carried out once, however often it
comes.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, TypeVar

from duly.batch.folders import Folders
from duly.batch.instance import canonical, check_params, instance_id, parse_params
from duly.batch.job import Job
from duly.batch.partitions import step_of
from duly.batch.registry import JobRegistry
from duly.batch.runs import (
    Attempt,
    Checkpoint,
    Held,
    RunRow,
    add,
    attempts,
    checkpoints,
    find,
    listed,
    locked,
    move,
    owner_of,
    read,
)
from duly.batch.scheduler import hold_name
from duly.batch.verification import verify
from duly.errors import (
    ConfigurationError,
    NotFoundError,
    OperatorError,
    RunActiveError,
    SchemaError,
    TransactionConflictError,
    WrongStatusError,
)
from duly.kernel import runs
from duly.kernel.runs import Run
from duly.observe.facts import OperatorActed
from duly.observe.hooks import Hooks
from duly.outbox.operator import By, check_by
from duly.outbox.verbs import Change as Acting
from duly.outbox.verbs import audit
from duly.ports import Connection, Database, Statement, Steps

__all__ = ["Acted", "Batches", "JobLine", "Plan", "PlanLine", "Shown"]

BOX = "batch"
BACKFILL_MAX = 1_000
_TRIES = 5
_REQUEST_MAX = 200

T = TypeVar("T")


class Acted(NamedTuple):
    """What became of a run. changed: False where it was so already."""

    instance: str
    status: str
    changed: bool


class JobLine(NamedTuple):
    """A job as it is declared. next_at: seconds since 1970, None without a schedule."""

    job: str
    params: Mapping[str, str]
    steps: tuple[str, ...]
    schedule: str
    time_zone: str
    held: bool
    next_at: float | None


class Shown(NamedTuple):
    """Everything about a run."""

    row: RunRow
    held: Held | None
    attempts: Sequence[Attempt]
    steps: Sequence[Checkpoint]


class PlanLine(NamedTuple):
    """What an attempt would do of a step. does: ``nothing``, ``goes on`` or ``all``; behind
    rows and size_bytes that are done already.
    """

    step: str
    does: str
    rows: int
    size_bytes: int


class Plan(NamedTuple):
    """What would happen. changed: whether the job is defined differently than when it began."""

    instance: str
    status: str
    changed: bool
    steps: tuple[PlanLine, ...]


class Batches:
    """The verbs on the runs of one App.

    A run is named by its instance id, or by the job and its parameters. request: a key of the
    caller's: the same verb on the same run under the same key is carried out once.
    """

    def __init__(
        self,
        jobs: JobRegistry,
        *,
        database: Database,
        hooks: Hooks,
        folders: Folders,
        now: Callable[[], float],
    ) -> None:
        self._jobs, self._database, self._hooks, self._now = jobs, database, hooks, now
        self._folders = folders

    # --- looking ----------------------------------------------------------------------------------
    def jobs(self) -> list[JobLine]:
        """The jobs of this App."""
        try:
            notes = {name for name, _ in self._ask(_notes)}
        except SchemaError:  # declared jobs can be looked at before there are tables
            notes = set()
        return [self._job_line(self._jobs.get(name), notes) for name in self._jobs.names]

    def runs(self, job: str = "", *, status: str = "", limit: int = 50) -> list[RunRow]:
        """The newest runs, of all jobs and in any status where these are empty."""
        if status not in ("", *runs.STATUSES):
            raise OperatorError(f"status is one of {', '.join(runs.STATUSES)}")
        count = max(1, min(limit, 1_000))
        try:
            return self._look(lambda: listed(job=job, status=status, limit=count))
        except NotFoundError:
            return []

    def show(self, instance: str) -> Shown:
        """A run with its holder, attempts and steps. Raises NotFoundError."""

        def steps() -> Steps[Shown]:
            row = yield from read(instance)
            known = yield from checkpoints(instance)
            held = yield from owner_of(instance)
            tried = yield from attempts(instance)
            return Shown(row, held, tried, self._in_order(row, known))

        return self._look(steps)

    def plan(self, instance: str, *, from_step: str = "") -> Plan:
        """What a restart would do, or a re-run from a step: nothing is changed.

        Raises NotFoundError, OperatorError.
        """
        row = self._look(lambda: read(instance))
        job = self._jobs.get(row.job)
        known = self._ask(lambda: checkpoints(instance))
        dropped = _from(job, from_step) if from_step else ()
        changed = bool(known) and row.definition not in ("", job.definition)
        lines = []
        for name in job.step_names:
            one = None if name in dropped or changed else known.get(name)
            does = "all" if one is None else "nothing" if one.status == "done" else "goes on"
            rows, size = (one.rows, one.size_bytes) if one is not None else (0, 0)
            lines.append(PlanLine(name, does, rows, size))
        return Plan(instance, row.status, changed, tuple(lines))

    async def verify(self, instance: str) -> list[str]:
        """What differs between a run's file and what was delivered, as text; nothing where all is
        well. Changes nothing.

        Raises NotFoundError, OperatorError (BATCH_VERIFY) where there is nothing to compare, and
        what connecting raises.
        """
        row, _, tried, steps = await asyncio.to_thread(self.show, instance)
        job = self._jobs.get(row.job)
        return await verify(job, row, steps=steps, attempts=tried, folders=self._folders)

    def instance(self, job: str, params: Mapping[str, object]) -> str:
        """The id of an instance. Raises NotFoundError, ConfigurationError (BATCH_PARAMS)."""
        return instance_id(job, self._checked(job, params))

    # --- acting -----------------------------------------------------------------------------------
    def start(
        self, job: str, params: Mapping[str, object] | None = None, *, by: By, request: str = ""
    ) -> Acted:
        """Make an instance, for any worker to take up.

        Idempotence: an instance that is there already is left as it is. Raises NotFoundError,
        ConfigurationError (BATCH_PARAMS), WrongStatusError where it failed or was stopped: that
        wants a restart.
        """
        checked = self._checked(job, params or {})
        instance = instance_id(job, checked)

        def steps() -> Steps[Acted]:
            row, made = yield from add(instance, job=job, params=canonical(checked))
            if row.status in ("failed", "stopped", "abandoned"):
                verb = "rerun" if row.status == "abandoned" else "restart"
                raise WrongStatusError(f"the run {instance} is {row.status}; use {verb}")
            if made:
                yield _audit("start", instance, by=by, request=request, detail={"made": True})
            return Acted(instance, row.status, made)

        return self._act("start", steps, by)

    def restart(self, instance: str, *, by: By, request: str = "") -> Acted:
        """Let a failed or stopped run go on from its last checkpoints."""
        return self._decide("restart", instance, by=by, request=request)

    def rerun(self, instance: str, *, by: By, from_step: str = "", request: str = "") -> Acted:
        """Do a run again, whole or from a step on; what that step needs of earlier ones is kept.

        Guarantee: the file under its final name stays the old one until the new one is complete.
        Raises OperatorError (BATCH_STEP) for a step that the job has not.
        """
        return self._decide("rerun", instance, by=by, request=request, from_step=from_step or None)

    def resend(self, instance: str, *, by: By, request: str = "") -> Acted:
        """Deliver the file of a run again; nothing is extracted where its file is still there."""
        row = self._ask(lambda: read(instance))
        last = self._jobs.get(row.job).step_names[-1]
        return self.rerun(instance, by=by, from_step=last, request=request)

    def stop(self, instance: str, *, by: By, request: str = "") -> Acted:
        """Stop a run at its next safe point, or where its attempt fails; one that is only due, at
        once.
        """
        return self._decide("stop", instance, by=by, request=request)

    def kill(self, instance: str, *, by: By, request: str = "") -> Acted:
        """Stop a run now: its attempt is put out and can store nothing more."""
        return self._decide("kill", instance, by=by, request=request)

    def abandon(self, instance: str, *, by: By, request: str = "") -> Acted:
        """Give a run up; only a re-run brings it back."""
        return self._decide("abandon", instance, by=by, request=request)

    def backfill(
        self,
        job: str,
        params: Sequence[Mapping[str, object]],
        *,
        by: By,
    ) -> list[Acted]:
        """Start many instances, oldest first as given; those that are there are left as they are.

        At most 1,000 at a time. Raises as ``start``, before the first is made where a parameter is
        wrong.
        """
        if len(params) > BACKFILL_MAX:
            raise OperatorError(f"{len(params)} instances; at most {BACKFILL_MAX} at a time")
        checked = [self._checked(job, one) for one in params]
        found = []
        for one in checked:
            try:
                found.append(self.start(job, one, by=by))
            except WrongStatusError:
                instance = instance_id(job, one)
                row = self._ask(lambda instance=instance: read(instance))  # type: ignore[misc]  # bound now
                found.append(Acted(instance, row.status, changed=False))
        return found

    def times(self, job: str, since: datetime, until: datetime) -> list[dict[str, object]]:
        """The parameters of every time of a job's schedule from ``since`` up to ``until``; for
        ``backfill``. Raises OperatorError without a schedule or beyond 1,000 times.
        """
        schedule = self._jobs.get(job).schedule
        if schedule is None:
            raise OperatorError(f"job {job} has no schedule", code="BATCH_SCHEDULE")
        found: list[dict[str, object]] = []
        at = since - timedelta(microseconds=1)
        while (at := schedule.next_after(at)) <= until:
            found.append(dict(schedule.params_at(at, schedule.before(at))))
            if len(found) > BACKFILL_MAX:
                raise OperatorError(f"more than {BACKFILL_MAX} times; take a shorter span")
        return found

    def hold(self, job: str, *, by: By) -> Acted:
        """Hold a job's schedule: no instance is made by time until it is released."""
        self._jobs.get(job)
        value = {"name": hold_name(job), "value": by.actor}
        return self._note("hold", job, Statement("meta.put_new", value), by=by)

    def release(self, job: str, *, by: By) -> Acted:
        """Release a job's schedule; what was missed is made up for as its ``misfire`` says."""
        self._jobs.get(job)
        return self._note("release", job, Statement("meta.drop", {"name": hold_name(job)}), by=by)

    # --- details ----------------------------------------------------------------------------------
    def parsed(self, job: str, texts: Mapping[str, str]) -> dict[str, object]:
        """Parameters from text. Raises NotFoundError, ConfigurationError (BATCH_PARAMS)."""
        return parse_params(self._jobs.get(job).params, texts)

    def _checked(self, job: str, params: Mapping[str, object]) -> dict[str, object]:
        return check_params(self._jobs.get(job).params, params)

    def _job_line(self, job: Job, notes: set[str]) -> JobLine:
        schedule = job.schedule
        held = hold_name(job.name) in notes
        kinds = {name: kind.__name__ for name, kind in job.params.items()}
        if schedule is None:
            return JobLine(job.name, kinds, tuple(job.step_names), "", "", held, None)
        at = schedule.next_after(datetime.fromtimestamp(self._now(), UTC)).timestamp()
        cron, zone = schedule.cron, schedule.time_zone
        return JobLine(job.name, kinds, tuple(job.step_names), cron, zone, held, at)

    def _in_order(self, row: RunRow, known: Mapping[str, Checkpoint]) -> list[Checkpoint]:
        order = list(self._jobs.get(row.job).step_names) if row.job in self._jobs.names else []
        place = {name: number for number, name in enumerate(order)}
        return sorted(
            known.values(), key=lambda one: (place.get(step_of(one.step), len(order)), one.step)
        )

    def _decide(
        self, verb: str, instance: str, *, by: By, request: str, from_step: str | None = None
    ) -> Acted:
        def steps() -> Steps[Acted]:
            row = yield from locked(instance)
            if request:
                done = yield Statement("run.asked", _asked(instance, verb, request))
                if done.rows:
                    return Acted(instance, json.loads(done.rows[0][0])["status"], changed=False)
            run = yield from self._decided(verb, row)
            detail: dict[str, Any] = {"was": row.status, "attempt": row.attempt}
            if verb == "rerun":
                dropped = _from(self._jobs.get(row.job), from_step or "")
                detail["steps"] = list(dropped)
                known = yield from checkpoints(instance)
                names = {name for name in known if step_of(name) in dropped}
                values = {"instance": instance, "steps": sorted(names.union(dropped))}
                yield Statement("checkpoint.drop", values)
            elif run == row.run:
                return Acted(instance, row.status, changed=False)
            row = yield from move(row, run)
            detail["status"] = row.status
            yield _audit(verb, instance, by=by, request=request, detail=detail)
            return Acted(instance, row.status, changed=True)

        return self._act(verb, steps, by)

    def _decided(self, verb: str, row: RunRow) -> Steps[Run]:
        try:
            return runs.decided(verb, row.run)
        except RunActiveError as error:
            held = yield from owner_of(row.instance)
            age = held.age_seconds if held is not None else None
            heard = "" if age is None else f", heard of {age:.1f} s ago"
            text = f"{verb} of {row.instance}: attempt {row.attempt} runs on {row.owner}{heard}"
            raise RunActiveError(text, owner=row.owner, age_seconds=age) from error

    def _note(self, verb: str, job: str, statement: Statement, *, by: By) -> Acted:
        def steps() -> Steps[Acted]:
            changed = (yield statement).count > 0
            if changed:
                yield _audit(verb, job, by=by, request="", detail={})
            return Acted(job, "held" if verb == "hold" else "released", changed)

        return self._act(verb, steps, by)

    def _act(self, verb: str, steps: Callable[[], Steps[Acted]], by: By) -> Acted:
        check_by(by)
        for tried in range(_TRIES):
            try:
                acted = self._ask(steps)
                break
            except TransactionConflictError:
                if tried == _TRIES - 1:
                    raise
        if acted.changed:
            self._hooks.emit(OperatorActed(box=BOX, verb=verb, actor=by.actor, count=1))
        return acted

    def _look(self, steps: Callable[[], Steps[T]]) -> T:
        """As ``_ask``; where the tables make themselves at the first start, there may be none yet.

        Raises NotFoundError then.
        """
        try:
            return self._ask(steps)
        except SchemaError as error:
            made = Statement("schema.exists")
            with closing(self._database.connect()) as connection:
                if self._database.dialect != "sqlite" or connection.ask(made).rows:
                    raise
            text = "nothing has run with this database yet"
            raise NotFoundError(text, code="BATCH_RUN_UNKNOWN") from error

    def _ask(self, steps: Callable[[], Steps[T]]) -> T:
        with closing(self._database.connect()) as connection:
            return _run(connection, steps)

    def exists(self, instance: str) -> bool:
        """Whether there is such a run."""
        return self._ask(lambda: find(instance)) is not None


def _run(connection: Connection, steps: Callable[[], Steps[T]]) -> T:
    return connection.run(steps())


def _notes() -> Steps[list[tuple[Any, ...]]]:
    return (yield Statement("meta.all")).rows


def _from(job: Job, step: str) -> tuple[str, ...]:
    """The steps from one on; all where it is empty. Raises OperatorError (BATCH_STEP)."""
    names = tuple(job.step_names)
    if not step:
        return names
    if step not in names:
        text = f"job {job.name} has no step {ascii(step)[:60]}; it has {', '.join(names)}"
        raise OperatorError(text, code="BATCH_STEP")
    return names[names.index(step) :]


def _target(what: str) -> str:
    return f"batch/{what}"


def _asked(instance: str, verb: str, request: str) -> dict[str, Any]:
    return {"target": _target(instance), "request": _request_id(verb, request)}


def _request_id(verb: str, request: str) -> str:
    text = f"{verb}:{request}"
    if len(text.encode(errors="replace")) > _REQUEST_MAX or not text.isprintable():
        raise ConfigurationError(
            f"a request key is printable text of up to {_REQUEST_MAX - len(verb) - 1} bytes",
            code="BATCH_REQUEST_KEY",
        )
    return text


def _audit(verb: str, what: str, *, by: By, request: str, detail: dict[str, Any]) -> Statement:
    acting = Acting(box=BOX, verb=verb, actor=by.actor, reason=by.reason)
    message_id = _request_id(verb, request) if request else None
    return audit(acting, _target(what), message_id=message_id, detail=detail)
