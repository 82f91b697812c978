"""What a delivery does next, from what is held about it and what the other side shows.

    nothing -create-> temp -write-> uploaded -verify-> verified -rename-> published -mark-> done
       ^               |               |                  |
       `----discard----'---------------'                  `- no answer: the final name is judged

Owns the decision alone: it is asked again after every move, with a fresh look at the names, so that
it never matters where the last process died or which answer was lost.  The invariants: only a
verified file is renamed; a file that is not ours is replaced only where that was asked for; a
resume begins where answers ended, after a look at the bytes before; and where both names are empty
after a rename that may have been sent, nobody guesses.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal, NamedTuple

__all__ = ["Act", "FileFeatures", "Goal", "Held", "Move", "Remote", "Seen", "Way", "next_move"]

VERIFY_FAILURES_MAX = 2


@dataclass(frozen=True, slots=True)
class FileFeatures:
    """What a place of delivery can do.

    acknowledges: every write is answered. resumes: a file can be written from an offset. reads:
    what was written can be read. replaces: a rename puts a file in another's place at once.
    refuses: a rename onto a name that is taken fails. hashes: the other side computes SHA-256.
    syncs: a file is on the disk when its write has ended. encrypted: nobody between can read it.
    """

    acknowledges: bool = False
    resumes: bool = False
    reads: bool = False
    replaces: bool = False
    refuses: bool = False
    hashes: bool = False
    syncs: bool = False
    encrypted: bool = False


class Remote(NamedTuple):
    """What is under a name. A link is not followed."""

    size_bytes: int
    kind: Literal["file", "folder", "link", "other"] = "file"


class Way(Enum):
    """How the final name is taken. atomic: a rename that replaces. plain: one that should not."""

    ATOMIC = "atomic"
    PLAIN = "plain"
    ASIDE = "aside"  # the old file is renamed first; between the two the name is empty


class Act(Enum):
    """What to do. The driver does it, stores what it means, and asks again."""

    CLAIM = "claim"  # move what an earlier attempt has sent to a name of our own
    CLAIMED = "claimed"  # that had been done
    CREATE = "create"  # write from the first byte
    CHECK = "check"  # read the bytes before ``offset`` and compare them
    WRITE = "write"  # go on at ``offset``
    VERIFY = "verify"
    DISCARD = "discard"  # remove the temporary file and begin again
    COMPARE = "compare"  # whether the file under the final name is ours
    ADOPT = "adopt"  # it is: delivered
    UNMARK = "unmark"  # remove a marker that is older than the file
    RENAME = "rename"  # by ``way``
    RESTORE = "restore"  # the file that was set aside back to its name
    TIDY = "tidy"  # remove the file that was set aside
    MARK = "mark"
    DONE = "done"
    REFUSE = "refuse"  # with ``code``
    UNKNOWN = "unknown"  # renamed without an answer, and gone


class Move(NamedTuple):
    """An act and what it needs. forget: nothing that was sent is of use any more."""

    act: Act
    offset: int = 0
    way: Way | None = None
    code: str = ""
    detail: str = ""
    forget: bool = False


@dataclass(frozen=True, slots=True)
class Goal:
    """What shall be there. temp: this attempt's own name for it. marker: empty for none."""

    name: str
    temp: str
    size_bytes: int
    replace: bool = False
    marker: str = ""


@dataclass(frozen=True, slots=True)
class Held:
    """What the last checkpoint says. temp: where the bytes are, empty for nowhere. claim: the name
    they are being moved to. stale: those bytes are of another content. acked_bytes: answered
    without a gap. aside: where the old file may be. failures: how often a verification has failed.
    """

    temp: str = ""
    claim: str = ""
    stale: bool = False
    acked_bytes: int = 0
    uploaded: bool = False
    verified: bool = False
    published: bool = False
    marked: bool = False
    aside: str = ""
    failures: int = 0


@dataclass(frozen=True, slots=True)
class Seen:
    """What the other side shows now, and what was found out over this connection. window: whether
    the bytes before the offset are ours. same: whether the file under the final name is ours. says:
    whether the marker is already the one of this content.
    refused: ways of taking the final name that were refused, and whether it was taken then.
    """

    temp: Remote | None = None
    claim: Remote | None = None
    final: Remote | None = None
    marker: Remote | None = None
    window: bool | None = None
    same: bool | None = None
    says: bool = False
    refused: frozenset[tuple[Way, bool]] = frozenset()


def next_move(goal: Goal, held: Held, seen: Seen, *, features: FileFeatures) -> Move:
    """The next move of a delivery. Pure; every move changes what is held or seen."""
    if held.published:
        return _after(goal, held)
    return _at_final(goal, held, seen) or _at_temp(goal, held, seen, features=features)


def _after(goal: Goal, held: Held) -> Move:
    if held.aside:
        return Move(Act.TIDY)
    return Move(Act.MARK if goal.marker and not held.marked else Act.DONE)


def _at_final(goal: Goal, held: Held, seen: Seen) -> Move | None:
    """What the final name asks for; None where it is not in the way."""
    final = seen.final
    if final is None:
        return None
    if final.kind != "file":
        return _refuse(f"{goal.name} is a {final.kind}", code="FILE_TARGET_NOT_A_FILE")
    # Before anything was renamed a file that may be replaced need not be read.
    if final.size_bytes == goal.size_bytes and (held.verified or not goal.replace):
        if seen.same is None:
            return Move(Act.COMPARE)
        if seen.same:
            return Move(Act.ADOPT)
    if not goal.replace:
        size = f"{final.size_bytes} bytes"
        return _refuse(f"{goal.name} is another file, of {size}", code="FILE_TARGET_EXISTS")
    return None


def _at_temp(goal: Goal, held: Held, seen: Seen, *, features: FileFeatures) -> Move:
    """What the temporary name asks for."""
    if held.claim and seen.claim is not None:
        return Move(Act.CLAIMED)
    if seen.temp is None:
        return _nothing_there(goal, held)
    if seen.temp.kind != "file":
        return _refuse(f"{held.temp} is a {seen.temp.kind}", code="FILE_TARGET_NOT_A_FILE")
    if held.stale:
        return Move(Act.DISCARD)
    if held.temp != goal.temp:
        return Move(Act.CLAIM)
    if held.verified:
        return _publish(goal, held, seen, features=features)
    if held.uploaded:
        return Move(Act.VERIFY)
    return _upload(goal, held, seen, features=features)


def _nothing_there(goal: Goal, held: Held) -> Move:
    if held.verified:
        return Move(Act.UNKNOWN, detail=f"neither {goal.name} nor {held.temp} is there")
    if held.uploaded:
        why = f"{held.temp} was gone when it was closed: the receiver takes files of any name"
        return _refuse(why, code="FILE_TARGET_VANISHED", forget=True)
    if held.failures >= VERIFY_FAILURES_MAX:
        why = f"{goal.name} was sent {held.failures} times, and what arrived is not what was sent"
        return _refuse(why, code="FILE_VERIFY_FAILED", forget=True)
    return Move(Act.CREATE)


def _upload(goal: Goal, held: Held, seen: Seen, *, features: FileFeatures) -> Move:
    there = seen.temp.size_bytes if seen.temp else 0
    if there > goal.size_bytes or seen.window is False:
        return Move(Act.DISCARD)
    offset = min(held.acked_bytes, there) if features.acknowledges else there
    if offset == 0 or not features.resumes:
        return Move(Act.CREATE)
    if seen.window is None:
        return Move(Act.CHECK, offset)
    return Move(Act.WRITE, offset)


def _publish(goal: Goal, held: Held, seen: Seen, *, features: FileFeatures) -> Move:
    if seen.marker is not None and not seen.says:  # one that does is of an attempt after ours
        return Move(Act.UNMARK)
    taken = seen.final is not None
    for way in _ways(goal, taken, features):
        if (way, taken) not in seen.refused:
            return Move(Act.RENAME, way=way)
    if held.aside and not taken:
        return Move(Act.RESTORE)
    return _refuse(
        f"the server does not rename {held.temp} to {goal.name}", code="FILE_TARGET_REFUSED"
    )


def _ways(goal: Goal, taken: bool, features: FileFeatures) -> list[Way]:
    """The ways to take the final name, best first."""
    atomic = [Way.ATOMIC] if features.replaces else []
    if not goal.replace:  # a plain rename is the one that is refused when somebody was faster
        return [Way.PLAIN, *atomic]
    return [*atomic, Way.PLAIN, *([Way.ASIDE] if taken else [])]


def _refuse(detail: str, *, code: str, forget: bool = False) -> Move:
    return Move(Act.REFUSE, code=code, detail=detail, forget=forget)
