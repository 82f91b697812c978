"""Is what was delivered still what was made?

Owns the question only: a run's last attempt has left its file and manifest in its folder, and a
step that can be asked compares them with the other side.  The invariant: nothing is changed, here
or there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from duly.batch.folders import Folders
from duly.batch.instance import values_of
from duly.batch.job import Job
from duly.batch.runs import Attempt, Checkpoint, RunRow
from duly.errors import OperatorError, StaleLeaseError

__all__ = ["verify"]


async def verify(
    job: Job,
    row: RunRow,
    *,
    steps: Sequence[Checkpoint],
    attempts: Sequence[Attempt],
    folders: Folders,
) -> list[str]:
    """What differs, as text; nothing where all is well.

    Raises OperatorError (BATCH_VERIFY) where nothing can be compared: no step of the job can be
    asked, it has not ended, or this host has its files no more.
    """
    names = {one.attempt: one.spool for one in attempts}
    known = {one.step: one for one in steps}
    found: list[str] = []
    asked = [step for step in job.steps() if hasattr(step, "verify")]
    for step in asked:
        checkpoint = known.get(step.name)
        if checkpoint is None or checkpoint.status != "done":
            raise _refused(f"the step {step.name} of {row.instance} has not ended")
        name = names.get(checkpoint.attempt)
        spool = None if name is None else folders.find(row.instance, name)
        if spool is None:
            raise _refused(f"this host has the files of {row.instance} no more")
        context = _Looking(job, row, spool=spool, data=checkpoint.data)
        found += await step.verify(context)
    if not asked:
        raise _refused(f"no step of job {job.name} can be verified")
    return found


class _Looking:
    """A ``StepContext`` that stores nothing."""

    stopping = False
    previous_spool: Path | None = None
    partitions = None

    def __init__(self, job: Job, row: RunRow, *, spool: Path, data: bytes | None) -> None:
        self.job, self.instance, self.spool = job.name, row.instance, spool
        self.params: Mapping[str, object] = values_of(job.params, row.params)
        self.definition = job.definition
        self.attempt, self.token = row.attempt, row.token
        self._data = data

    def load(self) -> bytes | None:
        return self._data

    async def save(self, checkpoint: bytes, **_: Any) -> None:
        raise StaleLeaseError(f"{self.instance} is only looked at")

    def progress(self, **_: Any) -> None:
        """Nothing is under way."""

    def fact(self, name: str, value: object) -> None:
        """Nothing is kept."""


def _refused(text: str) -> OperatorError:
    return OperatorError(text, code="BATCH_VERIFY")
