"""``duly reconcile``: does what was stored, sent, handled and held add up?"""

from __future__ import annotations

import click

from duly.admin.cli.arguments import app_argument
from duly.admin.cli.output import (
    EXIT_OK,
    EXIT_PROBLEM,
    EXIT_USAGE,
    clean,
    document,
    json_option,
    note,
    table,
    write,
)
from duly.admin.cli.target import database_option, open_target
from duly.outbox.reconcile import Reconciliation, Verdict, reconcile

__all__ = ["reconcile_command"]

_EXIT = {
    Verdict.ADDS_UP: EXIT_OK,
    Verdict.DIFFERS: EXIT_PROBLEM,
    Verdict.NOT_PROVABLE: EXIT_USAGE,
}


@click.command("reconcile")
@app_argument
@click.option("--source", metavar="SQL", help="A query that counts what should exist.")
@click.option("--topic", help="The topic that --source counts.")
@click.option("--group", default="", help="Count what this group's inbox holds, too.")
@database_option
@json_option
def reconcile_command(
    *,
    source: str | None,
    topic: str | None,
    group: str,
    app: str | None,
    database: str | None,
    as_json: bool,
) -> int:
    """Prove that nothing was lost: exit code 0 adds up, 1 does not, 2 not provable.

    With keep_sent the kept history is added up; without it --source is compared with what the
    tables hold. What is on its way through the broker counts as missing until it arrives.
    """
    if bool(source) != bool(topic):
        raise click.UsageError("--source and --topic go together")
    with open_target(app, database) as found:
        handlers = getattr(found.app, "handlers", None)
        groups = (
            {
                name: sorted({h.type.name for h in handlers.of_group(name)})
                for name in handlers.groups
            }
            if handlers
            else {}
        )
        result = reconcile(
            found.database,
            history=found.settings.keep_sent,
            groups=groups,
            source=(source, topic, group) if source and topic else None,
        )
    if as_json:
        document(result)
    else:
        _show(result)
    return _EXIT[result.verdict]


def _show(result: Reconciliation) -> None:
    rows: list[tuple[object, ...]] = []
    for topic in result.topics:
        rows.append((f"topic {topic.topic}", "stored", topic.stored))
        rows += [("", status, count) for status, count in sorted(topic.by_status.items())]
    for group in result.groups:
        rows.append((f"group {group.group}", "sent to it", group.sent))
        rows.append(("", "missing", group.missing))
        rows += [("", status, count) for status, count in sorted(group.by_status.items())]
    if result.source:
        rows.append((f"topic {result.source.topic}", "source", result.source.counted))
        rows.append(("", "accounted for", result.source.accounted))
    if rows:
        table(("", "", "MESSAGES"), rows)
    write(result.verdict.value)
    if result.reason:
        note(clean(result.reason))
