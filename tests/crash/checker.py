"""The verdict: what was promised, what is there, and whether every duplicate has an explanation.

Reads tables and journals with the drivers alone; imports nothing of duly.  Words as in Jepsen's queue
tests:

    attempted     messages in transactions that were begun, rolled back ones too
    acknowledged  messages whose commit returned to the producer
    delivered     messages whose effect is there in every group that must have it
    recovered     of these, the ones whose commit was never acknowledged (the producer died in between)
    duplicated    deliveries of a message to a group beyond its first
    unexplained   of these, what no kill of a process that had that very message open accounts for
    lost          committed and not delivered, or acknowledged and not committed
    unexpected    an effect twice, or of a message nobody committed; a call outside without its intent
    order_breaks  an effect, or a first delivery, of an ordered group before one of its key's past
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from tests.crash.stage import GROUPS, QUEUE, Stage, ids

ACK_SETTLES_SECONDS = 0.5  # an ack recorded so shortly before a death may not have reached the broker
SHOWN = 5


@dataclass
class Verdict:
    """The counts of one run. problems: one line for each kind of thing that is wrong."""

    attempted: int = 0
    acknowledged: int = 0
    delivered: int = 0
    recovered: int = 0
    duplicated: int = 0
    unexplained: int = 0
    lost: int = 0
    unexpected: int = 0
    order_breaks: int = 0
    problems: list[str] = field(default_factory=list)

    def blame(self, count: str, what: str, found: Any) -> None:
        """Add to a count, and say what it was."""
        found = sorted(found)
        if found:
            setattr(self, count, getattr(self, count) + len(found))
            more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
            self.problems.append(f"{count} {len(found)}: {what}: {found[:SHOWN]}{more}")

    @property
    def clean(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.lost or self.unexpected or self.unexplained or self.order_breaks)


def check(stage: Stage, *, batch_max: int) -> Verdict:
    """Judge a run that has settled. batch_max: what one process may have sent and not settled."""
    verdict = Verdict()
    sent = {row[0]: row[1:] for row in stage.rows("SELECT message_id, kind, key, seq FROM crash_sent")}
    acked = _transactions(stage, verdict)
    verdict.blame("lost", "acknowledged, but not in the database", acked - sent.keys())
    effects = stage.rows("SELECT grp, message_id FROM crash_effect ORDER BY id")
    delivered = _effects(verdict, sent, effects)
    verdict.delivered = len(delivered)
    verdict.recovered = len(delivered - acked)
    _order(verdict, sent, (m for g, m in effects if g == "ordered"), what="effects")
    _left(stage, verdict)
    deliveries = _Deliveries(stage)
    firsts = [m for m, _ in deliveries.of_group("ordered")]
    _order(verdict, sent, dict.fromkeys(firsts), what="first deliveries")
    _duplicates(verdict, deliveries, batch_max=batch_max)
    _calls(stage, verdict, sent)
    return verdict


def _transactions(stage: Stage, verdict: Verdict) -> set[str]:
    """Count what was attempted; the ids that were acknowledged."""
    tried: dict[str, list[str]] = {}
    acked: set[str] = set()
    for fact in stage.facts("acks-*"):
        if fact["what"] == "try":
            tried[fact["txn"]] = fact["ids"]
            verdict.attempted += len(fact["ids"])
        elif fact["what"] == "ack":
            acked.update(tried[fact["txn"]])
    verdict.acknowledged = len(acked)
    return acked


def _effects(
    verdict: Verdict, sent: dict[str, tuple[Any, ...]], effects: list[tuple[Any, ...]]
) -> set[str]:
    """Once per group, and only of what was committed; returns what every group has."""
    counts = Counter(effects)
    verdict.blame("unexpected", "the effect of a message that nobody committed", {f"{m} {g}" for g, m in counts if m not in sent})
    verdict.blame("unexpected", "an effect more than once", {f"{m} {g}" for (g, m), n in counts.items() if n > 1})
    missing = {
        f"{m} {kind} {key}#{seq} {group}"
        for m, (kind, key, seq) in sent.items()
        for group in (GROUPS if kind == "event" else (QUEUE,))
        if (group, m) not in counts
    }
    verdict.blame("lost", "committed, but without its effect", missing)
    undone = {line.split()[0] for line in missing}
    return sent.keys() - undone


def _order(verdict: Verdict, sent: dict[str, tuple[Any, ...]], messages: Any, *, what: str) -> None:
    """Per key, the order that the transactions gave themselves."""
    reached: dict[str, int] = {}
    breaks = []
    for message in messages:
        _, key, seq = sent.get(message, (None, None, None))
        if key is not None:
            if seq < reached.get(key, 0):
                breaks.append(f"{key}: {seq} after {reached[key]}")
            reached[key] = max(seq, reached.get(key, 0))
    verdict.blame("order_breaks", what, breaks)


def _left(stage: Stage, verdict: Verdict) -> None:
    """Nothing of duly's may be left over when everything has its effect."""
    left = stage.rows("SELECT message_id, status, last_error FROM duly_outbox")
    verdict.blame("lost", "still in the outbox", {f"{m} {s} {e}"[:150] for m, s, e in left})
    stuck = "SELECT message_id, group_name, status, last_error FROM duly_inbox WHERE status NOT IN ('done', 'skipped')"
    verdict.blame("lost", "unfinished in the inbox", {f"{m} {g} {s} {e}"[:150] for m, g, s, e in stage.rows(stuck)})
    holds = {f"{scope} {key}" for scope, key in stage.rows("SELECT scope, key FROM duly_key_hold")}
    verdict.blame("lost", "a key still on hold", holds)


class _Deliveries:
    """What the brokers delivered, by the workers' journals, and what each death left open."""

    def __init__(self, stage: Stage) -> None:
        self.faults = [f for f in stage.facts("faults") if f["what"] == "fault"]
        self.received: dict[str, list[tuple[float, int, str, str, str]]] = defaultdict(list)
        self.of_pid: dict[int, list[tuple[str, str, str, str]]] = defaultdict(list)
        self.acked: dict[tuple[int, str, str], float] = {}  # pid, group, message -> at
        self.ends: list[dict[str, Any]] = []  # of workers that stopped and gave back what they had
        self.unknown: Counter[str] = Counter()
        self.sends: dict[int, set[str]] = defaultdict(set)
        for fact in stage.facts("worker-*"):
            self._note(fact)

    def _note(self, fact: dict[str, Any]) -> None:
        what, pid, at = fact["what"], fact["pid"], fact["at"]
        if what == "recv":
            lines = [(at, pid, m, source, position) for m, source, position in fact["got"]]
            self.received[fact["group"]].extend(lines)
            self.of_pid[pid].extend((fact["group"], *line[2:]) for line in lines)
        elif what == "ack":
            self.acked |= {(pid, fact["group"], m): at for m in fact["ids"]}
        elif what == "end":
            self.ends.append(fact)
        elif what == "send":
            self.sends[pid].update(fact["ids"])
        elif what == "answer":
            self.unknown.update(m for m, kind in fact["odd"].items() if kind == "unknown")

    def of_group(self, group: str) -> list[tuple[str, int]]:
        """(message, pid) in the order of time."""
        return [(m, pid) for _, pid, m, _, _ in sorted(self.received[group])]

    def open_at_end(self, end: dict[str, Any]) -> Counter[tuple[str, str]]:
        """(group, message) that a process had received when it ended and the broker may not know to be done."""
        found: Counter[tuple[str, str]] = Counter()
        sources: dict[tuple[str, str], list[tuple[int, str, bool]]] = defaultdict(list)
        for group, m, source, position in self.of_pid[end["pid"]]:
            acked = self.acked.get((end["pid"], group, m))
            sure = acked is not None and acked < end["at"] - ACK_SETTLES_SECONDS
            place = int(position) if position.isdigit() else 0
            sources[group, source].append((place, m, sure))
        for (group, _), inside in sources.items():
            found.update((group, m) for m in _behind_the_first_open(sorted(inside)))
        return found


def _behind_the_first_open(inside: list[tuple[int, str, bool]]) -> list[str]:
    """In a log, an ack behind an open message is not stored yet; in a queue (position 0) each stands alone."""
    gap = False
    found = []
    for position, message, sure in inside:
        gap = (gap and position > 0) or not sure
        if gap:
            found.append(message)
    return found


def _duplicates(verdict: Verdict, deliveries: _Deliveries, *, batch_max: int) -> None:
    credit: Counter[tuple[str, str]] = Counter()
    for end in deliveries.ends:
        credit.update(deliveries.open_at_end(end))
    groups = list(deliveries.received)
    excess = []
    for fault in deliveries.faults:
        resent = set(fault["unsettled"]) & deliveries.sends[fault["pid"]]
        if len(resent) > batch_max:
            excess.append(f"fault {fault['n']} at {fault['point']}: {len(resent)}")
        credit.update((group, m) for m in resent for group in groups)
        credit.update(deliveries.open_at_end(fault))
    credit.update((group, m) for m in deliveries.unknown for group in groups)
    verdict.blame("unexplained", f"more than a batch ({batch_max}) sent and unsettled at one death", excess)
    unexplained = []
    for group, lines in deliveries.received.items():
        for message, count in Counter(m for _, _, m, _, _ in lines).items():
            verdict.duplicated += count - 1
            if count - 1 > credit[group, message]:
                unexplained.append(f"{message} {group} x{count}, {credit[group, message]} explained")
    verdict.blame("unexplained", "delivered again without a reason", unexplained)


def _calls(stage: Stage, verdict: Verdict, sent: dict[str, tuple[Any, ...]]) -> None:
    """The world outside: an intent before every call, one key per command, a repeat only after a death."""
    calls = list(stage.facts("gateway"))
    without = {f"{c['key']} n={c['n']}" for c in calls if not c["intent"]}
    verdict.blame("unexpected", "called outside before the intent was committed", without)
    effects = stage.rows("SELECT message_id, provider_key, state FROM duly_effect e JOIN duly_inbox b ON b.dedupe_key = e.dedupe_key AND b.group_name = e.group_name")  # fmt: skip
    keys = {key: (m, state) for m, key, state in effects}
    called = Counter(c["key"] for c in calls)
    verdict.blame("unexpected", "called with a key that no command has", called.keys() - keys.keys())
    commands = {m for m, (kind, _, _) in sent.items() if kind == "command"}
    reached = {m for key, (m, state) in keys.items() if state == "done" and called[key]}
    verdict.blame("lost", "a command whose call was never made or recorded", commands - reached)
    deaths = {f["pid"] for f in stage.facts("faults") if f["what"] == "fault"}
    by_key: dict[str, list[int]] = defaultdict(list)
    for call in sorted(calls, key=lambda c: c["at"]):
        by_key[call["key"]].append(call["pid"])
    again = {f"{key} by {pids}" for key, pids in by_key.items() if any(pid not in deaths for pid in pids[:-1])}
    verdict.blame("unexplained", "called again although the first caller lived", again)


def committed(stage: Stage) -> set[str]:
    """The ids of every committed message."""
    return ids(stage.rows("SELECT message_id FROM crash_sent"))
