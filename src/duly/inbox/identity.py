"""What makes two deliveries the same message to a handler.

Owns the text in ``dedupe_key``.  Without a business key it is the message's id and its source with
U+001F in between, which neither may contain: so two pairs never give one text, no business key
looks like one, and all rows of an id are a range of the unique index.  A message that an operator
edited keeps the identity of the one that it replaces.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from typing import Any
from uuid import UUID

import msgspec

from duly.errors import PermanentError
from duly.message import HEADER_REPLACES, HEADER_SOURCE, Message, is_plain_text, new_id

__all__ = [
    "Identity",
    "business_key",
    "busy_key",
    "content_id",
    "message_key",
    "own_key",
]

SEPARATOR = "\x1f"
KEY_BYTES_MAX = 512


class Identity(msgspec.Struct, frozen=True, gc=False):
    """Who has handled what: the unique key of an inbox row."""

    group: str
    handler: str
    dedupe_key: str

    @property
    def where(self) -> dict[str, str]:
        """It as values of a statement."""
        return {"group": self.group, "handler": self.handler, "dedupe_key": self.dedupe_key}


def message_key(message: Message) -> str:
    """The identity of a message by its id and source."""
    get = message.headers.get
    return f"{get(HEADER_REPLACES) or message.id}{SEPARATOR}{get(HEADER_SOURCE, '')}"


def content_id(message: Message) -> str:
    """The id of a message that has none, from a broker that cannot name its place either: the same
    whenever it comes again, but equal messages share it.
    """
    parts = [message.topic, message.type, message.kind, message.key or ""]
    parts += [text for item in sorted(message.headers.items()) for text in item]
    digest = sha256(message.payload)
    for part in parts:
        digest.update(b"%d:%s" % (len(part), part.encode(errors="surrogatepass")))
    return f"content-{digest.hexdigest()[:32]}"


def own_key(message: Message) -> str:
    """The identity of a message whose id others may have, too: one that only it has, among those
    of its id.
    """
    return f"{message_key(message)}{SEPARATOR}{new_id()}"


def business_key(dedupe: Callable[[Any], Any], value: Any) -> str:
    """The identity of a message by what it asks for.

    Raises PermanentError (DEDUPE_KEY_INVALID) unless ``dedupe`` gives text of 1 to 512 bytes, a
    whole number or a UUID.
    """
    key = dedupe(value)
    if isinstance(key, bool) or not isinstance(key, str | int | UUID):
        raise PermanentError(f"dedupe gave a {type(key).__qualname__}", code="DEDUPE_KEY_INVALID")
    text = str(key)
    if not is_plain_text(text, bytes_max=KEY_BYTES_MAX):
        raise PermanentError(
            "dedupe gave empty, long or unprintable text", code="DEDUPE_KEY_INVALID"
        )
    return text


def busy_key(message: Message) -> str:
    """Where a message waits whose business key another, unfinished message has."""
    return f"{SEPARATOR}{message_key(message)}"
