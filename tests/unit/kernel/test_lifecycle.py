from __future__ import annotations

import pytest

from duly.errors import WrongStatusError
from duly.kernel import lifecycle
from duly.kernel.lifecycle import (
    ACTIONABLE,
    INBOX,
    INBOX_STATUSES,
    OUTBOX,
    OUTBOX_STATUSES,
    UNFINISHED,
    VERBS,
    allowed,
    may_become,
    next_status,
)

STATUSES = {OUTBOX: OUTBOX_STATUSES, INBOX: INBOX_STATUSES}
FINAL = {OUTBOX: {"sent", "unrouted"}, INBOX: {"done", "skipped"}}


def drawn(columns: int, header: str) -> list[list[str]]:
    rows, reading = [], False
    for line in (lifecycle.__doc__ or "").splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if cells[0] == header:
            reading = True
        elif reading and len(cells) == columns:
            rows.append(cells)
        elif reading and not line.strip().startswith("---"):
            break
    return rows


def boxes(word: str) -> list[str]:
    return [OUTBOX, INBOX] if word == "both" else [word]


def test_the_drawn_statuses_and_moves_are_the_real_ones():
    rows = drawn(5, "status")
    for box in (OUTBOX, INBOX):
        assert {r[0] for r in rows if box in boxes(r[1])} == STATUSES[box]
    for status, where, _, moves, verbs in rows:
        for box in boxes(where):
            words = moves.split()
            if words[:1] == ["outbox:"]:
                words = words[1:] if box == OUTBOX else []
            wanted = {w for word in words for w in (FINAL[box] if word == "FINAL" else {word})}
            assert {to for to in STATUSES[box] if may_become(box, status, to)} == wanted
            assert {v for v in VERBS[box] if allowed(box, v, status)} == (
                set(VERBS[box]) if verbs == "all" else set()
            )


def test_the_drawn_verbs_are_the_real_ones():
    rows = drawn(3, "verb")
    found = {(b, r[0]): r[2].split(",")[0] for r in rows for b in boxes(r[1])}
    assert found == {(box, verb): to for box, verbs in VERBS.items() for verb, to in verbs.items()}


@pytest.mark.parametrize("box", [OUTBOX, INBOX])
def test_verbs_act_on_failed_and_held_only(box):
    for verb in VERBS[box]:
        for status in STATUSES[box]:
            if status in ACTIONABLE:
                assert next_status(box, verb, status) in STATUSES[box]
            else:
                with pytest.raises(WrongStatusError, match=status):
                    next_status(box, verb, status)


def test_verbs_of_the_other_box_do_not_apply():
    assert not allowed(OUTBOX, "reprocess", "failed")
    assert not allowed(INBOX, "resend", "failed")
    with pytest.raises(WrongStatusError):
        next_status(INBOX, "resend", "failed")


@pytest.mark.parametrize(
    ("box", "verb", "status"),
    [("box", "retry", "failed"), (OUTBOX, "burn", "failed"), (OUTBOX, "retry", "lost")],
)
def test_unknown_words_are_refused(box, verb, status):
    assert not allowed(box, verb, status)
    with pytest.raises(WrongStatusError):
        next_status(box, verb, status)


def test_unknown_words_lead_nowhere():
    assert not may_become("box", "ready", "retry")
    assert not may_become("box", "failed", "sent")
    assert not may_become(OUTBOX, "lost", "sent")
    assert not may_become(OUTBOX, "ready", "lost")


def test_every_unfinished_status_leads_to_an_end():
    for box, statuses in STATUSES.items():
        for status in UNFINISHED & statuses:
            assert any(may_become(box, status, final) for final in FINAL[box])


def test_nothing_goes_back_to_ready():
    """Ready rows are read above an id floor: an old one made ready would wait for the sweep."""
    for box, statuses in STATUSES.items():
        assert not any(may_become(box, status, "ready") for status in statuses)
        assert "ready" not in VERBS[box].values()
