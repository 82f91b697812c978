"""The verdict on a run of change data capture; reads with the drivers alone, knows nothing of duly.

    attempted     changes that were asked to be committed, rolled back ones too
    acknowledged  changes whose commit returned
    delivered     lines of the history that arrived as an event; recovered: never acknowledged
    lost          a line of the history without its event; acknowledged, and not in the history; a
                  row that a snapshot left out; a target, built of the events, without a row
    unexpected    an event twice, or of what nobody committed; an id that its place does not give; a
                  snapshot's row with a value that was not the row's at that place
    order_breaks  events of a key in another order than its history, where they arrive and by the
                  place they name; a transaction in pieces
    duplicated, unexplained  deliveries, as in ``checker``

What a row was at a place is replayed from the history itself: its lines get their place from their
event, so the two are matched first."""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import count, pairwise
from typing import Any

from tests.crash.cdc_stage import EXISTED, CdcStage
from tests.crash.checker import Deliveries, Verdict, duplicates, left_over

SNAPSHOT_TABLES = ("item", "small")
Name = tuple[str, str, str, Any, Any]  # table, op, key, old, new
_FIRST = ("", -1)  # the place of what was there before the stream
_LAST = 1 << 40
PLACE_DIGITS = 22  # of a position; what follows says where to read again from


@dataclass(frozen=True)
class Event:
    """One event that arrived. place: position and ordinal in its transaction."""

    number: int
    id: str
    name: Name
    place: tuple[str, int]
    chunk: str  # of a snapshot's row, the name of its chunk

    @property
    def is_read(self) -> bool:
        """Whether it is a row of a snapshot."""
        return self.name[1] == "read"


@dataclass(frozen=True)
class Line:
    """One line of the history."""

    seq: int
    name: Name
    txn: str

    @property
    def is_told(self) -> bool:
        """Whether an event tells it."""
        return self.name[1] not in EXISTED


def check_cdc(stage: CdcStage, *, batch_max: int) -> Verdict:
    """Judge a run that has settled."""
    verdict = Verdict()
    lines, events = history(stage), _events(stage, verdict)
    acknowledged(stage, verdict, lines)
    told = [event for event in events if not event.is_read]
    _exactly_once(stage, verdict, lines, told)
    first: dict[Name, Event] = {}
    for event in told:
        first.setdefault(event.name, event)
    _order(verdict, lines, events, first)
    _transactions(stage, verdict, lines, first)
    _snapshots(stage, verdict, lines, events, first)
    _target(stage, verdict, events)
    left_over(stage, verdict)
    stored = Counter(row[0] for row in stage.rows("SELECT message_id FROM duly_outbox"))
    twice = {f"{m} x{n}" for m, n in stored.items() if n > 1}
    verdict.blame("unexpected", "stored twice in the outbox", twice)
    duplicates(verdict, Deliveries(stage), batch_max=batch_max)
    return verdict


# --- what was done, what arrived ------------------------------------------------------------------
def history(stage: CdcStage) -> list[Line]:
    """The lines of the history in their order."""
    rows = stage.rows("SELECT seq, tbl, op, key, old, new, txn FROM cdc_history ORDER BY seq")
    lines = [Line(row[0], (row[1], row[2], row[3], row[4], row[5]), row[6]) for row in rows]
    emptied = count(1)  # each takes its name from its number
    return [
        replace(line, name=_emptied(line.name, next(emptied)))
        if line.name[1] == "truncate"
        else line
        for line in lines
    ]


def _emptied(name: Name, number: int) -> Name:
    return (name[0], name[1], f"#{number}", name[3], name[4])


def _events(stage: CdcStage, verdict: Verdict) -> list[Event]:
    sql = "SELECT id, message_id, body, headers FROM cdc_effect ORDER BY id"
    found, wrong = [], []
    for number, message_id, text, said in stage.rows(sql):
        body, headers = json.loads(text), json.loads(said)
        op = f"move {body['was']}" if body.get("was") else body["op"]
        name = (body.get("table", ""), op, body["key"], body.get("old"), body.get("new"))
        position, _, chunk = headers["cdcposition"].partition(".")
        place = (position, int(headers.get("cdcordinal", -1)))
        found.append(Event(number, message_id, name, place, chunk))
        if message_id != _id_of(headers, body["rule"]):
            wrong.append(f"{message_id} {name}")
    verdict.blame("unexpected", "an id that is not given by the place of its change", wrong)
    emptied = sorted((e for e in found if e.name[1] == "truncate"), key=lambda e: e.place)
    numbers = {event.number: number for number, event in enumerate(emptied, 1)}
    return [
        replace(event, name=_emptied(event.name, numbers[event.number]))
        if event.number in numbers
        else event
        for event in found
    ]


def _id_of(headers: dict[str, str], rule: str) -> str:
    """The id as the rules for ids give it, written down a second time."""
    place = headers.get("cdcordinal", "transaction")
    parts = (headers["cdcsource"], headers["cdcposition"], place, rule, "0")
    digest = sha256("".join(f"{len(part)}:{part}" for part in parts).encode()).hexdigest()
    variant = "89ab"[int(digest[16], 16) % 4]
    return f"{digest[:8]}-{digest[8:12]}-8{digest[13:16]}-{variant}{digest[17:20]}-{digest[20:32]}"


def acknowledged(stage: CdcStage, verdict: Verdict, lines: list[Line]) -> None:
    """Count what was attempted, what was acknowledged, and what was committed besides."""
    tried: dict[str, int] = {}
    acked: set[str] = set()
    for fact in stage.facts("acks-*"):
        if fact["what"] == "try":
            tried[fact["txn"]] = fact["count"]
            verdict.attempted += fact["count"]
        elif fact["what"] == "ack":
            acked.add(fact["txn"])
    verdict.acknowledged = sum(tried[txn] for txn in acked)
    kept = Counter(line.txn for line in lines if line.is_told)
    gone = {txn for txn in acked if tried[txn] != kept[txn]}
    verdict.blame("lost", "acknowledged, but not in the database", gone)
    verdict.recovered = sum(count for txn, count in kept.items() if txn not in acked)


def _exactly_once(stage: CdcStage, verdict: Verdict, lines: list[Line], told: list[Event]) -> None:
    wanted = Counter(line.name for line in lines if line.is_told)
    found = Counter(event.name for event in told)
    verdict.delivered = sum((wanted & found).values())
    verdict.blame("lost", "committed, but not told", map(str, (wanted - found).elements()))
    more = found - wanted
    nobody = {str(name) for name in more if name not in wanted}
    verdict.blame("unexpected", "an event of what nobody committed", nobody)
    twice = {str(name) for name in more if name in wanted}
    verdict.blame("unexpected", "a change told more than once", twice)


# --- order ----------------------------------------------------------------------------------------
def _order(
    verdict: Verdict, lines: list[Line], events: list[Event], first: dict[Name, Event]
) -> None:
    """Per key as the history has it: where they arrive, and by the place that they name."""
    histories: dict[tuple[str, str], list[Event]] = defaultdict(list)
    for line in lines:
        event = first.get(line.name)
        if event is not None and line.name[0] not in ("", "bulk") and line.name[1] != "truncate":
            histories[line.name[0], line.name[2]].append(event)
    late = [
        f"{b.name} before {a.name}"
        for history in histories.values()
        for a, b in pairwise(history)
        if b.number < a.number
    ]
    verdict.blame("order_breaks", "arrived before an earlier change of its key", late)
    arrived: dict[tuple[str, str], str] = {}
    back = []
    for event in events:  # a snapshot's row, too, stands behind what it contains
        key, position = (event.name[0], event.name[2]), event.place[0]
        if event.name[0] and position < arrived.get(key, ""):
            back.append(f"{event.name} of {position} after {arrived[key]}")
        arrived[key] = max(position, arrived.get(key, ""))
    verdict.blame("order_breaks", "arrived behind a later place of its key", back)
    _places(verdict, lines, first)


def _places(verdict: Verdict, lines: list[Line], first: dict[Name, Event]) -> None:
    """The places of a key's changes grow; a table that is emptied stands between all its keys."""
    reached: dict[tuple[str, str], tuple[str, int]] = {}
    emptied: dict[str, tuple[str, int]] = {}
    highest: dict[str, tuple[str, int]] = {}
    wrong = []
    for line in lines:
        event, (table, op, key, *_) = first.get(line.name), line.name
        if event is None or not table:
            continue
        before = (
            highest.get(table, _FIRST) if op == "truncate" else reached.get((table, key), _FIRST)
        )
        if event.place <= max(before, emptied.get(table, _FIRST)):
            wrong.append(f"{line.name} at {event.place}")
        if op == "truncate":
            emptied[table] = event.place
        reached[table, key] = event.place
        highest[table] = max(highest.get(table, _FIRST), event.place)
    verdict.blame("order_breaks", "its place is not behind that of an earlier change", wrong)


def _transactions(
    stage: CdcStage, verdict: Verdict, lines: list[Line], first: dict[Name, Event]
) -> None:
    """One place for one transaction, where the source knows them, and for no other."""
    of_txn: dict[str, set[str]] = defaultdict(set)
    of_place: dict[str, set[str]] = defaultdict(set)
    meant = {line.txn for line in lines if line.name[1] == "meaning"}
    for line in lines:
        event = first.get(line.name)
        if event is not None and (stage.dialect != "sqlite" or line.txn in meant):
            of_txn[line.txn].add(event.place[0])
            of_place[event.place[0]].add(line.txn)
    torn = {txn for txn, places in of_txn.items() if len(places) > 1}
    verdict.blame("order_breaks", "a transaction in pieces", torn)
    joined = {place for place, txns in of_place.items() if len(txns) > 1}
    verdict.blame("order_breaks", "transactions at one place", joined)


# --- snapshots ------------------------------------------------------------------------------------
class _Rows:
    """What each row of a table was, at any place. inclusive: a place contains its own change."""

    def __init__(self, *, inclusive: bool) -> None:
        self._find = bisect_right if inclusive else bisect_left
        self._places: dict[str, list[str]] = defaultdict(list)
        self._values: dict[str, list[Any]] = defaultdict(list)

    def put(self, key: str, place: str, value: Any) -> None:
        self._places[key].append(place)
        self._values[key].append(value)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def at(self, key: str, place: str) -> Any:
        """The value, None for no row."""
        known = self._find(self._places[key], place) if key in self._places else 0
        return self._values[key][known - 1] if known else None

    def always(self, key: str, begin: str, end: str) -> bool:
        """Whether there was such a row at all places from one to the other."""
        low, high = (self._find(self._places[key], place) for place in (begin, end))
        return low > 0 and all(value is not None for value in self._values[key][low - 1 : high])


def _rows_of(
    table: str, lines: Iterable[Line], first: dict[Name, Event], *, inclusive: bool
) -> _Rows:
    steps: list[tuple[tuple[str, int], str, Any]] = []
    keys: set[str] = set()
    for line in lines:
        name, (_, op, key, old, new) = line.name, line.name
        if name[0] != table or (line.is_told and name not in first):
            continue
        place = first[name].place if line.is_told else _FIRST
        if op == "gap":  # its old value is the number of the last change before it
            place = (f"{old:020}", _LAST)
        if op == "truncate":
            steps += [(place, one, None) for one in sorted(keys)]
            continue
        if op.startswith("move "):
            steps.append((place, op.partition(" ")[2], None))
        keys.add(key)
        steps.append((place, key, new))
    rows = _Rows(inclusive=inclusive)
    for place, key, value in sorted(steps, key=lambda step: step[0]):
        rows.put(key, place[0], value)
    return rows


def _snapshots(
    stage: CdcStage, verdict: Verdict, lines: list[Line], events: list[Event],
    first: dict[Name, Event],
) -> None:  # fmt: skip
    """Every row that a snapshot tells was so at its place; none was left out, none told twice."""
    runs = _runs(stage)
    for table in SNAPSHOT_TABLES:
        rows = _rows_of(table, lines, first, inclusive=stage.dialect != "postgres")
        reads = [event for event in events if event.is_read and event.name[0] == table]
        false = {
            f"{e.name} at {e.place}, it was {rows.at(e.name[2], e.place[0])}"
            for e in reads
            if rows.at(e.name[2], e.place[0]) != e.name[4]
        }
        verdict.blame("unexpected", "a snapshot's row that was not so at its place", false)
        for begin, end in runs[table]:
            mine = [e for e in reads if begin <= e.place[0] <= end]
            what = f"snapshot of {table} from {begin or 'the start'}"
            _whole(verdict, rows, mine, run=(begin, end), what=what)


def _whole(
    verdict: Verdict, rows: _Rows, reads: list[Event], *, run: tuple[str, str], what: str
) -> None:
    # A row that came while a chunk was read is told by its own change alone, and the last chunk may
    # be empty: only those count that were there from the asking to the end. What was loaded stands
    # before every place.
    begin, end = max(run[0], "0"), run[1]
    counts = Counter(event.name[2] for event in reads)
    steady = {key for key in rows if rows.always(key, begin, end)}
    verdict.blame("lost", f"left out of the {what}", steady - counts.keys())
    twice = {key for key in steady if counts[key] > 1}
    verdict.blame("unexpected", f"told twice by the {what}", twice)


def _runs(stage: CdcStage) -> dict[str, list[tuple[str, str]]]:
    """From where to where each snapshot lies: the first one of all tables, then those asked for."""
    facts = [f for f in stage.facts("meddler") if f["what"] in ("asked", "done")]
    runs: dict[str, list[tuple[str, str]]] = {table: [] for table in SNAPSHOT_TABLES}
    asked, begin = SNAPSHOT_TABLES, ""
    end = stage.offset()[0][:PLACE_DIGITS]
    for fact in facts:
        position = fact["position"][:PLACE_DIGITS]
        if fact["what"] == "done":
            for table in asked:
                runs[table].append((begin, position))
            asked = ()
        else:
            asked, begin = (fact["table"],), position
    for table in asked:
        runs[table].append((begin, end))
    return runs


# --- the target -----------------------------------------------------------------------------------
def _target(stage: CdcStage, verdict: Verdict, events: list[Event]) -> None:
    """What a consumer would have who applies the events, snapshots included, in their places."""
    # Where a chunk stands at one place with a change: behind it, but for PostgreSQL.
    inside = -1 if stage.dialect == "postgres" else 1
    ordered = sorted(events, key=lambda e: (e.place[0], inside if e.is_read else 0, e.place[1]))
    for table in SNAPSHOT_TABLES:
        target: dict[str, Any] = {}
        for event in ordered:
            of, op, key, _, new = event.name
            if of != table:
                continue
            if op == "truncate":
                target.clear()
            elif op.startswith("move "):
                target.pop(op.partition(" ")[2], None)
            if op == "delete":
                target.pop(key, None)
            elif op != "truncate":
                target[key] = new
        source = {str(key): v for key, v in stage.rows(f"SELECT id, v FROM {table}")}
        missing = {f"{table} {key}" for key, v in source.items() if target.get(key) != v}
        verdict.blame("lost", "not so in the target", missing)
        extra = {f"{table} {key}" for key in target.keys() - source.keys()}
        verdict.blame("unexpected", "gone from the source and there in the target", extra)
