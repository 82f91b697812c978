"""Notes the ``atomic()`` blocks that are open in this thread or task, for who asks how long.

Django says nothing when a block begins; but one that is open when a call comes back was open when
it began.  Leaves out connections that were never used.
"""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.db import connections

from duly.frameworks.opened import note

__all__ = ["note_blocks"]


def note_blocks(since: float) -> None:
    """Note them; nothing where Django is imported and not configured. since: by time.monotonic."""
    if not settings.configured:
        return
    for connection in connections.all(initialized_only=True):
        if connection.in_atomic_block:
            note(connection, _in_atomic, at=since)


def _in_atomic(connection: Any) -> bool:
    return bool(connection.in_atomic_block)
