"""What a rule sees of a transaction, and what it makes of it.

A rule is a function of one change, or of one whole transaction, that gives events and commands.
Owns the decisions around it: which changes it is asked about, which columns it sees, how several
changes of one row become one, and under which id each result goes out.  The invariant: the same
transaction gives the same results with the same ids, in the same order, however often it is read;
and what a rule must not see cannot be got at through its arguments.  Where results go is not known
here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from traceback import walk_tb
from typing import Any, Final, NamedTuple

from msgspec import structs

from duly.errors import GapError, PermanentError, error_code
from duly.kernel.backoff import Retry
from duly.kernel.changes import ABSENT, Change, Op, Transaction

__all__ = [
    "COALESCE_MAX",
    "ROW_KEY",
    "Emit",
    "Emitted",
    "Masked",
    "Naming",
    "Rule",
    "RuleFailedError",
    "coalesce",
    "evaluate",
    "masked",
    "projected",
    "seen_by",
    "why_not",
]

COALESCE_MAX: Final = 100_000  # rows of one transaction that are held in memory to be made one


class _RowKey:
    """Stands for the key of the row: the messages of one row keep their order."""

    def __repr__(self) -> str:
        return "ROW_KEY"


ROW_KEY: Final = _RowKey()


class Masked:
    """A value that may be compared and not read. It has no JSON form: an event cannot carry it."""

    __slots__ = ("_hidden",)

    def __init__(self, hidden: Any) -> None:
        self._hidden = hidden

    def __eq__(self, other: object) -> bool:
        return bool(self._hidden == (other._hidden if isinstance(other, Masked) else other))

    def __hash__(self) -> int:
        return hash(self._hidden)

    def __repr__(self) -> str:
        return "***"


class Emit(NamedTuple):
    """An event or command with what ``publish`` and ``send`` take besides.

    key: what order is kept by; the row's key by default, ``UNKEYED`` for none. headers: more of
    them.
    """

    message: Any
    key: Any = ROW_KEY
    headers: Mapping[str, str] = {}


class Emitted(NamedTuple):
    """One result of a rule. id: of the message. change: what it was made of, None for a whole
    transaction.
    """

    rule: Rule
    id: str
    emit: Emit
    change: Change | None


@dataclass(frozen=True, eq=False)
class Rule:
    """A function and what it is asked about.

    name: part of the ids of what it emits. tables: as declared. whole: it takes a Transaction. key:
    the columns that name a row, the primary key where empty. include, exclude: columns seen. mask:
    columns that can only be compared. on_snapshot: whether rows of a snapshot count. initial:
    whether a new stream begins with a snapshot. before: whether it needs old values. coalesce:
    whether it sees each row once in a transaction. writes: the function takes a ``tx``, too. retry:
    how often it is tried again after it raised; for ever where None.
    """

    name: str
    function: Callable[[Any], Any]
    tables: tuple[str, ...]
    whole: bool = False
    key: tuple[str, ...] = ()
    include: frozenset[str] = frozenset()
    exclude: frozenset[str] = frozenset()
    mask: frozenset[str] = frozenset()
    on_snapshot: bool = False
    initial: bool = True
    before: bool = True
    coalesce: bool = False
    writes: bool = False
    retry: Retry | None = None


class RuleFailedError(PermanentError):
    """A rule raised. The stream waits at this transaction; mend the rule and start again, or skip
    the transaction by `duly cdc skip`.
    """

    code = "RULE_FAILED"

    def __init__(self, rule: str, cause: str, *, position: str = "", where: str = "") -> None:
        self.rule, self.cause, self.position = rule, cause, position
        raised = where and f", raised at {where}"
        super().__init__(f"rule {rule} at {position}: {cause}{raised}")


class Naming:
    """Which declared table a change belongs to. A name that was declared without its schema stands
    for any, unless the full name is declared as well.
    """

    def __init__(self, declared: Iterable[str]) -> None:
        self._declared = frozenset(declared)

    def of(self, table: str) -> str:
        """The declared name; empty for a table that nobody asked for."""
        if table in self._declared:
            return table
        last = table.rpartition(".")[2]
        return last if last in self._declared else ""


def evaluate(rules: Sequence[Rule], transaction: Transaction, naming: Naming) -> Iterator[Emitted]:
    """What the rules make of a transaction: row by row, then of rows made one, then of all of it.

    Raises RuleFailedError for the first rule that raises.
    """
    single = [rule for rule in rules if not (rule.whole or rule.coalesce)]
    if single:
        yield from _each(single, transaction.changes, naming)
    for rule in rules:
        if rule.coalesce and not rule.whole:
            mine = (c for c in transaction.changes if naming.of(c.table) in rule.tables)
            yield from _each([rule], _made_one(rule, mine, transaction.position), naming)
        elif rule.whole:
            seen = structs.replace(transaction, changes=_Seen(rule, transaction.changes, naming))
            if next(iter(seen.changes), None) is not None:
                for number, emit in enumerate(_called(rule, seen, transaction.position)):
                    yield Emitted(rule, transaction.event_id(rule.name, number), emit, None)


def _each(rules: Sequence[Rule], changes: Iterable[Change], naming: Naming) -> Iterator[Emitted]:
    for change in changes:
        table = naming.of(change.table)
        for rule in rules:
            if why_not(rule, change, table):
                continue
            for number, emit in enumerate(_called(rule, _view(rule, change), change.position)):
                yield Emitted(rule, change.event_id(rule.name, number), emit, change)


def _made_one(rule: Rule, changes: Iterable[Change], position: str) -> list[Change]:
    try:
        return coalesce(changes)
    except PermanentError as error:
        raise RuleFailedError(rule.name, error.code, position=position) from error


def why_not(rule: Rule, change: Change, table: str) -> str:
    """Why a rule is not asked about a change of a declared table; empty when it is."""
    if table not in rule.tables:
        return f"is about {', '.join(rule.tables)}"
    if change.op == "read" and not rule.on_snapshot:
        return "takes no rows of a snapshot (on_snapshot=False)"
    return ""


def _called(rule: Rule, seen: Any, position: str) -> Iterator[Emit]:
    """What the function gives, one by one."""
    try:
        given = rule.function(seen)
        if given is None:
            return
        many = isinstance(given, Iterator | list | tuple) and not isinstance(given, Emit)
        for one in given if many else (given,):
            yield one if isinstance(one, Emit) else Emit(one)
    except GapError:  # not the rule's: the log could not be read to the end of this transaction
        raise
    except Exception as error:
        # Neither its text nor its chain: they may quote the row.
        cause = str(error_code(error))
        raise RuleFailedError(rule.name, cause, position=position, where=_where(error)) from error


def _where(error: Exception) -> str:
    """The innermost line of the program's own that it came through, as ``file:line``."""
    lines = [(frame.f_code.co_filename, line) for frame, line in walk_tb(error.__traceback__)]
    own = [(file, line) for file, line in lines if "site-packages" not in file]
    file, line = (own or lines)[-1]
    return f"{file.replace(chr(92), '/').rpartition('/')[2]}:{line}"


def seen_by(rule: Rule, changes: Iterable[Change], naming: Naming) -> Iterator[Change]:
    """The changes that a rule about rows is asked about, as it sees them."""
    wanted = (change for change in changes if not why_not(rule, change, naming.of(change.table)))
    return (_view(rule, change) for change in wanted)


def projected(rule: Rule, change: Change) -> Mapping[str, Any] | None:
    """The row that the function makes of a change; None where it makes none.

    Raises RuleFailedError.
    """
    try:
        row = rule.function(change)
    except GapError:
        raise
    except Exception as error:
        cause = getattr(error, "code", type(error).__name__)
        raise RuleFailedError(rule.name, str(cause), position=change.position) from error
    if row is None or isinstance(row, Mapping):
        return row
    raise RuleFailedError(rule.name, "NOT_A_ROW", position=change.position)


# --- what a rule sees -----------------------------------------------------------------------------
class _Seen(Sequence[Change]):
    """The changes of a transaction as one rule sees them, made while they are walked."""

    def __init__(self, rule: Rule, changes: Sequence[Change], naming: Naming) -> None:
        self._rule, self._changes, self._naming = rule, changes, naming

    def __iter__(self) -> Iterator[Change]:
        of = self._naming.of
        wanted = (c for c in self._changes if not why_not(self._rule, c, of(c.table)))
        changes = coalesce(wanted) if self._rule.coalesce else wanted
        return (_view(self._rule, change) for change in changes)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __getitem__(self, index: Any) -> Any:
        return list(self)[index]


def _view(rule: Rule, change: Change) -> Change:
    if not (rule.include or rule.exclude or rule.mask):
        return change
    key = {name: value for name, value in change.key.items() if name not in rule.exclude}
    before, after = _columns(rule, change.before), _columns(rule, change.after)
    return masked(structs.replace(change, key=key, before=before, after=after), rule.mask)


def _columns(rule: Rule, row: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    if row is None:
        return None
    return {
        name: value
        for name, value in row.items()
        if name not in rule.exclude and (not rule.include or name in rule.include)
    }


def masked(change: Change, columns: frozenset[str]) -> Change:
    """The change with the values of these columns hidden; they can be compared."""
    if not columns:
        return change
    rows = (change.key, change.before, change.after)
    key, before, after = (_hidden(row, columns) for row in rows)
    return structs.replace(change, key=key or {}, before=before, after=after)


def _hidden(row: Mapping[str, Any] | None, columns: frozenset[str]) -> dict[str, Any] | None:
    if row is None:
        return None
    return {
        name: Masked(value)
        if name in columns and value is not None and value is not ABSENT
        else value
        for name, value in row.items()
    }


# --- several changes of one row -------------------------------------------------------------------
def coalesce(changes: Iterable[Change]) -> list[Change]:
    """Each row once, from what it was before to what it was after all of them, in the place of its
    last change; a row that came and went is left out, and a table that is emptied stays as it is.

    Raises PermanentError (TRANSACTION_TOO_LARGE) past COALESCE_MAX rows.
    """
    done: list[Change] = []
    open_rows: dict[Any, Change] = {}
    for change in changes:
        if change.op in ("truncate", "read"):
            done.append(change)
            continue
        was, now = _identity(change, change.before), _identity(change, None)
        before = open_rows.pop(was, None)
        joined = change if before is None else _joined(before, change)
        if joined is not None:
            open_rows[now] = joined
        if len(open_rows) > COALESCE_MAX:
            text = f"more than {COALESCE_MAX} rows in one transaction cannot be coalesced"
            raise PermanentError(text, code="TRANSACTION_TOO_LARGE")
    return sorted([*done, *open_rows.values()], key=lambda change: change.ordinal)


def _identity(change: Change, row: Mapping[str, Any] | None) -> Any:
    """Table and key: the key in ``row`` where it is told there, else the change's own. A row
    without a key is like no other.
    """
    if not change.key:
        return (change.table, change.ordinal)
    told = {} if row is None else row
    pairs = ((name, told.get(name, value)) for name, value in change.key.items())
    key = ((name, change.key[name] if value is ABSENT else value) for name, value in pairs)
    return (change.table, repr(sorted(key, key=lambda pair: pair[0])))


_JOINED: dict[tuple[Op, Op], Op] = {
    ("create", "update"): "create",
    ("delete", "create"): "update",
}


def _joined(first: Change, last: Change) -> Change | None:
    if (first.op, last.op) == ("create", "delete"):
        return None
    op = _JOINED.get((first.op, last.op), last.op)
    after = None if op == "delete" else last.after
    before = None if op == "create" else first.before
    return structs.replace(last, op=op, before=before, after=after)
