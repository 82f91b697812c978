"""A program that keeps a copy: run as a process of its own, killed where its environment says."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from duly import App, Change
from duly.sinks import SqlUpsert
from duly.testing.failpoints import arm_from_environment


def make_app() -> App:
    app = App(
        "shop",
        database=os.environ["CDC_DATABASE"],
        broker="embedded:///:memory:",
        allow_unsafe={"EMBEDDED_MEMORY": "nothing is relayed here"},
        lease_ttl=1.0,
        renew_every=0.3,
        send_timeout=0.5,
    )
    app.source("items", os.environ["SINK_SOURCE"])
    into = SqlUpsert(os.environ["SINK_TARGET"], table="copied")
    app.cdc(table=os.environ["SINK_TABLE"], source="items", name="copy", into=into)(as_it_is)
    return app


def as_it_is(change: Change) -> Mapping[str, Any] | None:
    return change.after


if __name__ == "__main__":
    arm_from_environment()
    make_app().run(["cdc"])
