"""URLs of databases and brokers, made fit to be shown.

Owns redaction only: parsing a URL is the business of the adapter it belongs to.  The invariant: no
user name, password, secret-looking query parameter or fragment leaves ``redact``, however badly the
URL is written - a password with a raw '@', '/', '?' or '#' in it among them.  Where a URL can be
read in two ways, more is masked rather than less.
"""

from __future__ import annotations

import re
from urllib.parse import unquote_plus

__all__ = ["redact"]

_MASK = "***"
_SECRET = re.compile(r"pass|pwd|secret|token|key|auth|cred|sig|private|cert|user", re.IGNORECASE)
# A libpq or ODBC string: name=value pairs, the value bare or in quotes.
_PAIR = re.compile(r"([A-Za-z_%0-9]+)(\s*=\s*)('(?:[^'\\]|\\.)*'?|\"[^\"]*\"?|\{[^}]*\}?|[^\s;&]*)")


def redact(url: str) -> str:
    """``url`` without its secrets, for errors, logs and the command line. Never raises."""
    head, scheme_end, rest = url.partition("://")
    if not scheme_end:
        return _PAIR.sub(_mask_pair, url)
    head = _PAIR.sub(_mask_pair, head)
    # The last '@' of all: a raw '/' or '?' in a password would end the authority too early.
    _, at, rest = rest.rpartition("@")
    rest, _, fragment = rest.partition("#")
    place, question, query = rest.partition("?")
    return "".join(
        (
            f"{head}://",
            f"{_MASK}@" if at else "",
            place,
            question + re.sub(r"[^&;]+", _mask_parameter, query) if question else "",
            f"#{_MASK}" if fragment else "",
        )
    )


def _mask_parameter(match: re.Match[str]) -> str:
    name, equals, value = match[0].partition("=")
    if not equals:
        return match[0]
    return f"{name}={_MASK if value and _is_secret(name) else value}"


def _mask_pair(match: re.Match[str]) -> str:
    return f"{match[1]}{match[2]}{_MASK if match[3] and _is_secret(match[1]) else match[3]}"


def _is_secret(name: str) -> bool:
    for _ in range(3):  # a name that was percent-encoded more than once
        name = unquote_plus(name)
    return _SECRET.search(name) is not None
