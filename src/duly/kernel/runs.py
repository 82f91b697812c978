"""The statuses of a run of a batch job, and who may change which into what.

    status    | meaning                                      | goes on by
    ----------+----------------------------------------------+---------------------------------
    due       | waits for a worker, or for its next attempt  | any worker, when it is due
    running   | an attempt holds its lease                   | that attempt, or who takes over
    stopped   | a person stopped it                          | restart
    failed    | an error that a retry does not mend          | restart, when it is mended
    done      | every step has ended                         | rerun
    abandoned | a person gave it up                          | rerun

    verb      | from                                  | becomes
    ----------+---------------------------------------+---------------------------------------
    restart   | failed, stopped                       | due, from the last checkpoints
    rerun     | due, failed, stopped, done, abandoned | due, checkpoints from a step on dropped
    stop      | due; running                          | stopped; at its next safe point or error
    kill      | due, running                          | stopped, at once: the attempt is fenced
    abandon   | due, failed, stopped                  | abandoned

The invariants: the token grows with every change of hands and every decision of a person that must
put a running attempt out, so of all that think they hold the run only one can store anything;
``tries`` counts the attempts since the run last got on, and so bounds a run that always breaks in
the same place, by an error or by taking its process along.  The compare-and-set on token and status
that makes a change safe is the store's.
"""

from __future__ import annotations

from typing import NamedTuple

from duly.errors import RunActiveError, WrongStatusError

__all__ = [
    "CRASHES_MAX",
    "FINAL",
    "STATUSES",
    "VERBS",
    "Run",
    "begun",
    "broken",
    "decided",
    "ended",
    "given_back",
    "got_on",
    "worn_out",
]

CRASHES_MAX = 20
STATUSES = ("due", "running", "stopped", "failed", "done", "abandoned")
FINAL = frozenset({"done", "abandoned"})

VERBS: dict[str, dict[str, str]] = {
    "restart": {"failed": "due", "stopped": "due"},
    "rerun": dict.fromkeys(("due", "failed", "stopped", "done", "abandoned"), "due"),
    "stop": {"due": "stopped", "running": "running"},
    "kill": {"due": "stopped", "running": "stopped"},
    "abandon": {"due": "abandoned", "failed": "abandoned", "stopped": "abandoned"},
}
_ALREADY = {"restart": {"due"}, "stop": {"stopped"}, "kill": {"stopped"}, "abandon": {"abandoned"}}


class Run(NamedTuple):
    """What decides about a run. attempt: the last one begun. tries: attempts since it got on.
    token: the fence. wanted: ``stop`` where a person asked the attempt to.
    """

    status: str
    attempt: int = 0
    tries: int = 0
    token: int = 0
    wanted: str = ""


def begun(run: Run) -> Run:
    """A new attempt, by whoever holds the run's lease. Raises WrongStatusError."""
    _require(run, "due", "running")
    return run._replace(
        status="running", attempt=run.attempt + 1, tries=run.tries + 1, token=run.token + 1
    )


def worn_out(run: Run) -> bool:
    """Whether attempt after attempt ended its process without getting on."""
    return run.tries >= CRASHES_MAX


def got_on(run: Run) -> Run:
    """A checkpoint was stored that is further than any before it."""
    _require(run, "running")
    return run._replace(tries=0)


def ended(run: Run) -> Run:
    """Every step has ended."""
    _require(run, "running")
    return run._replace(status="done", tries=0, wanted="")


def broken(run: Run, *, again: bool) -> Run:
    """The attempt failed. again: it is worth another one, where no person wanted it to stop."""
    _require(run, "running")
    if not again:
        return run._replace(status="failed", wanted="")
    return run._replace(status="stopped" if run.wanted else "due", wanted="")


def given_back(run: Run) -> Run:
    """The attempt stopped at a safe point: because a person wanted it, or because its process ends
    and another one is to go on.
    """
    _require(run, "running")
    return run._replace(status="stopped" if run.wanted else "due", tries=0, wanted="")


def decided(verb: str, run: Run) -> Run:
    """What an operator's verb makes of a run; the same one where it has been done already.

    Raises WrongStatusError; RunActiveError while an attempt runs that the verb does not end.
    """
    if run.status in _ALREADY.get(verb, ()) or (verb == "stop" and run.wanted == "stop"):
        return run
    becomes = VERBS[verb].get(run.status)
    if becomes is None:
        kind = RunActiveError if run.status == "running" else WrongStatusError
        raise kind(f"{verb} of a run that is {run.status}")
    if becomes == "running":
        return run._replace(wanted="stop")
    return run._replace(status=becomes, tries=0, token=run.token + 1, wanted="")


def _require(run: Run, *statuses: str) -> None:
    if run.status not in statuses:
        raise WrongStatusError(f"the run is {run.status}, not {' or '.join(statuses)}")
