"""What ``publish`` makes of a message object, and the statement that stores it.

A ``PendingMessage`` gets its id at once and its bytes as late as possible: an object is encoded
when it is published, so that later changes of it do not matter; a callable is called before the
commit, when the keys of new rows are known. The invariant: what ``MessageOutlet.write`` stores is
frozen, checked (kind, key, headers, size) and placed on its lane; one statement stores all messages
of an App, whatever their number.  How the statement comes to be the last one of the user's
transaction is the joins' business (``duly.frameworks``).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from enum import Enum
from functools import lru_cache
from time import time_ns
from typing import Any, Final, Protocol
from uuid import UUID

import msgspec

from duly.errors import ConfigurationError, NotSerializableError, PermanentError, UnknownTypeError
from duly.kernel import failpoints
from duly.kernel.names import LANES, place
from duly.message import (
    HEADER_SOURCE,
    HEADER_TIME,
    HEADER_VERSION,
    Message,
    Registry,
    check_headers,
    new_id,
)
from duly.observe.facts import Published
from duly.observe.hooks import Hooks
from duly.ports import Outlet, Pending, Statement, Steps

__all__ = ["KEY_BYTES_MAX", "UNKEYED", "Key", "MessageOutlet", "PendingMessage", "Store", "Unkeyed"]

KEY_BYTES_MAX = 1024  # an index entry of PostgreSQL holds 2,704 bytes, topic and key share one


class Unkeyed(Enum):
    """The key of a message that asks for no order; None is never a key, it is a mistake."""

    UNKEYED = "unkeyed"


UNKEYED: Final = Unkeyed.UNKEYED
Key = str | int | UUID
_encode = msgspec.json.Encoder().encode


class Store(Protocol):
    """The part of ``ports.Database`` that an outlet needs."""

    def prepare(self, statement: Statement) -> Sequence[tuple[str, Any, bool]]:
        """As ``Database.prepare``."""
        ...

    def map_error(self, error: Exception) -> Exception:
        """As ``Database.map_error``."""
        ...

    def admits(self, connection: Any, *, managed: bool) -> Steps[None]:
        """As ``Outlet.admits``."""
        ...

    def create(self) -> Steps[None]:
        """As ``Database.create``."""
        ...


class MessageOutlet:
    """The outlet of one App: checks and stores its messages.

    app: the name that becomes the messages' source. wake: called after a commit that stored
    messages; must not block or raise. ambient: headers that a message of a topic (empty: not known
    yet) gets unless it brings a trace context of its own. hooks: told what was committed.
    """

    def __init__(
        self,
        app: str,
        registry: Registry,
        store: Store,
        *,
        wake: Callable[[], None] = lambda: None,
        ambient: Callable[[str], Mapping[str, str]] = lambda _topic: {},
        hooks: Hooks | None = None,
    ) -> None:
        self.app = app
        self.registry = registry
        self.ambient = ambient
        self._wake = wake
        self._hooks = hooks or Hooks()
        self.prepare = store.prepare
        self.map_error = store.map_error
        self.admits = store.admits
        self._create = store.create
        self._has_tables = False

    def write(self, entries: Sequence[Pending], *, last: bool = True) -> Steps[None]:
        """One ``outbox.insert`` for all entries; nothing for none."""
        messages = [entry.message for entry in entries if isinstance(entry, PendingMessage)]
        if not messages:
            return
        failpoints.hit(failpoints.OUTBOX_BEFORE_FLUSH)
        if not self._has_tables:
            yield from self._create()
        first = random.randrange(LANES)
        rows = [_row(m, (first + n) % LANES) for n, m in enumerate(messages)]
        yield Statement("outbox.insert", {"last": last}, rows)
        failpoints.hit(failpoints.OUTBOX_FLUSHED)

    def committed(self, entries: Sequence[Pending]) -> None:
        """Wake the relay."""
        self._has_tables = True
        self._wake()
        if self._hooks.listening:
            stored = (entry.message for entry in entries if isinstance(entry, PendingMessage))
            for topic, count in Counter(message.topic for message in stored).items():
                self._hooks.emit(Published(topic=topic, count=count))


class PendingMessage:
    """A message on its way to the commit.

    message: an object of a registered class, or a callable that gives one. key: text, a whole
    number or a UUID, or a callable that gives one. kind: the verb's kind, ``event`` for publish and
    ``command`` for send. outlet: None for a message that is sent after the commit instead of
    stored. id: of the message, where the same cause must always give the same.

    Raises UnknownTypeError, NotSerializableError, PayloadTooLargeError, InvalidHeaderError,
    PermanentError (KEY_IS_NONE, KEY_INVALID, TOMBSTONE_WITHOUT_KEY), ConfigurationError
    (WRONG_VERB) - at once for objects, before the commit for callables.
    """

    __slots__ = ("_frozen", "_headers", "_key", "_kind", "_source", "_value", "id", "outlet")

    def __init__(
        self,
        source: MessageOutlet,
        value: Any,
        *,
        kind: str,
        key: Any = UNKEYED,
        headers: Mapping[str, str] | None = None,
        stored: bool = True,
        id: str = "",
    ) -> None:
        self.id = id or new_id()
        self.outlet: Outlet | None = source if stored else None
        self._source = source
        self._kind = kind
        self._frozen: Message | None = None
        late = self._is_late(value)
        self._value: Any = value if late else self._encode(value)
        given = check_headers(headers) if headers else {}
        if "traceparent" not in given:
            given = {**source.ambient("" if late else self._value[0].topic), **given}
        self._headers = {
            **given,
            HEADER_SOURCE: source.app,
            HEADER_TIME: _now_text(),
        }
        self._key = key if callable(key) else _key_text(key)
        if not late and not callable(key):
            self.resolve()

    @property
    def frozen(self) -> bool:
        """Whether type, bytes and key are final."""
        return self._frozen is not None

    @property
    def message(self) -> Message:
        """The frozen message."""
        assert self._frozen is not None, "write is only called with frozen entries"
        return self._frozen

    def resolve(self) -> None:
        """Call what is late, encode, check. Does nothing the second time."""
        if self._frozen is not None:
            return
        spec, payload = (
            self._value if isinstance(self._value, tuple) else self._encode(self._value())
        )
        key = _key_text(self._key()) if callable(self._key) else self._key
        if spec.tombstone and key is None:
            text = f"{spec.name} is a tombstone: publish it with the key of what is gone"
            raise PermanentError(text, code="TOMBSTONE_WITHOUT_KEY")
        if spec.version != 1:
            self._headers[HEADER_VERSION] = str(spec.version)
        self._frozen = Message(
            self.id, spec.name, spec.kind, spec.topic, key, payload, self._headers
        )
        self._value = self._key = None

    def committed(self) -> None:
        """Nothing: a stored message is the relay's business now."""

    def failed(self, error: Exception) -> None:
        """Never called, as ``committed`` does nothing."""
        raise AssertionError from error

    def _encode(self, value: Any) -> tuple[Any, bytes]:
        if isinstance(value, type):
            raise UnknownTypeError(f"{value.__qualname__} is a class; publish an object of it")
        spec = self._source.registry.of(type(value))
        if spec.kind != self._kind:
            verb = "publish" if spec.kind == "event" else "send"
            raise ConfigurationError(f"{spec.name} is a {spec.kind}: use {verb}", code="WRONG_VERB")
        return spec, b"" if spec.tombstone else self._source.registry.encode(value)

    def _is_late(self, value: Any) -> bool:
        if isinstance(value, type) or not callable(value):
            return False
        try:
            self._source.registry.of(type(value))
        except UnknownTypeError:
            return True
        return False  # a message class whose objects happen to be callable


def _now_text() -> str:
    seconds, rest = divmod(time_ns(), 10**9)
    return f"{_second_text(seconds)}.{rest // 1000:06}+00:00"


@lru_cache(maxsize=2)
def _second_text(seconds: int) -> str:
    """The text of a moment is dear; most messages are published in the second of the one before."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _key_text(key: Any) -> str | None:
    if key is UNKEYED:
        return None
    if key is None:
        raise PermanentError(
            "key is None; leave it out for a message without order", code="KEY_IS_NONE"
        )
    if isinstance(key, bool) or not isinstance(key, str | int | UUID):
        raise PermanentError(
            f"key is a {type(key).__qualname__}; use text, a whole number or a UUID",
            code="KEY_INVALID",
        )
    text = str(key)
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise NotSerializableError("key is not valid Unicode", code="KEY_INVALID") from error
    if not text or size > KEY_BYTES_MAX or "\0" in text:
        raise PermanentError(
            f"key of {size} bytes; 1 to {KEY_BYTES_MAX} without NUL", code="KEY_INVALID"
        )
    return text


def _row(message: Message, lane: int) -> dict[str, Any]:
    stripe = None
    if message.key is not None:
        stripe, lane = place(message.topic, message.key)
    return {
        "message_id": message.id,
        "message_type": message.type,
        "kind": message.kind,
        "topic": message.topic,
        "key": message.key,
        "lane": lane,
        "stripe": stripe,
        "payload": message.payload,
        "headers": _encode(message.headers).decode(),
    }
