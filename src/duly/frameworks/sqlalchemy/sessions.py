"""Buffers on the transactions of a SQLAlchemy ``Session``.

Theory of operation.  A message published on a session waits on the innermost ``SessionTransaction``
that is a real boundary (root or savepoint), as an attribute of it, so it follows savepoints that
never ran SQL and dies with the session.  At the root's ``before_commit`` the session is flushed and
late values are resolved until both are done - SQL is still legal - and the items move to the
transaction of the connection (``core``), which stores them last.

    after_commit            fires for released savepoints too: it only marks the frame
    after_transaction_end   nested and marked: items join the parent; nested, not marked: gone
                            root and marked: finish what the connections' commits left for us
                            root, not marked: gone - unless its rows stay in an outer transaction

Two things are refused instead of guessed.  A session joined to an outer transaction that was closed
or left open without a commit has changed rows that the outer commit would keep: that commit raises
(SESSION_NOT_COMMITTED).  An entry that came too late to be stored raises after the commit
(MESSAGES_LEFT_OVER).
"""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from weakref import ref

from sqlalchemy import event
from sqlalchemy.engine import Connection
from sqlalchemy.exc import InvalidRequestError, UnboundExecutionError
from sqlalchemy.orm import Session, SessionTransaction

from duly.errors import ConfigurationError, DulyError, NotInTransactionError
from duly.frameworks.frames import ROUNDS_MAX, Item, finish, item, resolve
from duly.frameworks.sqlalchemy import core
from duly.ports import Outlet, Pending

__all__ = ["buffer", "flush"]

_KEY = "_duly_frame"


class _Frame:
    """The buffer of one SessionTransaction, and for a root what its connections' commits left to
    finish.
    """

    __slots__ = ("__weakref__", "committed", "done", "ended", "handed_over", "items", "root")

    def __init__(self, transaction: SessionTransaction) -> None:
        self.root = ref(transaction)
        self.items: list[Item] = []
        self.done: list[Item] = []
        self.committed = self.ended = self.handed_over = False

    def surrender(self, connection: Connection) -> None:
        """Stragglers: published after ``before_commit``, or the root is committed over an open
        savepoint.
        """
        transaction = self.root()
        if self.ended or transaction is None:
            return
        found = _all_items(transaction)
        if transaction.is_active and not self.handed_over:
            if found:
                raise _not_committed(len(found))
            return
        session = transaction.session
        try:
            resolve(lambda: found)
        except InvalidRequestError as error:
            raise _too_late() from error
        if found and (session.new or session.dirty or session.deleted):
            raise _too_late()
        self.handed_over = True
        if found:
            core.innermost(connection).items += found
            for frame in _frames(transaction):
                frame.items = []

    def take_over(self, items: list[Item]) -> bool:
        """The session is inside its own commit: hooks wait until it can be used again."""
        if self.ended or not self.handed_over:
            return False
        self.done += items
        return True


def buffer(session: Session, entry: Pending) -> None:
    """Attach ``entry`` to the innermost frame; begins the session's transaction as ``Session.add``
    does.
    """
    _listen()
    if not session.in_transaction():
        _begin(session)
    boundary = session.get_nested_transaction() or session.get_transaction()
    assert boundary is not None
    if not boundary.is_active:
        raise NotInTransactionError("the session's transaction has ended or was rolled back")
    root = session.get_transaction()
    assert root is not None
    if _KEY not in vars(root):
        frame = _frame(root)
        for connection in root.connections:
            _join(frame, connection)
    _frame(boundary).items.append(item(entry))


def flush(session: Session) -> None:
    """Hand over and store what waits, in the open transaction."""
    root = session.get_transaction()
    if root is not None and _KEY in vars(root):
        _hand_over(session, root)
        for connection in root.connections:
            core.write_now(connection)


# --- listeners ------------------------------------------------------------------------------------
@cache
def _listen() -> None:
    """Once per process, on the class.

    It reaches sessions that exist already, subclasses and async sessions; every listener may run
    twice without harm, should two threads come here at once.
    """
    event.listen(Session, "before_commit", _before_commit)
    event.listen(Session, "after_begin", _after_begin)
    event.listen(Session, "after_commit", _after_commit)
    event.listen(Session, "after_transaction_end", _after_transaction_end)


def _before_commit(session: Session) -> None:
    root = session.get_transaction()
    if root is None or _KEY not in vars(root):
        return
    if session.in_nested_transaction():
        return  # of a savepoint; or of the root over an open one: the Core commit takes its items
    _hand_over(session, root)
    _frame(root).handed_over = True


def _after_begin(session: Session, transaction: SessionTransaction, connection: Connection) -> None:
    root = session.get_transaction()
    if root is not None and _KEY in vars(root):
        _join(_frame(root), connection)


def _after_commit(session: Session) -> None:
    boundary = session.get_nested_transaction() or session.get_transaction()
    if boundary is not None and _KEY in vars(boundary):
        _frame(boundary).committed = True


def _after_transaction_end(session: Session, transaction: SessionTransaction) -> None:
    frame: _Frame | None = vars(transaction).pop(_KEY, None)
    if frame is None:
        return
    frame.ended = True
    if transaction.nested:
        if frame.committed:
            assert transaction.parent is not None
            _frame(_boundary(transaction.parent)).items += frame.items
    elif frame.committed:
        _finish(session, frame)
    elif frame.items or frame.done:
        _refuse_half(transaction, len(frame.items))


# --- the moments ----------------------------------------------------------------------------------
def _hand_over(session: Session, root: SessionTransaction) -> None:
    """Flush and resolve until both are done, then move the items to the connections'
    transactions.
    """
    frame = _frame(root)
    _settle(session, frame)
    places: dict[Outlet | None, list[Item]] = {}
    for one in frame.items:  # whatever can fail comes before the first item moves
        outlet = one.entry.outlet
        if outlet is not None and outlet not in places:
            places[outlet] = _place(frame, _connection_for(session, root, outlet))
    waiting = _joined_connection(session, root)
    stay: list[Item] = []  # hooks of a transaction that never ran SQL
    places[None] = stay if waiting is None else _place(frame, waiting)
    items, frame.items = frame.items, stay
    for one in items:
        places[one.entry.outlet].append(one)


def _place(frame: _Frame, connection: Connection) -> list[Item]:
    _join(frame, connection)
    return core.innermost(connection).items


def _settle(session: Session, frame: _Frame) -> None:
    for _ in range(ROUNDS_MAX):
        session.flush()
        if all(one.entry.frozen for one in frame.items):
            return
        resolve(lambda: frame.items)
    raise ConfigurationError("every flush publishes again", code="PUBLISH_NEVER_ENDS")


def _connection_for(session: Session, root: SessionTransaction, outlet: Outlet) -> Connection:
    """The session's connection to the App's database: one in use, else the default one."""
    refused: ConfigurationError | None = None
    for connection in root.connections:
        try:
            core.admit(connection, outlet)
            return connection
        except ConfigurationError as error:
            refused = error
    try:
        default = session.connection()
    except UnboundExecutionError as error:
        raise refused or ConfigurationError(
            "the session has no connection to the App's database", code="WRONG_DATABASE"
        ) from error
    if default in root.connections and refused is not None and len(root.connections) == 1:
        raise refused
    core.admit(default, outlet)
    return default


def _joined_connection(session: Session, root: SessionTransaction) -> Connection | None:
    """Where hooks wait: any connection in use, else the outer transaction that the session is bound
    to.
    """
    for connection in root.connections:
        return connection
    with suppress(UnboundExecutionError):
        if isinstance(session.get_bind(), Connection):
            return session.connection()
    return None


def _finish(session: Session, frame: _Frame) -> None:
    left = [one for one in frame.items if one.entry.outlet is not None]
    if left:
        raise DulyError(
            f"{len(left)} messages were published too late in the commit and are not stored",
            code="MESSAGES_LEFT_OVER",
        )
    with core.lifted(session):
        finish(frame.done + frame.items, lambda fine: _end(session, fine))


def _refuse_half(root: SessionTransaction, count: int) -> None:
    """The session ended without a commit: where its rows stay in an outer transaction, that one may
    not commit.
    """
    for _, transaction, owned, _ in set(root._connections.values()):
        if not owned and transaction.is_active:
            core.adopt(transaction).refusal = _not_committed(count)


def _end(session: Session, fine: bool) -> None:
    if session.in_transaction():
        if fine:
            session.commit()
        else:
            session.rollback()


# --- details --------------------------------------------------------------------------------------
def _frame(transaction: SessionTransaction) -> _Frame:
    found: _Frame | None = vars(transaction).get(_KEY)
    if found is None:
        found = vars(transaction)[_KEY] = _Frame(transaction)
    return found


def _join(frame: _Frame, connection: Connection) -> None:
    transaction = connection.get_transaction()
    if transaction is not None:
        core.adopt(transaction).guests[frame] = None


def _begin(session: Session) -> None:
    if not session.autobegin:
        raise NotInTransactionError("the session has no transaction and autobegin is off")
    try:
        session.begin()
    except InvalidRequestError as error:
        raise NotInTransactionError(str(error)) from error


def _boundary(transaction: SessionTransaction) -> SessionTransaction:
    while transaction.parent is not None and not transaction.nested:
        transaction = transaction.parent
    return transaction


def _frames(root: SessionTransaction) -> list[_Frame]:
    """The frames of a session's open transactions, from inside out."""
    found = []
    transaction: SessionTransaction | None = root.session.get_nested_transaction() or root
    while transaction is not None:
        if _KEY in vars(transaction):
            found.append(_frame(transaction))
        transaction = transaction.parent
    return found


def _all_items(root: SessionTransaction) -> list[Item]:
    return [one for frame in _frames(root) for one in frame.items]


def _too_late() -> DulyError:
    return ConfigurationError(
        "a late value of a message published during the commit needs SQL or changes objects; "
        "publish it earlier, or release the savepoint before the commit",
        code="TOO_LATE_FOR_SQL",
    )


def _not_committed(count: int) -> DulyError:
    return ConfigurationError(
        f"a session with {count} messages was not committed before its outer transaction; "
        "commit the session first",
        code="SESSION_NOT_COMMITTED",
    )
