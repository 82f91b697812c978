"""``duly 2pc``: global transactions in doubt, and what a person may decide about them.

Every command needs the App: it says which databases take part.  What is decided here is decided as
the coordinator and the recovery do it, and audited.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from duly.admin.cli.arguments import app_argument, app_then
from duly.admin.cli.output import (
    EXIT_OK,
    EXIT_PROBLEM,
    clean,
    document,
    json_option,
    note,
    plain,
    table,
    when,
    write,
)
from duly.admin.cli.target import actor_options, by_of, require_app

if TYPE_CHECKING:
    from duly.twophase.operator import Line

__all__ = ["two_phase"]


@click.group()
def two_phase() -> None:
    """Global transactions: those in doubt, and their branches."""


@two_phase.command("list")
@app_argument
@click.option("--ended", is_flag=True, help="Those that have ended, too.")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True)
@json_option
def list_transactions(*, ended: bool, limit: int, app: str | None, as_json: bool) -> int:
    """What has not ended, or was ended by hand against its decision; exit code 1 where something
    waits for a recovery or for a person.
    """
    found = require_app(app).global_transactions.operator().find(ended=ended, limit=limit)
    if as_json:
        document({"transactions": [_document(line) for line in found]})
    else:
        headers = ("ID", "STATUS", "SINCE", "DECIDED", "ENDED", "BRANCHES")
        table(headers, [_cells(line) for line in found])
        note(f"{len(found)} transactions")
    waits = any(line.status == "heuristic" or _is_late(line) for line in found)
    return EXIT_PROBLEM if waits else EXIT_OK


@two_phase.command()
@app_then("transaction", metavar="ID")
@click.option("--commit", "verb", flag_value="commit", help="Commit it; all must be prepared.")
@click.option("--rollback", "verb", flag_value="rollback", help="Roll it back.")
@click.option("--forget", "verb", flag_value="forget", help="Give up branches that are lost.")
@click.option("--yes", is_flag=True, help="Do it; without this it is only said.")
@actor_options
@json_option
def resolve(
    *,
    transaction: str,
    verb: Any,
    yes: bool,
    actor: str | None,
    reason: str,
    app: str | None,
    as_json: bool,
) -> int:
    """Decide what is not decided, and end its branches now."""
    if verb is None:
        raise click.UsageError("say --commit, --rollback or --forget")
    if not yes:
        raise click.UsageError(f"this would {verb} {transaction}; add --yes to do it")
    operator = require_app(app).global_transactions.operator()
    status = operator.resolve(transaction, verb, by=by_of(actor, reason))
    if as_json:
        document({"id": transaction, "status": status})
    else:
        write(clean(f"{transaction} is {status}"))
    return EXIT_OK if status in ("committed", "aborted", "forgotten") else EXIT_PROBLEM


def _is_late(line: Line) -> bool:
    return line.ended_at is None and line.overdue


def _cells(line: Line) -> tuple[object, ...]:
    branches = ", ".join(f"{one.participant}: {one.state}" for one in line.branches)
    moments = (line.created_at, line.decided_at, line.ended_at)
    return (line.id, line.status, *(when(at) if at else "" for at in moments), branches)


def _document(line: Line) -> dict[str, object]:
    shown = dict(plain(line))
    for name in ("created_at", "decided_at", "ended_at"):
        at = getattr(line, name)
        shown[name] = when(at) if at else None
    shown["branches"] = [plain(branch) for branch in line.branches]
    return shown
