"""Where a house rule does not hold, by name and with its reason; one not needed any more fails."""

from __future__ import annotations

# (rule, where) -> reason
ALLOWED: dict[tuple[str, str], str] = {}
