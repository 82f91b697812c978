"""What a person may ask of the streams: look, snapshot, rewind, skip, drop.

Owns the verbs on a stream's row.  The invariants: every change is one transaction with its line in
the audit; a reader that runs is put out by it (the row has another token) and begins again from
what was decided, so nothing that it still had in hand can undo that; what it may lose or double is
said before, not found out after.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any, NamedTuple

from msgspec import structs

from duly.cdc.offsets import Offset, Trouble, ask_for, forget, read
from duly.cdc.registry import RuleRegistry, StreamRules
from duly.errors import NotFoundError, OperatorError, WrongStatusError
from duly.observe.facts import OperatorActed
from duly.observe.hooks import Hooks
from duly.outbox.operator import By, check_by
from duly.outbox.verbs import Change as Acting
from duly.outbox.verbs import audit
from duly.ports import Database, Statement, Steps
from duly.sources import ChangeSource, SourceStatus

__all__ = ["SnapshotLine", "StreamLine", "StreamStatus", "Streams"]

BOX = "cdc"


class StreamLine(NamedTuple):
    """A stream as it is declared. rules: their names; sink: the place that it keeps in step."""

    stream: str
    source: str
    tables: tuple[str, ...]
    rules: tuple[str, ...]
    sink: str = ""


class SnapshotLine(NamedTuple):
    """How far the snapshot of a table is."""

    table: str
    done: bool
    begun: bool


class StreamStatus(NamedTuple):
    """Where a stream stands. state: ``new``, ``follows``, ``failing`` (a rule raises and is tried
    again), ``stopped`` (a person decides). moved_at: seconds since 1970, when the row was last
    written. source: None where the source could not be asked; unreached: why.
    """

    stream: str
    state: str
    position: str
    token: int
    moved_at: float
    trouble: Trouble | None
    snapshots: tuple[SnapshotLine, ...]
    source: SourceStatus | None
    unreached: str = ""


class Streams:
    """The operator's verbs on the streams of one App.

    A stream is named by ``stream``; where the App has one only, the name may be left out.
    """

    def __init__(
        self,
        registry: RuleRegistry,
        *,
        database: Database,
        hooks: Hooks,
        make_source: Callable[[StreamRules], ChangeSource],
        shown_url: Callable[[StreamRules], str],
    ) -> None:
        self._registry, self._database, self._hooks = registry, database, hooks
        self._make_source, self._shown_url = make_source, shown_url

    # --- looking ----------------------------------------------------------------------------------
    def declared(self) -> list[StreamLine]:
        """The streams of this App and their rules."""
        return [
            StreamLine(
                stream.name,
                self._shown_url(stream),
                tuple(table.name for table in stream.tables()),
                tuple(rule.name for rule in stream.rules),
                "" if stream.sink is None else stream.sink.place,
            )
            for stream in self._registry.streams
        ]

    async def status(self, stream: str = "") -> list[StreamStatus]:
        """Where the streams stand, all or one of them. Raises NotFoundError."""
        wanted = self._registry.streams if not stream else [self._found(stream)]
        return [await self._status(one) for one in wanted]

    async def _status(self, rules: StreamRules) -> StreamStatus:
        offset = self.offset(rules.name)
        trouble = offset.state.trouble
        state = "follows" if offset.position else "new"
        if trouble is not None:
            state = "stopped" if trouble.stopped else "failing"
        lines = (
            SnapshotLine(table, snapshot.done, bool(snapshot.cursor))
            for table, snapshot in sorted(offset.state.tables.items())
        )
        found = StreamStatus(
            rules.name,
            state,
            offset.position,
            offset.token,
            offset.updated_at,
            trouble,
            tuple(lines),
            None,
        )
        if not offset.position:
            return found
        try:
            source = await self._make_source(rules).status(offset.position)
        except Exception as error:  # noqa: BLE001  # what the row says is worth showing without it
            return found._replace(unreached=f"{getattr(error, 'code', type(error).__name__)}")
        return found._replace(source=source)

    def offset(self, stream: str) -> Offset:
        """The row of a stream as it is."""
        with closing(self._database.connect()) as connection:
            return connection.run(read(stream))

    # --- deciding ---------------------------------------------------------------------------------
    def snapshot(self, table: str, *, by: By, stream: str = "") -> bool:
        """Ask for the rows of a table as they are, beside the stream; the reader takes it up within
        a second or two, or when it starts. Where its source lost the capture of a table and the
        stream stopped, this mends it.

        Returns whether any rule takes rows of a snapshot. Guarantee: with the changes around them
        the rows give the table, without gap or overlap. Idempotence: asking twice before it begins
        is asking once. Raises NotFoundError (no rule is about the table).
        """
        rules = self._found(stream)
        taken = rules.on_snapshot(table)

        def steps() -> Steps[None]:
            yield ask_for(rules.name, "snapshot", table)
            offset = yield from read(rules.name)
            if offset.state.trouble is not None and offset.state.trouble.stopped:
                state = offset.state.with_trouble(None)
                yield from _forget(rules.name, offset._replace(state=state))
            yield _audit("snapshot", rules, by=by, detail={"table": table})

        self._act("snapshot", steps, by)
        return taken

    def rewind(self, position: str, *, by: By, stream: str = "") -> None:
        """Let the stream go on behind another position; ``start``: begin anew, as a new stream
        does, with its first snapshots.

        Going back repeats events under their old ids, which consumers know for as long as their
        dedupe window; going forward leaves changes out. Raises OperatorError for a position that
        has another form than the present one.
        """
        rules = self._found(stream)

        def steps() -> Steps[None]:
            offset = yield from read(rules.name)
            wanted = _rewound(offset, position)
            yield from _forget(rules.name, wanted)
            yield _audit("rewind", rules, by=by, detail={"from": offset.position, "to": position})

        self._act("rewind", steps, by)

    def skip(self, position: str, *, by: By, stream: str = "") -> None:
        """Leave out the transaction at which a rule raises: nothing is made of it by any rule.

        Raises WrongStatusError where no rule fails at this position now.
        """
        rules = self._found(stream)

        def steps() -> Steps[None]:
            offset = yield from read(rules.name)
            trouble = offset.state.trouble
            # What stopped at an item stands behind the position; lost history stands at it.
            stays = trouble is not None and trouble.stopped and trouble.position == offset.position
            if trouble is None or stays or trouble.position != position:
                raise WrongStatusError(f"no rule of {rules.name} fails at {position!r:.80}")
            yield ask_for(rules.name, "skip", position)
            if trouble.stopped:  # it was tried for the last time: it begins again, and is skipped
                state = offset.state.with_trouble(structs.replace(trouble, stopped=False))
                yield from _forget(rules.name, offset._replace(state=state))
            yield _audit("skip", rules, by=by, detail={"position": position, "code": trouble.code})

        self._act("skip", steps, by)

    async def drop(self, *, by: By, stream: str = "") -> None:
        """Remove what capturing needs at the source - slot and publication, or triggers - and begin
        anew at the next start. What is committed meanwhile is not captured.

        Raises OperatorError (CDC_READER_ACTIVE) while somebody reads.
        """
        check_by(by)
        rules = self._found(stream)
        source = self._make_source(rules)
        if (await source.status(self.offset(rules.name).position)).active:
            text = f"{rules.name} is being read; stop the role cdc first"
            raise OperatorError(text, code="CDC_READER_ACTIVE")
        await source.drop()

        def steps() -> Steps[None]:
            offset = yield from read(rules.name)
            yield from _forget(rules.name, offset._replace(position="", state=offset.state.anew()))
            yield _audit("drop", rules, by=by, detail={"from": offset.position})

        self._act("drop", steps, by)

    # --- details ----------------------------------------------------------------------------------
    def _found(self, stream: str) -> StreamRules:
        known = self._registry.streams
        found = [one for one in known if stream in ("", one.name)]
        if len(found) == 1:
            return found[0]
        names = ", ".join(one.name for one in known) or "none"
        what = f"there is no stream {stream!r:.80}" if stream else "say which stream"
        raise NotFoundError(f"{what}; there are: {names}")

    def _act(self, verb: str, steps: Callable[[], Steps[None]], by: By) -> None:
        check_by(by)
        with closing(self._database.connect()) as connection:
            connection.run(steps())
        self._hooks.emit(OperatorActed(box=BOX, verb=verb, actor=by.actor, count=1))


def _rewound(offset: Offset, position: str) -> Offset:
    if position == "start":
        return offset._replace(position="", state=offset.state.anew())
    known = offset.position
    if not known:
        raise WrongStatusError("the stream has not begun; there is nothing to rewind")
    if len(position) != len(known) or not position.isalnum():
        text = f"{position!r:.80} does not look like {known}"
        raise OperatorError(text, code="CDC_POSITION")
    return offset._replace(position=position, state=offset.state.with_trouble(None).rewound())


def _forget(stream: str, offset: Offset) -> Steps[None]:
    if not (yield from forget(stream, offset)):
        raise NotFoundError(f"the stream {stream} has no row, or it changed meanwhile")


def _audit(verb: str, rules: StreamRules, *, by: By, detail: dict[str, Any]) -> Statement:
    acting = Acting(box=BOX, verb=verb, actor=by.actor, reason=by.reason)
    return audit(acting, f"cdc/{rules.name}", message_id=None, detail=detail)
