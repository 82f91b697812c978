"""The rule for every name a user can choose, and the hash that places a key.

A name that reaches SQL, a broker or a file is checked here once, with ``fullmatch`` (``match`` with
``$`` accepts a trailing newline).  ``place`` is a schema constant: the same (topic, key) must fall
on the same lane in every process, language and version, so it is computed from bytes, never by
``hash()``.
"""

from __future__ import annotations

import re
from functools import lru_cache
from hashlib import md5
from typing import NamedTuple

from duly.errors import InvalidNameError

__all__ = ["LANES", "STRIPES", "Place", "check_name", "check_sql_name", "is_name", "place"]

LANES = 64
STRIPES = 1024

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}", re.ASCII)
_SQL_NAME = re.compile(r"[a-z_][a-z0-9_]{0,40}", re.ASCII)


class Place(NamedTuple):
    """Where a key lives: its lock stripe (0..1023) and its lane (0..63)."""

    stripe: int
    lane: int


def check_name(value: str, what: str) -> str:
    """Return ``value`` when it is a valid topic, queue, group, handler or message type name.

    Raises InvalidNameError, which shows the name with everything unprintable escaped.
    """
    if not is_name(value):
        raise InvalidNameError(f"{what} {ascii(value)[:140]}")
    return value


def is_name(value: object) -> bool:
    """Whether ``value`` is a valid name."""
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def check_sql_name(value: str, what: str) -> str:
    """Return ``value`` when it may stand in SQL: lower case ASCII letters, digits and '_', at most
    41 characters.
    """
    given: object = value  # callers without a type checker pass anything
    if not isinstance(given, str) or not _SQL_NAME.fullmatch(given):
        raise InvalidNameError(f"{what} {ascii(value)[:140]}")
    return value


@lru_cache(maxsize=4096)  # an ordered stream comes back to its keys
def place(topic: str, key: str) -> Place:
    """The stripe and lane of a key: the first 4 bytes of MD5 over both parts, each with its length
    before it.
    """
    t, k = topic.encode(), key.encode()
    digest = md5(b"%d:%s%d:%s" % (len(t), t, len(k), k), usedforsecurity=False).digest()
    stripe = int.from_bytes(digest[:4], "big") % STRIPES
    return Place(stripe, stripe % LANES)
