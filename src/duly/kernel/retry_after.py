"""What a peer says about when to come back: the header ``Retry-After`` (RFC 9110, 10.2.3).

Owns reading it.  The invariant: the answer is None or a finite number of seconds, 0 or more, at
most a year - whatever a peer writes.  The time comes in as an argument; whether it is obeyed is the
caller's policy.
"""

from __future__ import annotations

import re
from email.utils import parsedate_to_datetime

__all__ = ["SECONDS_MAX", "retry_after"]

SECONDS_MAX = 366 * 86_400.0
_CHARACTERS_MAX = 64
_WHOLE = re.compile(r"[0-9]{1,20}", re.ASCII)


def retry_after(text: str, now: float) -> float | None:
    """The seconds from ``now`` (since 1970) until a peer wants to be asked again; None where the
    text does not say.
    """
    text = text.strip()
    if _WHOLE.fullmatch(text):
        return min(float(text), SECONDS_MAX)
    if not text.isascii() or not text.endswith("GMT") or len(text) > _CHARACTERS_MAX:
        return None
    try:
        at = parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return min(max(0.0, at - now), SECONDS_MAX)
