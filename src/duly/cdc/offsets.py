"""How far a stream is: its row in ``duly_offset``, and what a person asks of it.

Owns the row - position, fencing token, state - and the notes in ``duly_meta`` by which operators
reach a running reader.  The invariants: the position moves in the very transaction that stores the
messages made of what lies before it; and every write names the token that its reader claimed, so
that what an older reader still has in hand is dropped (StaleLeaseError) instead of stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import msgspec

from duly.errors import StaleLeaseError
from duly.message import new_id
from duly.ports import Statement, Steps

__all__ = [
    "Offset",
    "Request",
    "SnapshotState",
    "State",
    "Trouble",
    "ask_for",
    "claim",
    "forget",
    "move",
    "read",
    "requests",
]

Verb = Literal["snapshot", "skip"]


class SnapshotState(msgspec.Struct, frozen=True):
    """How far the snapshot of one table is. cursor: go on behind it. run: tells it from another one
    at the same place, so that its rows have ids of their own; empty for the first.
    """

    cursor: str = ""
    done: bool = False
    run: str = ""

    def again(self) -> SnapshotState:
        """The same from the first row on."""
        return msgspec.structs.replace(self, cursor="", done=False)


class Trouble(msgspec.Struct, frozen=True):
    """Why a stream does not move. since: seconds since 1970; stopped: until a person decides."""

    code: str
    detail: str
    position: str
    since: float
    tries: int = 1
    stopped: bool = False


class State(msgspec.Struct, frozen=True):
    """What a reader knows besides its position. identity: of the source, empty before the first
    start. tables: the snapshots begun, by declared name. epoch: counts how often the copy in a sink
    was begun, 0 where there is none; fed: the last one that the sink was told of, 0 where the
    stream begins anew.
    """

    identity: str = ""
    tables: dict[str, SnapshotState] = {}
    trouble: Trouble | None = None
    epoch: int = 0
    fed: int = 0

    def with_table(self, table: str, snapshot: SnapshotState) -> State:
        """The same with another state of one snapshot."""
        return msgspec.structs.replace(self, tables={**self.tables, table: snapshot})

    def anew(self) -> State:
        """A state to begin with, of a copy that is begun once more where there is one."""
        return State(epoch=self.epoch + bool(self.epoch))

    def rewound(self) -> State:
        """A state to go on with from another position. Nothing that a sink has holds any more: its
        copy is begun once more, and what it got of a snapshot that is not done is read again, or it
        would be swept at the snapshot's end.
        """
        anew = self.anew()
        tables = self.tables
        if anew.epoch:
            tables = {name: one if one.done else one.again() for name, one in tables.items()}
        return msgspec.structs.replace(self, tables=tables, epoch=anew.epoch, fed=anew.fed)

    def with_trouble(self, trouble: Trouble | None) -> State:
        """The same in or out of trouble."""
        return msgspec.structs.replace(self, trouble=trouble)


class Offset(NamedTuple):
    """The row. position: empty before the first start. updated_at: seconds since 1970."""

    position: str = ""
    token: int = 0
    state: State = State()
    updated_at: float = 0.0


class Request(NamedTuple):
    """What a person asked of a running reader. argument: a table, or a position. name: of its note
    in ``duly_meta``; mark: tells this request from the next one of the same name.
    """

    verb: str
    argument: str
    name: str
    mark: str


_decode = msgspec.json.Decoder(State).decode
_encode = msgspec.json.Encoder().encode


def read(stream: str) -> Steps[Offset]:
    """The row as it is; an empty one where there is none."""
    rows = (yield Statement("offset.read", {"stream": stream})).rows
    if not rows:
        return Offset()
    position, token, state, updated_at = rows[0]
    return Offset(position, token, _decode(state), float(updated_at))


def claim(stream: str, lease: Mapping[str, Any]) -> Steps[Offset]:
    """Put every older reader out and return the row with the new token.

    lease: name, holder and token of the stream's lease. Raises StaleLeaseError when it is somebody
    else's by now.
    """
    yield Statement("offset.add", {"stream": stream})
    if not (yield Statement("lease.guard", lease)).rows:
        raise StaleLeaseError(f"the stream {stream} was taken over")
    yield Statement("offset.claim", {"stream": stream})
    return (yield from read(stream))


def move(stream: str, offset: Offset) -> Steps[None]:
    """Store position and state. Raises StaleLeaseError when the token is no longer the row's."""
    moved = yield Statement("offset.move", _values(stream, offset))
    if moved.count != 1:
        raise StaleLeaseError(f"the stream {stream} has another reader")


def forget(stream: str, offset: Offset) -> Steps[bool]:
    """Store what a person decided and put the reader out; False when it has moved since."""
    moved = yield Statement("offset.reset", _values(stream, offset))
    return moved.count == 1


def requests(stream: str) -> Steps[list[Request]]:
    """What was asked of this stream and is not taken up."""
    prefix = f"cdc/{stream}/"
    rows = (yield Statement("meta.all")).rows
    found = []
    for name, mark in sorted(rows):
        if name.startswith(prefix):
            verb, _, argument = name.removeprefix(prefix).partition("/")
            found.append(Request(verb, argument, name, mark))
    return found


def ask_for(stream: str, verb: Verb, argument: str) -> Statement:
    """The note that asks a reader for something."""
    return Statement("meta.put", {"name": f"cdc/{stream}/{verb}/{argument}", "value": new_id()})


def _values(stream: str, offset: Offset) -> dict[str, Any]:
    return {
        "stream": stream,
        "position": offset.position,
        "token": offset.token,
        "state": _encode(offset.state).decode(),
    }
