"""Who may use the service: bearer tokens, each of one named actor.

Owns the file of tokens and the comparison.  The invariants: a token is compared in a time that
tells nothing of it; it is never shown, logged or kept in clear text longer than it takes to read
the file; and a file that others of the machine could read is refused.
"""

from __future__ import annotations

import hmac
import os
import stat
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from duly.errors import ConfigurationError
from duly.kernel.names import check_name

__all__ = ["Tokens", "read_tokens"]

TOKEN_CHARACTERS_MIN = 20
_FILE_BYTES_MAX = 64 * 1024


class Tokens:
    """The tokens of a service. given: actor -> token. Raises ConfigurationError (WEB_TOKENS)."""

    def __init__(self, given: Mapping[str, str]) -> None:
        if not given:
            raise _refused("there is no token: nobody could use the service")
        for actor, token in given.items():
            check_name(actor, "actor")
            if len(token) < TOKEN_CHARACTERS_MIN or not token.isascii() or not token.isprintable():
                text = (
                    f"the token of {actor} must be {TOKEN_CHARACTERS_MIN} ASCII characters or more"
                )
                raise _refused(text)
        self._digests = {actor: _digest(token) for actor, token in given.items()}

    def actor(self, header: str | None) -> str | None:
        """Whose token an ``Authorization`` header carries; None for nobody's."""
        scheme, _, token = (header or "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        asked = _digest(token.strip())
        found = None
        for actor, digest in self._digests.items():  # all of them, whichever it is
            if hmac.compare_digest(digest, asked):
                found = actor
        return found


def read_tokens(path: Path) -> Tokens:
    """Tokens from a file with a line ``ACTOR TOKEN`` for each. Raises ConfigurationError."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise _refused(f"{path} cannot be read: {error.strerror}") from error
    if stat.S_IMODE(mode) & 0o077:
        raise _refused(f"{path} can be read by others: chmod 600 {path}")
    if len(content) > _FILE_BYTES_MAX:
        raise _refused(f"{path} is larger than {_FILE_BYTES_MAX} bytes")
    lines = content.decode("utf-8", "replace").splitlines()
    words = [line.split() for line in lines if line.strip() and not line.startswith("#")]
    if any(len(line) != 2 for line in words):
        raise _refused(f"each line of {path} is: ACTOR TOKEN")
    return Tokens({actor: token for actor, token in words})  # noqa: C416  # pairs by now


def _digest(token: str) -> bytes:
    return sha256(token.encode(errors="replace")).digest()


def _refused(text: str) -> ConfigurationError:
    return ConfigurationError(text, code="WEB_TOKENS")
