"""The rows of a run: instance, attempts, checkpoints.

Owns the statements on ``duly_run``, ``duly_attempt`` and ``duly_checkpoint`` as steps of one
transaction each.  The invariants: a run changes by compare-and-set on the token and the status that
its changer saw; a new attempt begins only under the lease of the run; and what an attempt stores
names its token, so that of several that think they hold a run only the newest can store anything.
What may become of what is decided in ``kernel.runs``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from duly.errors import (
    ConfigurationError,
    NotFoundError,
    StaleLeaseError,
    WrongStatusError,
)
from duly.kernel import runs
from duly.kernel.runs import Run
from duly.ports import Statement, Steps

__all__ = [
    "CHECKPOINT_BYTES_MAX",
    "Attempt",
    "Checkpoint",
    "Claimed",
    "Held",
    "Refused",
    "RunRow",
    "Waiting",
    "add",
    "attempts",
    "checkpoints",
    "claim",
    "conclude",
    "find",
    "listed",
    "locked",
    "move",
    "owner_of",
    "read",
    "save",
    "waiting",
]

CHECKPOINT_BYTES_MAX = 65_536
ERROR_CHARACTERS_MAX = 1_000


class RunRow(NamedTuple):
    """The row of an instance. params: canonical JSON. last_error: code and text of the last attempt
    that failed. Times in seconds since 1970; moved_at: when it last got on or changed.
    """

    instance: str
    job: str
    params: str
    definition: str
    status: str
    attempt: int
    tries: int
    token: int
    wanted: str
    owner: str
    last_error: str
    scheduled_for: str | None
    due_at: float
    created_at: float
    started_at: float | None
    moved_at: float
    ended_at: float | None

    @property
    def run(self) -> Run:
        """What decides about it."""
        return Run(self.status, self.attempt, self.tries, self.token, self.wanted)


class Attempt(NamedTuple):
    """One attempt. status: ``running``, ``done``, ``failed``, ``stopped`` (at a safe point) or
    ``lost`` (its process did not come back). spool: the name of its folder.
    """

    attempt: int
    token: int
    owner: str
    definition: str
    spool: str
    status: str
    error: str
    started_at: float
    ended_at: float | None


class Checkpoint(NamedTuple):
    """How far a step is. attempt: that stored it. status: ``open`` or ``done``. saves: how often it
    was stored.
    """

    step: str
    attempt: int
    status: str
    data: bytes | None
    rows: int
    size_bytes: int
    facts: Mapping[str, Any]
    saves: int
    moved_at: float


class Held(NamedTuple):
    """Who holds a run now. age_seconds: since it last said so; left_seconds:
    until its lease ends.
    """

    holder: str
    age_seconds: float
    left_seconds: float


class Waiting(NamedTuple):
    """A run that could be taken up. holder: of its lease while that lasts."""

    instance: str
    job: str
    status: str
    holder: str | None


class Claimed(NamedTuple):
    """A run in hand. spools: the folders of earlier attempts, by attempt."""

    row: RunRow
    checkpoints: Mapping[str, Checkpoint]
    spools: Mapping[int, str]
    spool: str


class Refused(NamedTuple):
    """A run that was not begun: it is ``status`` now, for the reason of this code."""

    row: RunRow
    code: str


# --- reading --------------------------------------------------------------------------------------
def find(instance: str) -> Steps[RunRow | None]:
    """The row of an instance, if there is one."""
    rows = (yield Statement("run.read", {"instance": instance})).rows
    return _row(rows[0]) if rows else None


def read(instance: str) -> Steps[RunRow]:
    """The row of an instance. Raises NotFoundError (BATCH_RUN_UNKNOWN)."""
    row = yield from find(instance)
    if row is None:
        raise NotFoundError(f"there is no run {ascii(instance)[:100]}", code="BATCH_RUN_UNKNOWN")
    return row


def locked(instance: str) -> Steps[RunRow]:
    """As ``read``, for who goes on to change it: until the transaction ends nobody else changes the
    run, and nothing that was read with it grows old.
    """
    yield Statement("run.lock", {"instance": instance})
    return (yield from read(instance))


def listed(*, job: str, status: str, limit: int) -> Steps[list[RunRow]]:
    """The newest runs; of any job or in any status where these are empty."""
    values = {"job": job, "status": status, "limit": limit}
    return [_row(row) for row in (yield Statement("run.list", values)).rows]


def attempts(instance: str, *, limit: int = 20) -> Steps[list[Attempt]]:
    """The last attempts, newest first."""
    rows = (yield Statement("attempt.of", {"instance": instance, "limit": limit})).rows
    return [Attempt._make([*row[:7], float(row[7]), _seconds(row[8])]) for row in rows]


def checkpoints(instance: str) -> Steps[dict[str, Checkpoint]]:
    """How far the steps are, by name."""
    rows = (yield Statement("checkpoint.of", {"instance": instance})).rows
    return {row[0]: _checkpoint(row) for row in rows}


def waiting(jobs: Sequence[str], *, limit: int = 500) -> Steps[list[Waiting]]:
    """The running runs of these jobs, those that nobody works on among them, then the due ones."""
    values = {"jobs": list(jobs), "limit": limit}
    return [Waiting(*row) for row in (yield Statement("run.waiting", values)).rows]


def owner_of(instance: str) -> Steps[Held | None]:
    """Who holds a run; None where nobody does."""
    rows = (yield Statement("run.lease", {"instance": instance})).rows
    if not rows or rows[0][0] is None or float(rows[0][2]) <= 0:
        return None
    return Held(rows[0][0], float(rows[0][1]), float(rows[0][2]))


# --- changing -------------------------------------------------------------------------------------
def add(
    instance: str, *, job: str, params: str, scheduled_for: str | None = None
) -> Steps[tuple[RunRow, bool]]:
    """The row of an instance, made if it is not there; whether it was made now."""
    values = {"instance": instance, "job": job, "params": params, "scheduled_for": scheduled_for}
    made = (yield Statement("run.add", values)).count == 1
    row = yield from read(instance)
    if (row.job, row.params) != (job, params):
        raise ConfigurationError(f"{instance} stands for {row.params} already", code="BATCH_PARAMS")
    return row, made


def move(
    row: RunRow,
    run: Run,
    *,
    definition: str | None = None,
    owner: str | None = None,
    error: str | None = None,
    due_in_seconds: float = 0.0,
) -> Steps[RunRow]:
    """Change a row that is as it was read. Raises StaleLeaseError where it is not."""
    ends = run.status in ("done", "failed", "stopped", "abandoned")
    values = {
        "instance": row.instance,
        "token": row.token,
        "was": row.status,
        "status": run.status,
        "attempt": run.attempt,
        "tries": run.tries,
        "next_token": run.token,
        "wanted": run.wanted,
        "definition": row.definition if definition is None else definition,
        "owner": row.owner if owner is None else owner,
        "last_error": (row.last_error if error is None else error)[:ERROR_CHARACTERS_MAX],
        "due_in_seconds": due_in_seconds,
        "starts": run.attempt != row.attempt,
        "ends": ends,
    }
    if (yield Statement("run.move", values)).count != 1:
        raise StaleLeaseError(f"the run {row.instance} was changed by somebody else")
    return (yield from read(row.instance))


def claim(
    instance: str,
    *,
    lease: Mapping[str, Any],
    definition: str,
    on_change: Literal["refuse", "fork"],
    owner: str,
    spool: str,
) -> Steps[Claimed | Refused]:
    """Begin an attempt under the run's lease; every older one is put out.

    lease: name, holder and token. spool: the name for the attempt's folder. Raises StaleLeaseError
    (the lease is another's by now), WrongStatusError (the run needs no attempt any more).
    """
    if not (yield Statement("lease.guard", lease)).rows:
        raise StaleLeaseError(f"the run {instance} was taken over")
    row = yield from locked(instance)  # before the checkpoints: an older attempt may be storing one
    yield Statement("attempt.lost", {"instance": instance})
    known = yield from checkpoints(instance)
    changed = bool(known) and row.definition not in ("", definition)
    if refused := (yield from _refuse(row, changed=changed and on_change == "refuse")):
        return refused
    run = runs.begun(row.run)
    if changed:
        yield Statement("checkpoint.drop", {"instance": instance, "steps": sorted(known)})
        known = {}
    spools = {one.attempt: one.spool for one in (yield from attempts(instance, limit=1000))}
    row = yield from move(row, run, definition=definition, owner=owner)
    values = {"instance": instance, "attempt": run.attempt, "token": run.token}
    values |= {"owner": owner, "definition": definition, "spool": spool}
    yield Statement("attempt.add", values)
    return Claimed(row, known, spools, spool)


def _refuse(row: RunRow, *, changed: bool) -> Steps[Refused | None]:
    """What keeps a run from another attempt, stored in its row."""
    if row.status == "running" and row.wanted:
        return Refused((yield from move(row, runs.given_back(row.run))), "STOPPED")
    if row.status not in ("due", "running"):
        raise WrongStatusError(f"the run {row.instance} is {row.status}")
    said = {
        "BATCH_DEFINITION_CHANGED": "the job is defined differently than when this run began;"
        " `duly batch rerun` begins it anew",
        "BATCH_CRASHES": f"{row.tries} attempts ended with their process and got nowhere",
    }
    code = "BATCH_DEFINITION_CHANGED" if changed else ""
    if not changed and runs.worn_out(row.run):
        code = "BATCH_CRASHES"
    if not code:
        return None
    failed = row.run._replace(status="failed", token=row.token + 1)
    return Refused((yield from move(row, failed, error=f"{code}: {said[code]}")), code)


def save(row: RunRow, checkpoint: Checkpoint, *, got_on: bool) -> Steps[None]:
    """Store how far a step is. got_on: it is further than it ever was. Raises StaleLeaseError when
    the attempt was put out.
    """
    values = {"instance": row.instance, "token": row.token, "got_on": got_on}
    touched = yield Statement("run.touch", values)
    if touched.count != 1:
        raise StaleLeaseError(f"attempt {row.attempt} of {row.instance} was put out")
    yield Statement(
        "checkpoint.put",
        {
            "instance": row.instance,
            "step": checkpoint.step,
            "attempt": row.attempt,
            "status": checkpoint.status,
            "data": checkpoint.data,
            "row_count": checkpoint.rows,
            "size_bytes": checkpoint.size_bytes,
            "facts": json.dumps(dict(checkpoint.facts), sort_keys=True),
        },
    )


def conclude(
    row: RunRow, change: Callable[[Run], Run], *, error: str = "", due_in_seconds: float = 0.0
) -> Steps[RunRow]:
    """End the attempt: the run and its attempt change together. change: what it makes of the run
    as it is now. Raises StaleLeaseError when it was put out.
    """
    now = yield from locked(row.instance)  # what an operator asks for meanwhile must not be lost
    if now.token != row.token or now.status != "running":
        raise StaleLeaseError(f"attempt {row.attempt} of {row.instance} was put out")
    run = change(now.run)
    kept = "" if run.status == "done" else (error or None)
    moved = yield from move(now, run, error=kept, due_in_seconds=due_in_seconds)
    status = "done" if run.status == "done" else "failed" if error else "stopped"
    values = {"instance": row.instance, "attempt": row.attempt, "status": status}
    yield Statement("attempt.end", {**values, "error": error[:ERROR_CHARACTERS_MAX]})
    return moved


def _row(row: Sequence[Any]) -> RunRow:
    head, times = row[:12], (float(row[12]), float(row[13]), _seconds(row[14]), float(row[15]))
    return RunRow._make([*head, *times, _seconds(row[16])])


def _checkpoint(row: Sequence[Any]) -> Checkpoint:
    step, attempt, status, data, rows, size_bytes, facts, saves, moved_at = row
    known = None if data is None else bytes(data)
    return Checkpoint(
        step, attempt, status, known, rows, size_bytes, json.loads(facts), saves, float(moved_at)
    )


def _seconds(value: Any) -> float | None:
    return None if value is None else float(value)
