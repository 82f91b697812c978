"""Which way of integrating fits: a few questions with yes or no, and a table of ways.

Owns the order of the questions and what each answer leads to; asking people and printing is the
command's business.  The invariant: every combination of answers leads to exactly one way, a
question is asked only where its answer still matters, and each way's snippet is, word for word, a
part of a program under ``examples/`` that runs.

    may the code change? --no--> CDC
      | yes
    must two databases agree at once? --yes--> global transaction
      | no
    bulk? --yes--> batch
      | no
    answer needed at once? --yes--> sync
      | no
    may it be lost? --no--> outbox
      | yes
    a function of this process? --yes--> background, --no--> after commit
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["QUESTIONS", "WAYS", "Question", "Way", "choose"]


class Question(NamedTuple):
    """A question for yes or no. name: of its flag. yes: the way that a yes leads to, no: a no;
    empty: on to the next question.
    """

    name: str
    text: str
    yes: str = ""
    no: str = ""


class Way(NamedTuple):
    """A way of integrating. cost: what was measured, and by which row of ``make bench``. page,
    example: in the source, where it is explained and where it runs.
    """

    name: str
    title: str
    reason: str
    guarantee: str
    cost: str
    snippet: str
    page: str
    example: str


QUESTIONS = (
    Question("code", "May the code of the service where it begins be changed?", no="cdc"),
    Question(
        "together",
        "Must two databases agree at every moment, so that a short delay is not allowed?",
        yes="global-transaction",
    ),
    Question("bulk", "Is it bulk: many rows at a time, at an interval or by hand?", yes="batch"),
    Question(
        "answer",
        "Is the answer needed at once, or the simple flow worth more than decoupling?",
        yes="sync",
    ),
    Question("loss", "May it be lost when a process dies?", no="outbox"),
    Question("here", "Is it a function of this very process?", yes="background", no="after-commit"),
)

_SYNC = Way(
    "sync",
    "a synchronous call",
    "Whoever asks needs the answer, and the flow stays one that a debugger can follow.",
    "over by its deadline; a slow peer takes no more than its places; what may have been done is"
    " not repeated without a key. A failure may also be ignored, replaced, or deferred to the"
    " outbox, one word at the place of the call.",
    "less than stamina.retry, with breaker, bulkhead and deadline on (row `call happy path`); a"
    " plain function with a deadline costs a hop to a thread (row `call thread hop`)",
    """@app.call(
    deadline="2s",
    retry=Retry(attempts=3, base="50ms", on=(PeerUnavailableError,)),
    breaker=Breaker(failures=5, open_for="30s"),
)
def rate(currency: str) -> float:
    return bank.request_sync("GET", f"/rates/{currency}").json(float)
""",
    "docs/howto/call-a-service.md",
    "examples/sync_call.py",
)
_BACKGROUND = Way(
    "background",
    "a function in the background",
    "Nobody waits for it, it is code of this process, and losing it with the process is allowed.",
    "runs once, after the outermost commit, or not at all; no exception is silent. Lost when the"
    " process dies first: `durable(session)` instead of `after(session)` stores it as a command.",
    "a bounded number of threads and of waiting tasks; at most twice the standard pool's submit"
    " (row `background submit`)",
    """@app.background(pool="mail", workers=4, queue=1000, on_full="block")
def send_receipt(order_id: int) -> None:
    print(f"receipt of order {order_id}")
""",
    "docs/howto/background.md",
    "examples/background.py",
)
_AFTER_COMMIT = Way(
    "after-commit",
    "a message after the commit, without the outbox",
    "Another system should hear of it soon, and nobody is harmed when it sometimes does not.",
    "never sent for what was rolled back; lost when the process dies between commit and confirm,"
    " whatever the policy.",
    "no row and no relay; the committing thread is not held up",
    """with Session(engine) as session, session.begin():
    app.publish(session, OrderPlaced(order_id=7), outbox=False, policy=Ignore())
""",
    "docs/howto/after-commit.md",
    "examples/after_commit.py",
)
_OUTBOX = Way(
    "outbox",
    "a message through the outbox",
    "It may come a moment later, but it may not be lost, and the receiver may be down meanwhile.",
    "stored if and only if the transaction commits; sent at least once; a handler's work takes"
    " effect once per message.",
    "one insert in your transaction and one delete by the relay (rows `postgres publish 1`,"
    " `postgres statements per 1000`); milliseconds when idle (row `postgres idle latency p50`)",
    """with Session(engine) as session, session.begin():
    session.execute(text("INSERT INTO orders VALUES (7)"))
    app.publish(session, OrderPlaced(order_id=7), key=7)
""",
    "docs/howto/publish.md",
    "examples/outbox.py",
)
_GLOBAL = Way(
    "global-transaction",
    "a global transaction (two-phase commit)",
    "Two databases must never be seen to disagree, and both can take part in a two-phase commit.",
    "all branches end alike, whatever crashes; those in doubt are recovered, and keep their locks"
    " until then.",
    "a fraction of the outbox's throughput, and locks held for a round trip more in every database"
    " (row `global transaction`); where a second's delay is allowed, take the outbox",
    """with app.global_transaction() as gtx:
    gtx.session().execute(text("INSERT INTO orders VALUES (7)"))
    gtx.session("ledger").execute(text("INSERT INTO entries VALUES (7)"))
""",
    "docs/howto/global-transactions.md",
    "examples/global_transaction.py",
)
_BATCH = Way(
    "batch",
    "a batch: query, file, transfer",
    "Many rows are cheaper as one file than as messages, and a time of day is early enough.",
    "one effective run at a time; after a failure it goes on where it was; under its final name the"
    " file is complete.",
    "close to the database's own COPY (row `batch extract copy`)",
    """@app.batch("settlement", params={"day": date}, schedule="0 3 * * *")
class Settlement:
    read = Query("SELECT id, amount FROM payouts WHERE day = :day", key="id")
    write = CsvFile("settlement-{day}.csv")
    send = Local(f"file://{outgoing}")
""",
    "docs/howto/batch.md",
    "examples/settlement.py",
)
_CDC = Way(
    "cdc",
    "change data capture",
    "The service cannot be touched, but its database tells what it commits.",
    "what a rule makes of a committed change is stored once, in commit order; lost history stops"
    " the stream loudly.",
    "no statement in the service's transactions (PostgreSQL); triggers on SQLite, at most 2.5 times"
    " the write (row `cdc sqlite write cost`)",
    """@app.cdc(table="orders", key="id")
def order_changes(change: Change):
    if change.became("status", "paid"):
        yield OrderPaid(order_id=change.after["id"])
""",
    "docs/howto/capture-changes.md",
    "examples/capture.py",
)
WAYS: Mapping[str, Way] = {
    way.name: way for way in (_SYNC, _BACKGROUND, _AFTER_COMMIT, _OUTBOX, _GLOBAL, _BATCH, _CDC)
}


def choose(answers: Mapping[str, bool]) -> Way | Question:
    """The way that the answers lead to, or the next question. answers: by the questions' names;
    such as do not matter are not looked at.
    """
    for question in QUESTIONS:
        if question.name not in answers:
            return question
        if way := question.yes if answers[question.name] else question.no:
            return WAYS[way]
    raise AssertionError("the last question decides either way")
