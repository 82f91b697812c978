"""Rules that write: what they do in the App's database is one commit with the position behind it.

A rule that takes a ``tx`` runs inside the transaction that stores the position, beside the rules
that only yield.  The transaction opens when a rule first touches its ``tx``: first statement, the
row of the stream under its token, so that a reader that was put out writes nothing; last, the
messages and the new position.  The invariants: an effect and the position behind its change are
committed together or not at all; a position never stands behind a transaction that failed.  Which
items are tried again, and when, is the follower's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from duly.cdc.intake import Item, position_of
from duly.cdc.outgoing import PIECE, Evaluator
from duly.cdc.registry import StreamRules
from duly.errors import (
    ConfigurationError,
    DatabaseUnavailableError,
    GapError,
    OutcomeUnknownError,
    RetryableError,
    StaleLeaseError,
    TransactionConflictError,
    TransactionMisuseError,
    error_code,
)
from duly.kernel import failpoints
from duly.kernel.rules import Rule, RuleFailedError
from duly.outbox.publish import MessageOutlet, PendingMessage
from duly.ports import Clock, Steps
from duly.runtime.desk import Desk
from duly.runtime.leases import Deadlines

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

__all__ = ["Applied", "ChangeTx", "Effects", "Frame"]

HOLD_SECONDS = 1.0  # how long one transaction takes up further items, as others wait for its locks
_ABORTED = "TRANSACTION_ABORTED"


class Applied(NamedTuple):
    """What became of items. items: those that are done, from the first. stored: whether their
    position is committed; they had nothing to commit else. messages: of them, where few enough to
    be told; made: how many. failed: the rule that raised at the item behind them.
    """

    items: Sequence[Item]
    stored: bool
    messages: Sequence[PendingMessage] = ()
    made: int = 0
    failed: RuleFailedError | None = None


class Frame(NamedTuple):
    """What stands around the work of the rules. first: the fence; last: of the items that are done,
    the new position. due: whether that must be stored though nothing was made of them.
    """

    first: Callable[[], Steps[None]]
    last: Callable[[Sequence[Item]], Steps[None]]
    due: Callable[[Sequence[Item]], bool] = lambda _: True


class _RefusedError(Exception):
    """Nothing was committed. upto: how many items to try next; rule_failed: where it is known."""

    def __init__(self, upto: int, rule_failed: RuleFailedError | None) -> None:
        self.upto, self.rule_failed = upto, rule_failed
        super().__init__(upto)


_NO_FAULT = (_RefusedError, GapError, StaleLeaseError, OutcomeUnknownError)


class _Write:
    """One transaction on a desk, opened by the first rule that touches it."""

    def __init__(self, desk: Desk, first: Callable[[], Steps[None]]) -> None:
        self.desk, self._first = desk, first
        self.session: Any = None  # a HandlerSession
        self.opened = False
        self.used: set[str] = set()
        self.passing: Exception | None = None  # an error that is no rule's fault
        self._failure: Exception | None = None
        self._over = False

    def open(self) -> None:
        """Begin and fence. Raises StaleLeaseError, TransactionMisuseError, the driver's errors."""
        if self._over:
            raise TransactionMisuseError("tx was used after its rule had returned")
        if self._failure is not None:
            raise self._failure
        if self.opened:
            return
        self.opened = True
        try:
            self.desk.begin_guarded()
            self.desk.drive(self._first())
        except Exception as error:
            self._failure = error
            raise

    def reach(self) -> Any:
        """The driver's connection in the transaction, which opens now."""
        self.open()
        return self.desk.driver

    def drive(self, steps: Steps[None]) -> None:
        """Run statements of ours behind what the rules have done so far."""
        if self.session is not None:
            self.session.flush()
        self.open()
        self.desk.drive(steps)

    def commit(self) -> None:
        """Commit. Raises TransactionMisuseError, RetryableError, OutcomeUnknownError and what the
        database has against it.
        """
        if self.session is not None and self.session.misused is not None:
            raise self.session.misused
        failpoints.hit(failpoints.CDC_WRITTEN)
        failed = self.desk.unguard(committing=self.session is None)
        self.desk.commit(self._commit_session, failed=failed)
        self.end()

    def abandon(self) -> None:
        """Roll back; never raises."""
        self.end()
        self.desk.rollback()

    def end(self) -> None:
        """Whoever kept the ``tx`` or its session cannot reach the next transaction. Idempotent."""
        self._over = True
        if self.session is not None:
            self.session.ending = True
            with suppress(Exception):  # the commit or the rollback is what counts
                self.session.close()
            self.session.bind = None

    def _commit_session(self) -> None:
        if self.session is not None:
            self.session.ending = True
            self.session.commit()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Around a rule: remembers an error that is the database's and not the rule's."""
        try:
            yield
        except Exception as error:
            mapped = self.desk.mapped(error)
            lost = isinstance(mapped, DatabaseUnavailableError | OutcomeUnknownError)
            ours = isinstance(mapped, StaleLeaseError | TransactionConflictError)
            if self.passing is None and (ours or (lost and self.desk.lost)):
                self.passing = mapped
            raise


class ChangeTx:
    """The transaction that a rule writes in; it commits with the position behind the change."""

    def __init__(self, write: _Write, rule: str) -> None:
        self._write, self._rule = write, rule

    @property
    def session(self) -> Session:
        """A SQLAlchemy session in the transaction, which opens now. Its commit, rollback and close
        are refused.
        """
        write = self._touched()
        if write.session is None:
            from duly.runtime.sessions import session

            write.session = session(write.desk.core)
        return write.session  # type: ignore[no-any-return]

    @property
    def connection(self) -> Any:
        """The driver's own connection (sqlite3, psycopg, PyMySQL) in the transaction, which opens
        now: for plain SQL.
        """
        return self._touched().desk.driver

    @property
    def using(self) -> str:
        """The alias of Django's connection that works in the transaction, as ``Tx.using``.

        Raises ConfigurationError (NOT_DJANGO) where the App is not on a database of Django's.
        """
        alias = self._touched().desk.core.get_execution_options().get("duly_using")
        if alias is None:
            text = "this App has no database of Django's; see duly.frameworks.django"
            raise ConfigurationError(text, code="NOT_DJANGO")
        return str(alias)

    def _touched(self) -> _Write:
        self._write.open()
        self._write.used.add(self._rule)
        return self._write


class Effects:
    """Runs the rules of a stream of which some write; all of it in one thread.

    limit_seconds: how long one call of a rule may take. piece: how many messages are written at
    once; those of a large transaction are not held in memory.
    """

    def __init__(
        self,
        rules: StreamRules,
        outlet: MessageOutlet,
        *,
        desk: Desk,
        deadlines: Deadlines,
        limit_seconds: float,
        clock: Clock,
        piece: int = PIECE,
    ) -> None:
        self._rules, self._outlet, self._desk = rules, outlet, desk
        self._deadlines, self._limit_seconds = deadlines, limit_seconds
        self._clock, self._piece = clock, piece

    def apply(self, items: Sequence[Item], frame: Frame) -> Applied:
        """Run the rules over items and commit what comes of those that went well, from the first.

        Raises StaleLeaseError, RetryableError and OutcomeUnknownError, which are no rule's fault,
        and GapError.
        """
        count, failed = len(items), None
        while count:
            try:
                applied = self._attempt(items[:count], frame)
            except _RefusedError as refused:
                count, failed = refused.upto, refused.rule_failed
            else:
                return applied._replace(failed=failed if len(applied.items) == count else None)
        return Applied((), stored=False, failed=failed)

    def close(self) -> None:
        """Close the connection; never raises."""
        self._desk.close()

    def _attempt(self, items: Sequence[Item], frame: Frame) -> Applied:
        self._desk.open()
        write = _Write(self._desk, frame.first)
        try:
            return self._write(write, items, frame)
        except Exception as error:
            judged = self._judged(error, write, items)
            write.abandon()
            if judged is error:
                raise
            raise judged from error
        except BaseException:
            write.abandon()
            raise

    def _write(self, write: _Write, items: Sequence[Item], frame: Frame) -> Applied:
        made: list[PendingMessage] = []
        with self._desk.shared(write.reach) as agree:
            ready, earlier = self._evaluate(items, write, made)
            if not (write.opened or made or frame.due(ready)):
                return Applied(ready, stored=False)
            agree()
            write.drive(self._outlet.write(made))
            write.drive(frame.last(ready))
            write.commit()
        return Applied(ready, True, () if earlier else made, earlier + len(made))

    def _evaluate(
        self, items: Sequence[Item], write: _Write, made: list[PendingMessage]
    ) -> tuple[Sequence[Item], int]:
        """The items that were taken up, and how many of their messages are written already; the
        others are in ``made``. Raises _RefusedError.
        """
        evaluator = Evaluator(self._bound(write), self._outlet)
        until = self._clock.monotonic() + HOLD_SECONDS
        written = 0
        for place, item in enumerate(items):
            try:
                for message in evaluator.messages(item):
                    made.append(message)
                    if len(made) == self._piece:
                        write.drive(self._outlet.write(made, last=False))
                        written += len(made)
                        made.clear()
            except RuleFailedError as error:
                if write.passing is not None:
                    raise write.passing from error
                raise _RefusedError(place, error) from error
            if self._clock.monotonic() > until:
                return items[: place + 1], written
        return items, written

    def _judged(self, error: Exception, write: _Write, items: Sequence[Item]) -> Exception:
        """What an error means. What only the commit tells of is some rule's fault, and of which
        transaction shows when they are tried in halves.
        """
        mapped = self._desk.mapped(error)
        passing = isinstance(mapped, RetryableError) and mapped.code != _ABORTED
        if passing or not write.used or isinstance(mapped, _NO_FAULT):
            return mapped
        failed = None
        if len(items) == 1:
            rules, place = ", ".join(sorted(write.used)), position_of(items[0])
            failed = RuleFailedError(rules, error_code(mapped), position=place)
        return _RefusedError(len(items) // 2, failed)

    def _bound(self, write: _Write) -> StreamRules:
        rules = tuple(self._bind(rule, write) for rule in self._rules.rules)
        return replace(self._rules, rules=rules)

    def _bind(self, rule: Rule, write: _Write) -> Rule:
        if not rule.writes:
            return rule
        function: Callable[..., Any] = rule.function
        tx = ChangeTx(write, rule.name)

        def run(seen: Any) -> Any:
            with self._limited(rule.name, write):
                given = function(seen, tx=tx)
            return walk(given) if isinstance(given, Iterator) else given

        def walk(given: Iterator[Any]) -> Iterator[Any]:
            with self._limited(rule.name, write):
                yield from given

        return replace(rule, function=run, writes=False)

    @contextmanager
    def _limited(self, rule: str, write: _Write) -> Iterator[None]:
        token = self._deadlines.enter(f"rule {rule}", self._limit_seconds)
        try:
            with write.watched():
                yield
        finally:
            self._deadlines.leave(token)
