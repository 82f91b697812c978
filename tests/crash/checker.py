"""The verdict: what was promised, what is there, and whether every duplicate has an explanation.

Reads tables and journals with the drivers alone; imports nothing of duly.  Words as in Jepsen's
queue tests:

    attempted     messages in transactions that were begun, rolled back ones too
    acknowledged  messages whose commit returned to the producer
    delivered     messages whose effect is there in every group that must have it
    recovered     of these, those whose commit was never acknowledged (the producer died first)
    duplicated    deliveries of a message to a group beyond its first
    unexplained   of these, what no kill of a process that had that very message open explains, and
                  no stall: a living process whose own journal shows that it renewed too late
    lost          committed and not delivered, or acknowledged and not committed
    unexpected    an effect twice, or of a message nobody committed; a call without its intent
    order_breaks  an effect, or a first delivery, of an ordered group before one of its key's past
"""

from __future__ import annotations

from bisect import bisect
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from tests.crash.stage import GROUPS, PULSE_SECONDS, QUEUE, Stage, ids

ACK_SETTLES_SECONDS = (
    0.5  # an ack recorded so shortly before a death, or a close, may not have reached the queue
)
STALL_SHARE = 0.85  # of the lease, between two renewals
STALL_SECONDS = 3.0  # how long before it a stalled process may have sent what it had not settled
SHOWN = 5
Line = tuple[float, str, str, str, str]  # a delivery: when, group, message, source, position


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
    stalls: int = 0
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
    sent = {
        row[0]: row[1:] for row in stage.rows("SELECT message_id, kind, key, seq FROM crash_sent")
    }
    acked = _transactions(stage, verdict)
    verdict.blame("lost", "acknowledged, but not in the database", acked - sent.keys())
    effects = stage.rows("SELECT grp, message_id FROM crash_effect ORDER BY id")
    delivered = _effects(verdict, sent, effects)
    verdict.delivered = len(delivered)
    verdict.recovered = len(delivered - acked)
    _order(verdict, sent, (m for g, m in effects if g == "ordered"), what="effects")
    left_over(stage, verdict)
    deliveries = Deliveries(stage)
    firsts = [m for m, _ in deliveries.of_group("ordered")]
    _order(verdict, sent, dict.fromkeys(firsts), what="first deliveries")
    duplicates(verdict, deliveries, batch_max=batch_max)
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
    verdict.blame(
        "unexpected",
        "the effect of a message that nobody committed",
        {f"{m} {g}" for g, m in counts if m not in sent},
    )
    verdict.blame(
        "unexpected",
        "an effect more than once",
        {f"{m} {g}" for (g, m), n in counts.items() if n > 1},
    )
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


def left_over(stage: Stage, verdict: Verdict) -> None:
    """Nothing of duly's may be left over when everything has its effect."""
    left = stage.rows(
        "SELECT message_id, status, last_error FROM duly_outbox WHERE status <> 'sent'"
    )
    verdict.blame("lost", "still in the outbox", {f"{m} {s} {e}"[:150] for m, s, e in left})
    stuck = (
        "SELECT message_id, group_name, status, last_error FROM duly_inbox "
        "WHERE status NOT IN ('done', 'skipped')"
    )
    verdict.blame(
        "lost",
        "unfinished in the inbox",
        {f"{m} {g} {s} {e}"[:150] for m, g, s, e in stage.rows(stuck)},
    )
    holds = {f"{scope} {key}" for scope, key in stage.rows("SELECT scope, key FROM duly_key_hold")}
    verdict.blame("lost", "a key still on hold", holds)


class Deliveries:
    """What the brokers delivered, by the workers' journals, and what each death left open."""

    def __init__(self, stage: Stage) -> None:
        self._logged = stage.keeps_log
        self.faults = [f for f in stage.facts("faults") if f["what"] == "fault"]
        self.received: dict[str, list[tuple[float, int, str, str, str]]] = defaultdict(list)
        self.of_pid: dict[int, list[Line]] = defaultdict(list)
        self.acked: dict[tuple[int, str, str], list[float]] = defaultdict(list)
        # In logs: acks by their place, and when sources were taken from living processes.
        self.placed: dict[tuple[int, str, str, str], list[float]] = defaultdict(list)
        self.moved: dict[tuple[int, str, str], list[float]] = defaultdict(list)
        self.ends = [
            f for f in stage.facts("faults") if f["what"] == "ended"
        ]  # they gave back what they had
        self.unknown: Counter[str] = Counter()  # no answer, or refused by one of several queues
        self.closed: dict[tuple[int, str], float] = {}  # subscriptions, before their process ended
        self.returned: Counter[tuple[str, str]] = (
            Counter()
        )  # given back by its receiver, who says so
        self.outages = [f for f in stage.facts("faults") if f["what"] == "outage"]
        self.sends: dict[int, set[str]] = defaultdict(set)
        self.sent_at: dict[int, list[tuple[float, list[str]]]] = defaultdict(list)
        self.stalls: list[tuple[int, float, float]] = []  # pid, from, to
        self._pulses: dict[int, list[float]] = defaultdict(list)
        self._lives: dict[int, dict[str, Any]] = {}
        for fact in stage.facts("worker-*"):
            self._note(fact)

    def _note(self, fact: dict[str, Any]) -> None:
        what, pid, at = fact["what"], fact["pid"], fact["at"]
        if what == "recv":
            lines = [(at, pid, m, source, position) for m, source, position in fact["got"]]
            self.received[fact["group"]].extend(lines)
            self.of_pid[pid].extend((at, fact["group"], *line[2:]) for line in lines)
        elif what in ("ack", "moved"):
            self._note_place(fact)
        elif what == "send":
            self.sends[pid].update(fact["ids"])
            self.sent_at[pid].append((at, fact["ids"]))
        elif what == "pulse":
            self._pulses[pid].append(at)
        elif what in ("start", "beat", "dying", "end"):
            self._note_life(fact)
        elif what == "answer":
            self.unknown.update(
                m for m, kind in fact["odd"].items() if kind in ("unknown", "refused")
            )
        elif what == "release":
            self.returned.update((fact["group"], m) for m in fact["ids"])
        elif what in ("closing", "closed"):
            self.closed[pid, fact["group"]] = at

    def _note_place(self, fact: dict[str, Any]) -> None:
        pid, group, at = fact["pid"], fact["group"], fact["at"]
        if fact["what"] == "ack":
            for m in fact["ids"]:
                self.acked[pid, group, m].append(at)
            for source, position in fact.get("places", ()):
                self.placed[pid, group, source, position].append(at)
        elif (pid, group) not in self.closed:  # what it had then was given back
            for source in fact["places"]:
                self.moved[pid, group, source].append(at)

    def _note_life(self, fact: dict[str, Any]) -> None:
        """A sign of life; a gap longer than the lease may have cost it."""
        life = self._lives.setdefault(fact["pid"], {"lease": fact.get("lease", 0.0), "last": None})
        if life["last"] is not None and fact["at"] - life["last"] > life["lease"] * STALL_SHARE:
            self.stalls.append((fact["pid"], life["last"], fact["at"]))
        if fact["what"] != "start":
            life["last"] = fact["at"]

    def _settles_seconds(self, pid: int, moment: float) -> float:
        """How long before a moment an ack may still have been under way: longer by the time for
        which the process is known to have stood still just then, on a machine that is too busy."""
        pulses = [at for at in self._pulses[pid] if at <= moment]
        begin = bisect(pulses, moment - STALL_SECONDS)
        gaps = pairwise([*pulses[max(0, begin - 1) :], moment])
        stood = sum(max(0.0, until - at - PULSE_SECONDS) for at, until in gaps)
        return ACK_SETTLES_SECONDS + min(stood, STALL_SECONDS)

    def sent_over(self, stall: tuple[int, float, float]) -> set[str]:
        """What a process sent before and while it was not renewing: the next owner may send it
        too."""
        pid, begin, end = stall
        return {
            m for at, ids in self.sent_at[pid] if begin - STALL_SECONDS < at <= end for m in ids
        }

    def sent_around(self, outage: dict[str, Any]) -> set[str]:
        """What was sent while a server was away: it could not be settled, and living processes send
        it again."""
        begin, end = outage["begin"] - STALL_SECONDS, outage["end"] + STALL_SECONDS
        return {
            m
            for sends in self.sent_at.values()
            for at, ids in sends
            if begin < at < end
            for m in ids
        }

    def received_around(self, outage: dict[str, Any]) -> Counter[tuple[str, str]]:
        """What was received and may not have been acked when the connection went."""
        begin, end = outage["begin"] - STALL_SECONDS, outage["end"] + STALL_SECONDS
        lines = ((group, at, m) for group, got in self.received.items() for at, _, m, _, _ in got)
        return Counter((group, m) for group, at, m in lines if begin < at < end)

    def of_group(self, group: str) -> list[tuple[str, int]]:
        """(message, pid) in the order of time."""
        return [
            (m, pid) for _, pid, m, _, _ in sorted(self.received[group], key=lambda line: line[0])
        ]

    def open_at_end(self, end: dict[str, Any]) -> Counter[tuple[str, str]]:
        """(group, message) that a process had received when it ended and that the broker did not
        know to be done."""
        lines = [line for line in self.of_pid[end["pid"]] if line[0] <= end["at"]]  # it may go on
        return (self._open_in_logs if self._logged else self._open_in_queues)(end, lines)

    def _open_in_logs(self, end: dict[str, Any], lines: list[Any]) -> Counter[tuple[str, str]]:
        """What lies above the position stored at that moment. Where that was read so late that an
        heir may have stored it, it is the one below the first that was not acked in time."""
        pid, over = end["pid"], end["at"] - self._settles_seconds(end["pid"], end["at"])
        had = [line for line in lines if self._left(pid, line) is None]
        done = {(g, s): p for g, sources in end["done"].items() for s, p in sources.items()}
        if end.get("looked", end["at"]) - end["at"] > ACK_SETTLES_SECONDS:
            done = {(line[1], line[3]): 1 << 63 for line in had}
            for line in had:
                if not self._acked_within(pid, line, over):
                    place = line[1], line[3]
                    done[place] = min(done[place], int(line[4]) - 1)
        above = (line for line in had if int(line[4]) > done.get((line[1], line[3]), 0))
        return Counter((line[1], line[2]) for line in above)

    def open_at_moves(self) -> Counter[tuple[str, str]]:
        """(group, message) that living processes had not done when its partition was taken away."""
        return Counter(
            (line[1], line[2])
            for pid, lines in self.of_pid.items()
            for line in lines
            if (left := self._left(pid, line)) is not None
            and not self._acked_within(pid, line, left - self._settles_seconds(pid, left))
        )

    def _left(self, pid: int, line: Line) -> float | None:
        """When the partition of a delivery was taken from its receiver, if it ever was."""
        after = [at for at in self.moved.get((pid, line[1], line[3]), ()) if at > line[0]]
        return min(after, default=None)

    def _acked_within(self, pid: int, line: Line, over: float) -> bool:
        at, group, _, source, position = line
        return any(at < ack < over for ack in self.placed.get((pid, group, source, position), ()))

    def _open_in_queues(self, end: dict[str, Any], lines: list[Any]) -> Counter[tuple[str, str]]:
        """What was not acked, or so shortly before that the ack may not have arrived. Places of a
        queue mean nothing; its acks are counted."""
        found = Counter((group, m) for _, group, m, _, _ in lines)
        for group, m in found:
            acks = self.acked.get((end["pid"], group, m), [])
            over = min(end["at"], self.closed.get((end["pid"], group), end["at"]))
            over -= self._settles_seconds(end["pid"], over)
            found[group, m] -= sum(at < over for at in acks)
        return +found


def duplicates(verdict: Verdict, deliveries: Deliveries, *, batch_max: int) -> None:
    credit: Counter[tuple[str, str]] = Counter(deliveries.returned)
    for outage in deliveries.outages:
        credit.update(
            (group, m) for m in deliveries.sent_around(outage) for group in deliveries.received
        )
        credit.update(deliveries.received_around(outage))
    credit.update(deliveries.open_at_moves())
    for end in deliveries.ends:
        credit.update(+deliveries.open_at_end(end))
    groups = list(deliveries.received)
    excess = []
    for fault in deliveries.faults:
        resent = set(fault["unsettled"]) & deliveries.sends[fault["pid"]]
        if len(resent) > batch_max:
            excess.append(f"fault {fault['n']} at {fault['point']}: {len(resent)}")
        credit.update((group, m) for m in resent for group in groups)
        credit.update(+deliveries.open_at_end(fault))
    for stall in deliveries.stalls:
        credit.update((group, m) for m in deliveries.sent_over(stall) for group in groups)
    verdict.stalls = len(deliveries.stalls)
    for message, count in deliveries.unknown.items():
        credit.update({(group, message): count for group in groups})
    verdict.blame(
        "unexplained", f"more than a batch ({batch_max}) sent and unsettled at one death", excess
    )
    unexplained = []
    for group, lines in deliveries.received.items():
        for message, count in Counter(m for _, _, m, _, _ in lines).items():
            verdict.duplicated += count - 1
            if count - 1 > credit[group, message]:
                unexplained.append(
                    f"{message} {group} x{count}, {credit[group, message]} explained"
                )
    verdict.blame("unexplained", "delivered again without a reason", unexplained)


def _calls(stage: Stage, verdict: Verdict, sent: dict[str, tuple[Any, ...]]) -> None:
    """The world outside: an intent before every call, one key per command, a repeat only where the
    result of the call before it could not be stored."""
    calls = list(stage.facts("gateway"))
    without = {f"{c['key']} n={c['n']}" for c in calls if not c["intent"]}
    verdict.blame("unexpected", "called outside before the intent was committed", without)
    effects = stage.rows(
        "SELECT message_id, provider_key, state FROM duly_effect e JOIN duly_inbox b "
        "ON b.dedupe_key = e.dedupe_key AND b.group_name = e.group_name"
    )
    keys = {key: (m, state) for m, key, state in effects}
    called = Counter(c["key"] for c in calls)
    verdict.blame(
        "unexpected", "called with a key that no command has", called.keys() - keys.keys()
    )
    commands = {m for m, (kind, _, _) in sent.items() if kind == "command"}
    reached = {m for key, (m, state) in keys.items() if state == "done" and called[key]}
    verdict.blame("lost", "a command whose call was never made or recorded", commands - reached)
    deaths = {f["pid"] for f in stage.facts("faults") if f["what"] == "fault"}
    outages = [f for f in stage.facts("faults") if f["what"] == "outage"]
    by_key: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for call in sorted(calls, key=lambda c: c["at"]):
        by_key[call["key"]].append(call)
    again = {
        f"{key} by {[call['pid'] for call in made]}"
        for key, made in by_key.items()
        if any(not _unrecorded(call, deaths, outages) for call in made[:-1])
    }
    verdict.blame("unexplained", "called again although the first caller could record it", again)


def _unrecorded(call: dict[str, Any], deaths: set[int], outages: list[dict[str, Any]]) -> bool:
    """Whether the result of a call may not have been stored: its process died, or a server was
    away."""
    if call["pid"] in deaths:
        return True
    return any(
        outage["begin"] - STALL_SECONDS < call["at"] < outage["end"] + STALL_SECONDS
        for outage in outages
    )


def committed(stage: Stage) -> set[str]:
    """The ids of every committed message."""
    return ids(stage.rows("SELECT message_id FROM crash_sent"))
