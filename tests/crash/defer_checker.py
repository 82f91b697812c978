"""The verdict on deferred calls, from the tables and the peer's journal; imports nothing of duly.

attempted     operations begun
acknowledged  operations whose commit returned
delivered     committed ones whose call was made - or, without a key, is held for a person
recovered     of these, those whose commit was never acknowledged
duplicated    asks under a key that the peer had acted on: harmless, it gave the old receipt
lost          acknowledged and not there; committed and never made; deferred, and its answer
              was never handled
unexpected    an operation asked for under two keys; made twice without one; a deferred call of
              an operation that was not committed; an answer handled twice; held with a key
"""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

from tests.crash.checker import Verdict
from tests.crash.stage import Stage, read_lines


def check_defer(stage: Stage) -> Verdict:
    """Judge a run that has ended."""
    verdict = Verdict()
    ops = list(read_lines(stage.journal("ops")))
    began = {fact["op"]: fact["keyed"] for fact in ops if fact["what"] == "begin"}
    acked = {fact["op"] for fact in ops if fact["what"] == "ack"}
    rows = stage.rows("SELECT op, deferred, message_id FROM crash_op")
    committed = {op for op, *_ in rows}
    held_ids = {row[0] for row in stage.rows(HELD)}
    held = {op for op, _, message_id in rows if message_id in held_ids}
    paid = Counter(op for (op,) in stage.rows("SELECT op FROM crash_paid"))
    asks, acts = _of_peer(stage.journal("peer"))

    unkeyed_held = {op for op in held if not began[op]}
    made = {op for op in committed if acts[op]} | unkeyed_held
    verdict.attempted, verdict.acknowledged = len(began), len(acked)
    verdict.delivered, verdict.recovered = len(made), len(made - acked)
    verdict.duplicated = sum(len(a) - 1 for op, a in asks.items() if began[op] and acts[op])
    verdict.blame("lost", "acknowledged and not committed", acked - committed)
    verdict.blame("lost", "committed and never called", committed - made)
    deferred = {op for op, is_deferred, _ in rows if is_deferred}
    verdict.blame("lost", "deferred and not answered", deferred - set(paid) - unkeyed_held)
    keys = {op: {key for key, _ in a} for op, a in asks.items()}
    verdict.blame("unexpected", "called under two keys", {o for o in keys if len(keys[o]) > 1})
    twice = {op for op, times in acts.items() if times > 1}
    verdict.blame("unexpected", "made twice", twice)
    by_worker = {op for op, a in asks.items() if any(who == "worker" for _, who in a)}
    verdict.blame("unexpected", "called later, and not committed", by_worker - committed)
    verdict.blame("unexpected", "answered twice", {op for op, n in paid.items() if n > 1})
    verdict.blame("unexpected", "answered and not deferred", set(paid) - deferred)
    verdict.blame("unexpected", "held although it has a key", held - unkeyed_held)
    return verdict


HELD = "SELECT message_id FROM duly_inbox WHERE status = 'held'"


def _of_peer(journal: Path) -> tuple[dict[int, list[tuple[str, str]]], Counter[int]]:
    """(key, who) of every ask by operation, and how often the peer acted on each."""
    asks: dict[int, list[tuple[str, str]]] = defaultdict(list)
    acts: Counter[int] = Counter()
    for fact in read_lines(journal):
        if fact["what"] == "ask":
            asks[fact["op"]].append((fact["key"], fact["who"]))
        else:
            acts[fact["op"]] += 1
    return asks, acts
