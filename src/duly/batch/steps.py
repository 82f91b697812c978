"""What a step of a batch run is given, and what it must keep.

A run is an instance (job and parameters) with attempts; an attempt runs its steps in order, each
from its last checkpoint, in whatever process holds the run's lease.

The invariant: a checkpoint never says more than what is on the disk or acknowledged by the other
side, and only the holder of the lease stores one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from duly.batch.partitions import Partitions

__all__ = ["Step", "StepContext", "StopAtCheckpoint"]


class StopAtCheckpoint(Exception):  # noqa: N818  # no error: the operator asked for it
    """The step has stopped at a safe point because it was asked to; nothing has failed."""


class StepContext(Protocol):
    """One attempt's view of its run.

    job, instance: the job's name and the instance's id.  params: of the instance, by name.
    definition: hash of the job's definition.  attempt: counted from 1.  token: of the lease.
    spool: the folder of this attempt; nobody else writes there.  previous_spool: of the attempt
    before it, to be read and never written; None when there is none or this host cannot see it.
    partitions: of an extraction that other processes help with; None where none can.
    """

    job: str
    instance: str
    params: Mapping[str, object]
    definition: str
    attempt: int
    token: int
    spool: Path
    previous_spool: Path | None
    partitions: Partitions | None

    @property
    def stopping(self) -> bool:
        """Whether to stop at the next safe point: save, then raise StopAtCheckpoint."""
        ...

    def load(self) -> bytes | None:
        """The step's last checkpoint, of this attempt or one before it; None: at the start."""
        ...

    async def save(self, checkpoint: bytes, *, rows: int = 0, size_bytes: int = 0) -> None:
        """Store a checkpoint, durable when this returns.

        checkpoint: the step's own format, at most 64 KiB.  rows, size_bytes: done so far, in all.

        Raises StaleLeaseError when another holds the run: stop at once and touch nothing more.
        """
        ...

    def progress(self, *, rows: int, size_bytes: int, total_bytes: int | None = None) -> None:
        """Tell how far the step is, in all; costs nothing and stores nothing."""
        ...

    def fact(self, name: str, value: str | float | bool) -> None:
        """Something about the run that is worth keeping, stored with the next checkpoint."""
        ...


class Step(Protocol):
    """One step of a job. name: as in the run's record, such as ``extract``."""

    name: str

    async def run(self, context: StepContext) -> None:
        """Do the step from its last checkpoint to its end.

        Idempotent: a step that had ended ends again at once.  On failure the attempt fails with
        the error, and the next attempt goes on from the last checkpoint.
        """
        ...
