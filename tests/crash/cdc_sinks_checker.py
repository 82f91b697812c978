"""The verdict on a run with sinks; reads with the drivers alone, knows nothing of duly.

    attempted, acknowledged, recovered  as in ``cdc_checker``
    delivered     changes of the rows that every copy has as the source has them
    lost          a row that a copy has not, or not so; an entry of a cache that should be gone
    unexpected    a row that the source has not; a change applied twice; a value that nobody
                  committed; a row that was away though nobody removed it; a name that is of no row
    order_breaks  a copy that went back in time, also where it came right in the end

What is written to a copy of SQL is known line by line, so there a change that is applied again is
seen at once.  Of a cache it is known what somebody saw who looked all the time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tests.crash.cdc_checker import Line, acknowledged, history
from tests.crash.cdc_copies import HISTORY, Copy, Rows, Step
from tests.crash.cdc_sinks_stage import SinksStage, wrong_rows
from tests.crash.cdc_stage import BULK_EVERY
from tests.crash.checker import Verdict

Histories = dict[str, list[Any]]  # by key what its row was, one after the other; None for no row
AGAIN = ("read", "seen")  # these say what a row is, also where it is that already


def check_sinks(stage: SinksStage, *, batch_max: int) -> Verdict:
    """Judge a run that has settled. batch_max: of no use here, nothing is sent."""
    verdict = Verdict()
    lines = history(stage)
    acknowledged(stage, verdict, lines)
    wrong: set[tuple[str, str]] = set()
    for copy in stage.copies:
        source, held = stage.source(copy.table, copy.columns), stage.held(copy, copy.columns)
        wrong |= {(copy.table, key) for key in judge_rows(verdict, copy, source, held)}
        if copy.is_filled:
            trail = list(stage.trail(copy))
            judge_trail(verdict, copy, histories(lines, copy.table), trail)
            if copy.is_sql:
                judge_end(verdict, copy, trail, held)
        else:
            # An entry comes only by a reader: without any, nothing was there to be removed.
            idle = [] if stage.filled(copy) else [copy.name]
            verdict.blame("lost", "a copy that nobody filled shows nothing", idle)
        if not copy.is_sql:
            strangers = stage.strangers(copy)
            verdict.blame("unexpected", f"names in {copy.name} that are of no row", strangers)
    told = [line for line in lines if line.is_told and line.name[1] != "meaning"]
    right = sum(
        not wrong & {(line.name[0], line.name[2]), (HISTORY, str(line.seq))} for line in told
    )
    verdict.delivered = right + sum(line.name[1] == "meaning" for line in lines)
    return verdict


def histories(lines: Iterable[Line], table: str) -> Histories:
    """What each row of a table was, in the order of the commits."""
    if table == HISTORY:
        return {str(line.seq): [line.seq] for line in lines if line.is_told}
    found: Histories = {}
    for line in lines:
        of, op, key, _, new = line.name
        if of != table:
            continue
        if op == "truncate":
            for states in found.values():
                states.append(None)
            continue
        if op.startswith("move "):
            found.setdefault(op.partition(" ")[2], []).append(None)
        found.setdefault(key, []).append(new)
    return found


def judge_rows(verdict: Verdict, copy: Copy, source: Rows, held: Rows) -> set[str]:
    """Compare a copy with its table, row by row; returns the keys that are wrong."""
    wrong = wrong_rows(copy, source, held)
    said = {key: f"{key}: {held.get(key)} for {source.get(key)}"[:80] for key in wrong}
    if not copy.is_filled:
        verdict.blame("lost", f"{copy.name} keeps what is of the past", said.values())
        return wrong
    extra = wrong - source.keys()
    verdict.blame("lost", f"not so in {copy.name}", [said[key] for key in wrong - extra])
    verdict.blame("unexpected", f"in {copy.name} and not in its table", [said[k] for k in extra])
    return wrong


def judge_trail(verdict: Verdict, copy: Copy, rows: Histories, trail: Sequence[Step]) -> None:
    """Every key goes through its states in their order; it may skip some, and none comes twice."""
    reached: dict[str, int] = {}
    found: dict[str, list[str]] = {kind: [] for kind in ("twice", "nobody", "gone", "back")}
    for step in trail:
        states, here = rows.get(step.key, []), reached.get(step.key, -1)
        kind, there = _place_of(step, states, here)
        if kind:
            found[kind].append(f"{step.key} {step.op} {step.v} after {states[: here + 1][-1:]}")
        reached[step.key] = max(here, there)
    for count, what, kind in (
        ("unexpected", "a change applied twice", "twice"),
        ("unexpected", "a value that nobody committed", "nobody"),
        ("unexpected", "a row away that nobody removed", "gone"),
        ("order_breaks", "back in time", "back"),
    ):
        verdict.blame(count, f"{copy.name}: {what}", found[kind])


def _place_of(step: Step, states: Sequence[Any], here: int) -> tuple[str, int]:
    """Which state of its row a step leads to, and what is wrong with that."""
    if step.op == "gone" or step.v is None:
        if here == -1 or states[here] is None:
            return "", here  # it was away
        later = (n for n in range(here + 1, len(states)) if states[n] is None)
        there = next(later, -1)
        return ("gone" if there == -1 else ""), there
    if step.v not in states:
        return "nobody", here
    there = states.index(step.v)
    if there == here and step.op not in AGAIN:
        return "twice", here
    return ("back" if there < here else ""), there


def judge_end(verdict: Verdict, copy: Copy, trail: Sequence[Step], held: Rows) -> None:
    """What the trail says of each key at its end is what there is: it is the trail of this copy."""
    last = {step.key: None if step.op == "gone" else step.v for step in trail}
    for key, row in held.items():
        if copy.table == "bulk" and int(key) % BULK_EVERY:
            continue  # of these no trail is kept
        last[key] = None if last.get(key) == row[0] else (last.get(key), row[0])
    wrong = {f"{key}: {what}" for key, what in last.items() if what is not None}
    verdict.blame("unexpected", f"{copy.name} is not as its trail ends", wrong)
