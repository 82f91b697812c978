"""From what a stream gave to the messages that are stored for it.

Owns the evaluation of items by the rules, up to the first rule that raises, and the way of a result
into the outbox: its id, its key, the headers that say where it comes from.  The invariant: items
are evaluated whole or not at all, so that a position can only be stored behind a commit; and a
large transaction is turned into messages piece by piece, while it is written, not held in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any
from uuid import UUID

from duly.cdc.intake import Item
from duly.cdc.registry import StreamRules
from duly.errors import DulyError
from duly.kernel.changes import ABSENT, Change, SnapshotChunk, Transaction
from duly.kernel.rules import ROW_KEY, Emitted, RuleFailedError, evaluate
from duly.message import is_key
from duly.outbox.publish import UNKEYED, MessageOutlet, PendingMessage
from duly.ports import Pending

__all__ = [
    "HEADER_ORDINAL",
    "HEADER_POSITION",
    "HEADER_SOURCE_OF_CHANGE",
    "HEADER_TABLE",
    "HEADER_TIME_OF_CHANGE",
    "PIECE",
    "Evaluated",
    "Evaluator",
]

HEADER_SOURCE_OF_CHANGE = "cdcsource"
HEADER_TABLE = "cdctable"
HEADER_POSITION = "cdcposition"
HEADER_ORDINAL = "cdcordinal"
HEADER_TIME_OF_CHANGE = "cdctime"

PIECE = 1000


@dataclass(frozen=True)
class Evaluated:
    """Items and what was made of them. messages: of all of them. failed: the rule that raised at
    the item behind them.
    """

    items: Sequence[Item]
    messages: Sequence[Pending]
    failed: DulyError | None = None


class Evaluator:
    """Applies the rules of one stream; its methods may be called in any thread."""

    def __init__(self, stream: StreamRules, outlet: MessageOutlet) -> None:
        self._stream, self._outlet = stream, outlet
        self._naming = stream.naming

    def evaluate(self, items: Sequence[Item]) -> Evaluated:
        """What the rules make of items, up to the one at which a rule raises."""
        messages: list[Pending] = []
        for done, item in enumerate(items):
            try:
                made = list(self.messages(item))
            except RuleFailedError as error:
                return Evaluated(items[:done], messages, error)
            messages += made
        return Evaluated(items, messages)

    def pieces(self, item: Item) -> Iterator[list[Pending]]:
        """The messages of one item, piece by piece. Raises RuleFailedError."""
        piece: list[Pending] = []
        for message in self.messages(item):
            piece.append(message)
            if len(piece) == PIECE:
                yield piece
                piece = []
        if piece:
            yield piece

    def messages(self, item: Item) -> Iterator[PendingMessage]:
        """The messages of one item. Raises RuleFailedError."""
        if isinstance(item, str):
            return
        transaction = item if isinstance(item, Transaction) else _as_transaction(item)
        for emitted in evaluate(self._stream.rules, transaction, self._naming):
            yield self._message(emitted, transaction)

    def emitted(self, item: Item) -> Iterable[Emitted]:
        """What the rules make of one item, before it becomes messages. Raises RuleFailedError."""
        if isinstance(item, str):
            return ()
        transaction = item if isinstance(item, Transaction) else _as_transaction(item)
        return evaluate(self._stream.rules, transaction, self._naming)

    def _message(self, emitted: Emitted, transaction: Transaction) -> PendingMessage:
        emit = emitted.emit
        key = _row_key(emitted.change) if emit.key is ROW_KEY else emit.key
        headers = {**emit.headers, **_origin(emitted.change, transaction)}
        try:
            kind = self._outlet.registry.of(type(emit.message)).kind
            return PendingMessage(
                self._outlet, emit.message, kind=kind, key=key, headers=headers, id=emitted.id
            )
        except DulyError as error:
            # What it yielded cannot be sent: as much the rule's fault as an exception of its own.
            position = transaction.position
            raise RuleFailedError(emitted.rule.name, error.code, position=position) from error


def _as_transaction(chunk: SnapshotChunk) -> Transaction:
    """The rows of a chunk, each its own change; rules about transactions take no snapshots."""
    source = chunk.rows[0].source if chunk.rows else ""
    place = chunk.position
    return Transaction(source, place, place, xid="", committed_at=None, changes=chunk.rows)


def _origin(change: Change | None, transaction: Transaction) -> dict[str, str]:
    place = transaction.position if change is None else change.position
    headers = {HEADER_SOURCE_OF_CHANGE: transaction.source, HEADER_POSITION: place}
    if change is not None:
        headers |= {HEADER_TABLE: change.table, HEADER_ORDINAL: str(change.ordinal)}
    if transaction.committed_at is not None:
        headers[HEADER_TIME_OF_CHANGE] = transaction.committed_at.isoformat()
    return headers


def _row_key(change: Change | None) -> Any:
    """The row's key as a key of messages; none for a whole transaction and for a row without."""
    if change is None or not change.key or ABSENT in change.key.values():
        return UNKEYED
    parts = [_text(value) for _, value in sorted(change.key.items())]
    text = parts[0] if len(parts) == 1 else "".join(f"{len(part)}:{part}" for part in parts)
    # What cannot be a key of messages still keeps its order, under its digest.
    return text if is_key(text) else sha256(text.encode(errors="surrogatepass")).hexdigest()


def _text(value: Any) -> str:
    if isinstance(value, str | int | UUID):
        return str(value)
    return value.hex() if isinstance(value, bytes) else str(value)
