"""The rules of one App, and the streams that they read.

Owns registration and what is wrong with it.  A rule is about tables of a source; all rules of one
source share one stream, with one position.  What can be seen when a rule is decorated - names,
options, an async function - is refused there; what the source can deliver is held against the rules
when the App starts.  The invariant: within a stream a rule's name is unique, because it is part of
the ids of what it emits.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, TypeVar, Unpack

from duly.errors import ConfigurationError, DulyError, NotFoundError, RetryableError
from duly.kernel.backoff import Retry
from duly.kernel.changes import Change
from duly.kernel.names import check_name, check_sql_name
from duly.kernel.rules import Naming, Rule, RuleFailedError, masked
from duly.ports import Finding, Severity
from duly.sink import Sink
from duly.sources import ChangeFeatures, TableSpec

__all__ = ["RuleOptions", "RuleRegistry", "StreamRules"]

F = TypeVar("F", bound=Callable[..., Any])

_NOT_SQL = re.compile(r"[^a-z0-9_]")
_READER_MAX = 41
_TABLE_MAX = 120
_FIRST = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.VAR_POSITIONAL,
)


class RuleOptions(TypedDict, total=False):
    """What a rule is asked about.

    table: one table, tables: several; with their schema where the source's default is not meant.
    transaction: the function takes a whole ``Transaction`` instead of a ``Change``. source: the
    name of a source declared by ``app.source``; the App's own database by default. key: the columns
    that name a row, where that is not the primary key. include: the only columns carried. exclude:
    columns never carried. mask: columns that can be compared and not read. on_snapshot: whether
    rows that were there before count, too. snapshot: ``initial`` reads those when the stream begins
    (or the rule is new), ``never`` only when an operator asks. before: whether old values are
    needed. coalesce: ``row`` shows each row once in a transaction. retry: how often a rule that
    raised is tried again before its stream stops and waits for a person; for ever by default. into:
    a sink that is kept in step with the table: the function gives the row, document or entry that
    a change leaves, None for none, and its stream is one of its own. name: stable for ever, part of
    the ids; default the name of the function.
    """

    table: str
    tables: Sequence[str]
    transaction: bool
    source: str | None
    key: str | Sequence[str]
    include: Sequence[str]
    exclude: Sequence[str]
    mask: Sequence[str]
    on_snapshot: bool
    snapshot: Literal["initial", "never"]
    before: bool
    coalesce: Literal["row"] | None
    retry: Retry | None
    into: Sink | None
    name: str | None


_KNOWN = frozenset(RuleOptions.__annotations__)


@dataclass(frozen=True)
class StreamRules:
    """The rules of one stream. name: of the stream and of its reader. url: of the source, None for
    the App's own database. sink: what its one rule feeds.
    """

    name: str
    url: str | None
    rules: tuple[Rule, ...]
    sink: Sink | None = None

    @property
    def naming(self) -> Naming:
        """Which declared table a change belongs to."""
        return Naming(table for rule in self.rules for table in rule.tables)

    def tables(self) -> list[TableSpec]:
        """What the source is to capture: for each table what all its rules need together.

        Raises ConfigurationError where two rules name a table's row differently.
        """
        names = sorted({table for rule in self.rules for table in rule.tables})
        return [self._table(name) for name in names]

    def initial(self) -> list[str]:
        """The tables that a new stream begins with a snapshot of."""
        wanted = (rule for rule in self.rules if rule.on_snapshot and rule.initial)
        return sorted({table for rule in wanted for table in rule.tables})

    @property
    def writes(self) -> bool:
        """Whether any rule takes a ``tx``."""
        return any(rule.writes for rule in self.rules)

    def retry_after(self, error: DulyError) -> Retry | None:
        """How often what raised this is tried again; None: for ever."""
        if isinstance(error, RetryableError):
            return None
        names = error.rule.split(", ") if isinstance(error, RuleFailedError) else []
        failed = self.rules if self.sink else [rule for rule in self.rules if rule.name in names]
        retries = [rule.retry for rule in failed if rule.retry]
        return min(retries, key=lambda retry: retry.attempts, default=None)

    def masked(self, change: Change) -> Change:
        """The change with every value hidden that any rule masks."""
        table = self.naming.of(change.table)
        masks = [rule.mask for rule in self.rules if table in rule.tables]
        return masked(change, frozenset[str]().union(*masks))

    def on_snapshot(self, table: str) -> bool:
        """Whether any rule would look at a snapshot of the table. Raises NotFoundError for one that
        no rule is about.
        """
        rules = [rule for rule in self.rules if table in rule.tables]
        if not rules:
            raise NotFoundError(f"no rule of {self.name} is about {table!r:.80}")
        return any(rule.on_snapshot for rule in rules)

    def findings(self, features: ChangeFeatures) -> list[Finding]:
        """What the rules ask for and this kind of source never gives."""
        found = []
        for rule in self.rules:
            if rule.whole and not features.transactions:
                text = f"rule {rule.name}: this source knows only transactions that are marked"
                fix = "mark them where they are written; others are one change each"
                found.append(Finding("CDC_NO_TRANSACTIONS", Severity.WEAK, text, fix))
            if rule.on_snapshot and not features.online_snapshot:
                text = f"rule {rule.name} asks for a snapshot, and this source has none"
                found.append(_red("CDC_NO_SNAPSHOT", text, "leave out on_snapshot"))
        return found

    def _table(self, name: str) -> TableSpec:
        rules = [rule for rule in self.rules if name in rule.tables]
        keys = {rule.key for rule in rules if rule.key}
        if len(keys) > 1:
            shown = " and ".join(", ".join(key) for key in sorted(keys))
            raise ConfigurationError(f"rules name the rows of {name} by {shown}; use one key")
        key = keys.pop() if keys else ()
        include: set[str] = set()
        if all(rule.include for rule in rules):
            include = {column for rule in rules for column in (*rule.include, *key)}
        exclude = set.intersection(*(set(rule.exclude) for rule in rules)) - set(key)
        return TableSpec(
            name,
            include=tuple(sorted(include - exclude)),
            exclude=tuple(sorted(exclude)),
            key=key,
            before_image=any(rule.before for rule in rules),
        )


class RuleRegistry:
    """The sources and rules of one App. app: its name, which the default stream is named after."""

    def __init__(self, app: str) -> None:
        self._default = _NOT_SQL.sub("_", app.lower()).lstrip("0123456789")[:_READER_MAX] or "app"
        self._urls: dict[str, str | None] = {self._default: None}
        self._rules: dict[str, list[Rule]] = {}
        self._sinks: dict[str, tuple[str, Rule, Sink]] = {}  # stream: source, rule, sink

    def source(self, name: str, url: str | None) -> None:
        """Declare a source; see ``App.source``."""
        check_sql_name(name, "source")
        known = self._urls.get(name, url)
        if known != url and name != self._default:
            raise ConfigurationError(f"the source {name!r} is declared twice, differently")
        self._urls[name] = url

    def rule(self, **options: Unpack[RuleOptions]) -> Callable[[F], F]:
        """Register a function as a rule; see ``App.cdc``."""
        unknown = sorted(set(options) - _KNOWN)
        if unknown:
            raise ConfigurationError(f"app.cdc takes no {', '.join(unknown)}")
        source = options.get("source") or self._default

        def register(function: F) -> F:
            rule = _rule(function, options)
            if (sink := options.get("into")) is not None:
                self._feed(source, rule, sink)
                return function
            others = self._rules.setdefault(source, [])
            if any(other.name == rule.name for other in others):
                text = f"two rules of {source} are named {rule.name!r}; give one of them name="
                raise ConfigurationError(text)
            others.append(rule)
            return function

        return register

    @property
    def streams(self) -> list[StreamRules]:
        """The streams that have rules. Raises ConfigurationError for an undeclared source."""
        fed = {source for source, _, _ in self._sinks.values()}
        missing = sorted({*self._rules, *fed} - set(self._urls))
        if missing:
            names = ", ".join(missing)
            raise ConfigurationError(f"rules are about {names}, declared by no app.source(...)")
        found = [StreamRules(n, self._urls[n], tuple(mine)) for n, mine in self._rules.items()]
        for name, (source, rule, sink) in self._sinks.items():
            if name in self._urls:
                text = f"the stream of rule {rule.name} would be called as the source {name}"
                raise ConfigurationError(f"{text}; give the rule another name=")
            found.append(StreamRules(name, self._urls[source], (rule,), sink))
        return sorted(found, key=lambda stream: stream.name)

    def _feed(self, source: str, rule: Rule, sink: Sink) -> None:
        """Give a rule with a sink a stream of its own, so that neither waits for the other."""
        name = _NOT_SQL.sub("_", f"{source}_{rule.name}".lower())
        if len(name) > _READER_MAX:
            text = f"{name} is too long for the name of a stream; give rule {rule.name} a name="
            raise ConfigurationError(text)
        if name in self._sinks:
            text = f"two rules of {source} are named {rule.name!r}; give one of them name="
            raise ConfigurationError(text)
        self._sinks[name] = (source, rule, sink)

    def stream(self, name: str = "") -> StreamRules:
        """One stream by name; the only one where the name is empty. Raises ConfigurationError."""
        found = [stream for stream in self.streams if name in ("", stream.name)]
        if len(found) != 1:
            known = ", ".join(stream.name for stream in self.streams) or "none"
            what = f"there is no stream {name!r:.80}" if name else "name a stream"
            raise ConfigurationError(f"{what}; there are: {known}", code="CDC_STREAM")
        return found[0]

    def check(self) -> list[Finding]:
        """What is wrong with the rules by themselves."""
        try:
            for stream in self.streams:
                stream.tables()
        except ConfigurationError as error:
            return [_red("CDC_RULES", error.detail, "correct the rules")]
        return []


def _rule(function: Callable[..., Any], options: RuleOptions) -> Rule:
    name = check_name(str(options.get("name") or getattr(function, "__name__", "")), "rule")
    writes, sink = _takes_tx(function, name), options.get("into")
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigurationError(f"rule {name} is async; a rule is a plain function of a change")
    tables = _names([*_listed(options.get("tables", ())), *_listed(options.get("table", ()))])
    if not tables:
        raise ConfigurationError(f"rule {name}: say table=... or tables=[...]")
    whole, on_snapshot = options.get("transaction", False), options.get("on_snapshot", False)
    if sink is not None:
        _check_fed(name, options, one_table=len(tables) == 1, writes=writes)
        on_snapshot = sink.snapshots
    if whole and on_snapshot:
        text = f"rule {name}: a snapshot is no transaction; use a rule about rows"
        raise ConfigurationError(text)
    if options.get("snapshot", "initial") not in ("initial", "never"):
        raise ConfigurationError(f"rule {name}: snapshot is 'initial' or 'never'")
    if options.get("coalesce") not in (None, "row"):
        raise ConfigurationError(f"rule {name}: coalesce is 'row' or None")
    include, exclude = _columns(options, "include"), _columns(options, "exclude")
    if both := include & exclude:
        raise ConfigurationError(f"rule {name}: {min(both)!r} is included and excluded")
    return Rule(
        name,
        function,
        tables,
        whole=whole,
        key=tuple(_listed(options.get("key", ()))),
        include=include,
        exclude=exclude,
        mask=_columns(options, "mask"),
        on_snapshot=on_snapshot,
        initial=options.get("snapshot", "initial") == "initial",
        before=options.get("before", sink is None),
        coalesce=options.get("coalesce") == "row",
        writes=writes,
        retry=_retry(options.get("retry"), name),
    )


def _check_fed(rule: str, options: RuleOptions, *, one_table: bool, writes: bool) -> None:
    """Raise ConfigurationError for what a rule with a sink cannot have."""
    others = sorted({"transaction", "coalesce", "on_snapshot", "mask"} & set(options))
    if others or writes:
        text = f"rule {rule}: into= goes without {', '.join(others) or 'tx'}"
        raise ConfigurationError(text)
    if not one_table:
        raise ConfigurationError(f"rule {rule}: into= is fed from one table")


def _takes_tx(function: Callable[..., Any], rule: str) -> bool:
    """Whether it asks for the transaction. Raises ConfigurationError (RULE_SIGNATURE)."""
    found = list(inspect.signature(function).parameters.values())
    if not found or found[0].name == "tx" or found[0].kind not in _FIRST:
        text = f"rule {rule}: the first parameter is the change, or the transaction of the source"
        raise ConfigurationError(text, code="RULE_SIGNATURE")
    for parameter in found[1:]:
        if parameter.name != "tx" and parameter.default is inspect.Parameter.empty:
            text = f"rule {rule}: parameter {parameter.name!r}; after the change only tx is given"
            raise ConfigurationError(text, code="RULE_SIGNATURE")
    return any(parameter.name == "tx" for parameter in found)


def _retry(retry: Retry | None, rule: str) -> Retry | None:
    if retry is not None:
        if not isinstance(retry, Retry):
            raise ConfigurationError(f"rule {rule}: retry must be a Retry(...)")
        retry.refuse_on(f"rule {rule}")
    return retry


def _listed(given: str | Iterable[str]) -> list[str]:
    return [given] if isinstance(given, str) else list(given)


def _columns(options: RuleOptions, name: Literal["include", "exclude", "mask"]) -> frozenset[str]:
    return frozenset(_listed(options.get(name, ())))


def _names(tables: Iterable[str]) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(tables))
    for table in found:
        if not table or len(table) > _TABLE_MAX or not table.isprintable():
            raise ConfigurationError(f"{ascii(table)[:80]} is no name of a table")
    return found


def _red(code: str, message: str, fix: str) -> Finding:
    return Finding(code, Severity.RED, message, fix)
