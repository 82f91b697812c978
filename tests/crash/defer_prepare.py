"""Makes duly's tables before the first process is killed."""

from __future__ import annotations

from typing import Any

from tests.crash.defer_shop import make_app


def main(config: dict[str, Any]) -> int:
    """Make them; the exit code."""
    app, _, _ = make_app(config)
    app.upgrade_tables()
    app.close()
    return 0
