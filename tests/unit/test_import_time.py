"""`import duly` stays light: no driver, no framework and no server library comes with it."""

from __future__ import annotations

import json
import subprocess
import sys

HEAVY = {
    "aiosqlite",
    "click",
    "nats",
    "opentelemetry",
    "pika",
    "prometheus_client",
    "psycopg",
    "rich",
    "sqlalchemy",
}


def loaded_by(statement: str) -> set[str]:
    """The top-level modules that a fresh process holds after ``statement``."""
    code = f"import sys, json\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    return {name.split(".")[0] for name in json.loads(done.stdout)}


def test_importing_duly_loads_no_driver() -> None:
    loaded = loaded_by("import duly")
    assert "duly" in loaded
    assert not loaded & HEAVY


def test_what_is_watched_for_would_be_seen() -> None:
    assert loaded_by("import sqlalchemy, click") & HEAVY == {"sqlalchemy", "click"}
