"""The sinks of the runs of change data capture, and what rows are projected to.

Owns that a projected row says which change it is of: a line of the copy's trail is nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from duly.app import App
from duly.cdc.registry import RuleOptions
from duly.kernel.changes import Change
from duly.sinks.redis import RedisCache
from duly.sinks.sql import SqlUpsert
from tests.crash.cdc_copies import HISTORY, Copy, prefix


def add_copies(app: App, copies: Sequence[Copy], targets: Mapping[str, str]) -> None:
    """Declare a rule with a sink for each. targets: URLs by form, and the mark of Redis' names."""
    for copy in copies:
        options: RuleOptions = {"table": copy.table, "into": _sink(copy, targets)}
        project = _as_it_is
        if copy.table == "bulk":
            options["exclude"] = ["filler"]
        elif copy.table == HISTORY:
            options |= {"include": [copy.key], "snapshot": "never"}
            project = _as_a_line
        app.cdc(**options, name=copy.name)(project)


def _sink(copy: Copy, targets: Mapping[str, str]) -> Any:
    if copy.is_sql:
        return SqlUpsert(targets[copy.form], table=f"copy_{copy.table}")
    form: Any = copy.form
    return RedisCache(targets["redis"], prefix=prefix(targets["mark"], copy), form=form)


def _as_it_is(change: Change) -> Mapping[str, Any] | None:
    if change.after is None:
        return None
    return {**change.after, "op": change.op, "place": f"{change.position}/{change.ordinal:08}"}


def _as_a_line(change: Change) -> Mapping[str, Any] | None:
    row = _as_it_is(change)
    return row and {**row, "v": row["seq"]}
