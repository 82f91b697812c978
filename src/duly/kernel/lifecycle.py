"""The statuses of a message in the outbox and in the inbox, and who may change which into what.

    status    | box    | meaning                               | the program makes it    | verbs
    ----------+--------+---------------------------------------+-------------------------+------
    ready     | both   | waiting for its turn                  | retry held failed FINAL |
    retry     | both   | waiting for its due time              | retry held failed FINAL |
    held      | both   | waits behind its key, or for a person | retry held failed FINAL | all
    failed    | both   | given up after the last attempt       | outbox: FINAL           | all
    sent      | outbox | confirmed by the broker               |                         |
    unrouted  | outbox | confirmed, nobody is bound            |                         |
    done      | inbox  | handled, in the handler's transaction |                         |
    skipped   | both   | passed over, its key went on          |                         |
    dropped   | both   | thrown away by an operator            |                         |

    FINAL: sent, unrouted (outbox; a confirm may come after the row was given up, and is a fact);
    done, skipped (inbox; skipped where the group does not handle this type).

    verb      | box    | failed, held become
    ----------+--------+--------------------
    resend    | outbox | retry, due now, same id
    reprocess | inbox  | retry, due now, as if it had never been received; its effects are kept
    retry     | both   | retry, due now, attempts from 0
    edit      | both   | retry, due now, new id, in the same position
    skip      | both   | skipped
    drop      | both   | dropped

The invariant: a verb acts on ``failed`` and ``held`` only, never on a row a process may have in
flight.  What goes back to work becomes ``retry`` and not ``ready``: its row id lies below the floor
from which ready rows are read, while due retries are found by an index of their own.  The
compare-and-set that makes a change safe is the store's.
"""

from __future__ import annotations

from duly.errors import WrongStatusError

__all__ = [
    "ACTIONABLE",
    "INBOX",
    "INBOX_STATUSES",
    "OUTBOX",
    "OUTBOX_STATUSES",
    "UNFINISHED",
    "VERBS",
    "allowed",
    "may_become",
    "next_status",
]

OUTBOX = "outbox"
INBOX = "inbox"

UNFINISHED = frozenset({"ready", "retry", "held"})
ACTIONABLE = frozenset({"failed", "held"})
OUTBOX_STATUSES = UNFINISHED | {"failed", "sent", "unrouted", "skipped", "dropped"}
INBOX_STATUSES = UNFINISHED | {"failed", "done", "skipped", "dropped"}

_FINAL = {OUTBOX: frozenset({"sent", "unrouted"}), INBOX: frozenset({"done", "skipped"})}

VERBS: dict[str, dict[str, str]] = {
    OUTBOX: {
        "resend": "retry",
        "retry": "retry",
        "edit": "retry",
        "skip": "skipped",
        "drop": "dropped",
    },
    INBOX: {
        "reprocess": "retry",
        "retry": "retry",
        "edit": "retry",
        "skip": "skipped",
        "drop": "dropped",
    },
}


def may_become(box: str, status: str, wanted: str) -> bool:
    """Whether the program itself (not an operator) may change ``status`` into ``wanted``. Unknown
    words: False.
    """
    final = _FINAL.get(box, frozenset())
    if status in UNFINISHED:
        return wanted in final or (bool(final) and wanted in ("retry", "held", "failed"))
    return box == OUTBOX and status == "failed" and wanted in final


def allowed(box: str, verb: str, status: str) -> bool:
    """Whether an operator's verb applies to a row in this status. Unknown words: False."""
    return verb in VERBS.get(box, {}) and status in ACTIONABLE


def next_status(box: str, verb: str, status: str) -> str:
    """The status a row gets by an operator's verb. Raises WrongStatusError where the verb does not
    apply.
    """
    if not allowed(box, verb, status):
        raise WrongStatusError(f"{verb} of an {box} message that is {status}")
    return VERBS[box][verb]
