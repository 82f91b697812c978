"""Messages: the envelope, the two kinds, and the registry of wire names.

Owns what a message *is*; how it is stored belongs to ``databases``, how it travels to ``wire`` and
``brokers``. An **event** states a fact in the past tense and is addressed to nobody: 0..n groups
consume it.  A **command** asks one named receiver for an action: exactly one handler.  The wire
name is written down by the author, never derived from a class or a path, so code can be moved
without breaking what is stored or under way.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, dataclass_transform
from uuid import UUID

import msgspec

from duly.errors import (
    ConfigurationError,
    InvalidHeaderError,
    InvalidKeyError,
    NotSerializableError,
    PayloadTooLargeError,
    UndecodableError,
    UnknownTypeError,
)
from duly.kernel.names import check_name

__all__ = [
    "HEADERS_MAX",
    "HEADER_BYTES_MAX",
    "HEADER_REPLACES",
    "HEADER_SOURCE",
    "HEADER_TIME",
    "HEADER_UNDECODABLE",
    "HEADER_VERSION",
    "KEY_BYTES_MAX",
    "RESERVED_HEADERS",
    "Command",
    "Event",
    "Message",
    "MessageType",
    "Registry",
    "check_headers",
    "check_key",
    "header_problem",
    "is_key",
    "is_plain_text",
    "new_id",
]

HEADER_VERSION = "dulyversion"
HEADER_SOURCE = "source"
HEADER_TIME = "time"
HEADER_REPLACES = "dulyreplaces"
HEADER_UNDECODABLE = (
    "dulyundecodable"  # set by wire on a received message whose envelope is broken: hold it
)
RESERVED_HEADERS = frozenset(
    {HEADER_VERSION, HEADER_SOURCE, HEADER_TIME, HEADER_REPLACES, HEADER_UNDECODABLE}
)

HEADERS_MAX = 64
HEADER_BYTES_MAX = 16_384
KEY_BYTES_MAX = 1_024  # an index entry of PostgreSQL holds 2,704 bytes, and the topic is in it too

_TAILS = 128  # random parts of ids that are asked for at once

_NO_KEY = re.compile("[\x00\ud800-\udfff]")
# C0, DEL, C1, the line separators and half surrogate pairs: what no header or id may carry.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

# What a writer of JSON makes of numbers that are not finite; worth a closer look when found.
# By a letter that all of them have: to look for one byte costs next to nothing.
_NON_FINITE_SIGNS = {
    b"N": (b'"None"', b"NaN"),
    b"I": (b"Inf",),
    b"n": (b"null", b'"nan"', b'inf"'),
}
_LISTS = (list, tuple, set, frozenset)
_NEVER_NON_FINITE = (str, bytes, int, type(None))
# What most messages hold, passed over at once: the search below runs for every null.
_PLAIN = frozenset((*_NEVER_NON_FINITE, bool, datetime, date, UUID))
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")


class Message(msgspec.Struct, frozen=True, gc=False):
    """One message as it is stored and sent.

    id: unique and stable over every retry. type: the wire name. kind: ``event`` or ``command``.
    topic: the topic of an event or the queue of a command. key: what order is kept by, or None.
    payload: JSON bytes. headers: text by text, the reserved ones (version, source, time, replaces)
    among them.
    """

    id: str
    type: str
    kind: str
    topic: str
    key: str | None
    payload: bytes
    headers: dict[str, str]

    @property
    def version(self) -> int:
        """The version of the type, 1 where the sender named none."""
        text = self.headers.get(HEADER_VERSION, "1")
        return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 1

    @property
    def source(self) -> str:
        """The App that published it, empty when unknown."""
        return self.headers.get(HEADER_SOURCE, "")

    @property
    def time(self) -> str:
        """When it was published, RFC 3339 in UTC, empty when unknown."""
        return self.headers.get(HEADER_TIME, "")


# --- ids ------------------------------------------------------------------------------------------
_last_ms = 0
_counter = 0
_tails: Iterator[int] = iter(())
_id_lock = threading.Lock()


def new_id() -> str:
    """A UUIDv7 as 32 hex digits: unique, and growing within a process (RFC 9562, method 1: a 12-bit
    counter).
    """
    global _last_ms, _counter, _tails
    now = time.time_ns() // 1_000_000
    with _id_lock:
        if now > _last_ms:
            _last_ms, _counter = now, 0
        else:
            _counter += 1
            if _counter > 0xFFF:
                _last_ms, _counter = _last_ms + 1, 0
        ms, counter = _last_ms, _counter
        tail = next(_tails, None)
        if tail is None:  # a call of the system costs as much as the rest: for many at once
            _tails = iter(struct.unpack(f"{_TAILS}Q", os.urandom(8 * _TAILS)))
            tail = next(_tails)
    return f"{ms:012x}7{counter:03x}{tail & 0x3FFF_FFFF_FFFF_FFFF | 0x8000_0000_0000_0000:016x}"


def _forget_tails() -> None:
    """In a child process: those that are left are its parent's, and so is who holds the lock."""
    global _tails, _id_lock
    _tails, _id_lock = iter(()), threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_tails)


# --- the two kinds --------------------------------------------------------------------------------
class MessageType(NamedTuple):
    """What the registry knows of a type. handled_by: the service that handles a command, where it
    is not this App. tombstone: its payload is empty, and its key says what is gone.
    """

    cls: type
    name: str
    version: int
    kind: str
    topic: str
    handled_by: str | None = None
    tombstone: bool = False


class _MessageMeta(msgspec.StructMeta):
    """Takes ``name``, ``version``, ``topic`` / ``queue`` and the like as class keywords and keeps
    them on the class.
    """

    def __new__(
        mcls,
        clsname: str,
        bases: tuple[type, ...],
        namespace: dict[str, Any],
        /,
        *,
        name: str | None = None,
        version: int = 1,
        topic: str | None = None,
        queue: str | None = None,
        handled_by: str | None = None,
        tombstone: bool = False,
        **struct: Any,
    ) -> Any:
        struct.setdefault("frozen", True)
        struct.setdefault("kw_only", True)
        cls: Any = super().__new__(mcls, clsname, bases, namespace, **struct)
        kind = getattr(cls, "_duly_kind", "")
        if tombstone and (kind != "event" or cls.__struct_fields__):
            raise ConfigurationError(f"{clsname}: a tombstone is an event without fields")
        if name is not None:
            cls._duly_type = _describe(
                cls,
                name,
                version=version,
                kind=kind,
                where=(topic, queue),
                handled_by=handled_by,
            )._replace(tombstone=tombstone)
        elif kind and "_duly_kind" not in namespace:
            raise ConfigurationError(
                f"{clsname} needs a wire name: class {clsname}({kind.title()}, name='...', ...)"
            )
        return cls


def _describe(
    cls: type,
    name: str,
    *,
    version: int,
    kind: str,
    where: tuple[str | None, str | None],
    handled_by: str | None = None,
) -> MessageType:
    if kind not in ("event", "command"):
        raise ConfigurationError(f"{ascii(name)[:140]}: kind must be 'event' or 'command'")
    topic, queue = where
    place = topic if kind == "event" else queue
    if place is None or (queue if kind == "event" else topic) is not None:
        word = "topic" if kind == "event" else "queue"
        raise ConfigurationError(f"{kind} {name!r} needs {word}='...' and nothing else of its kind")
    if type(version) is not int or not 1 <= version <= 999_999:
        raise ConfigurationError(
            f"{kind} {name!r}: version must be a whole number from 1 to 999999"
        )
    if handled_by is not None and kind == "event":
        raise ConfigurationError(f"event {name!r}: an event is handled by whoever subscribes")
    return MessageType(
        cls,
        check_name(name, "message type"),
        version,
        kind,
        check_name(place, "topic"),
        None if handled_by is None else check_name(handled_by, "handled_by"),
    )


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Event(msgspec.Struct, frozen=True, kw_only=True, metaclass=_MessageMeta):
    """A fact, in the past tense, addressed to nobody.

    ``class OrderPlaced(Event, name="order.placed", topic="orders")``.
    name: the wire name. version: of its fields, default 1. topic: where it is published. tombstone:
    it has no fields, its payload is empty and it needs a key: on a compacted topic it removes what
    is there under that key. Fields are declared as in a dataclass; instances are frozen and take
    keywords only.
    """

    _duly_kind: ClassVar[str] = "event"
    _duly_type: ClassVar[MessageType]

    if TYPE_CHECKING:  # the metaclass takes these; type checkers look here

        def __init_subclass__(
            cls, *, name: str, topic: str, version: int = 1, tombstone: bool = False
        ) -> None: ...


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Command(msgspec.Struct, frozen=True, kw_only=True, metaclass=_MessageMeta):
    """A request to one receiver.

    ``class ChargeCard(Command, name="billing.charge", queue="billing")``.
    queue: the one queue it goes to. handled_by: the service that handles it, where that is not this
    App.
    """

    _duly_kind: ClassVar[str] = "command"
    _duly_type: ClassVar[MessageType]

    if TYPE_CHECKING:  # the metaclass takes these; type checkers look here

        def __init_subclass__(
            cls, *, name: str, queue: str, version: int = 1, handled_by: str | None = None
        ) -> None: ...


# --- registry -------------------------------------------------------------------------------------
class Registry:
    """The message types of one App, by class and by (wire name, version)."""

    def __init__(self, *, payload_bytes_max: int = 1_000_000) -> None:
        self._by_class: dict[type, MessageType] = {}
        self._by_name: dict[str, dict[int, MessageType]] = {}
        self._encoder = msgspec.json.Encoder(enc_hook=_encode_hook, decimal_format="string")
        self._readers: dict[type, _Reader] = {}
        self.payload_bytes_max = payload_bytes_max

    def add(self, spec: MessageType) -> MessageType:
        """Register a type; the same one twice is fine.

        Raises ConfigurationError for two classes of one name, two names of one class, two kinds.
        """
        versions = self._by_name.get(spec.name, {})
        known = versions.get(spec.version)
        if known is not None and known.cls is not spec.cls:
            raise ConfigurationError(
                f"{spec.name!r} version {spec.version} names two classes: "
                f"{known.cls.__qualname__} and {spec.cls.__qualname__}",
                code="DUPLICATE_WIRE_NAME",
            )
        if self._by_class.get(spec.cls, spec) != spec:
            raise ConfigurationError(f"{spec.cls.__qualname__} is declared in two ways")
        if any(other.kind != spec.kind for other in versions.values()):
            raise ConfigurationError(f"{spec.name!r} is both an event and a command")
        self._by_name[spec.name] = {**versions, spec.version: spec}
        self._by_class[spec.cls] = spec
        return spec

    def declare(
        self, cls: type, name: str, *, kind: str, topic: str, version: int = 1
    ) -> MessageType:
        """Register a class that is not ours: pydantic, dataclass, attrs, msgspec."""
        where = (topic, None) if kind == "event" else (None, topic)
        return self.add(_describe(cls, name, version=version, kind=kind, where=where))

    def of(self, cls: type) -> MessageType:
        """The type of a class. Raises UnknownTypeError."""
        spec = self._by_class.get(cls)
        if spec is None:
            own = cls.__dict__.get("_duly_type")
            if own is None:
                raise UnknownTypeError(
                    f"{cls.__module__}.{cls.__qualname__} is no event or command"
                )
            spec = self.add(own)
        return spec

    def find(self, name: str, version: int) -> MessageType | None:
        """The type of a received name: this version, else the newest older one; None for an unknown
        or newer one.
        """
        versions = self._by_name.get(name, {})
        older = [v for v in versions if v <= version]
        return versions[max(older)] if older and version <= max(versions) else None

    def names(self) -> Iterable[MessageType]:
        """Every registered type."""
        return [spec for versions in self._by_name.values() for spec in versions.values()]

    def encode(self, value: Any) -> bytes:
        """The JSON bytes of a message object.

        Raises NotSerializableError (NaN, infinity, cycles, unknown classes, lone surrogates),
        PayloadTooLargeError.
        """
        try:
            if hasattr(type(value), "model_dump_json"):
                payload: bytes = value.model_dump_json().encode()
            else:
                payload = self._encoder.encode(value)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise NotSerializableError(
                f"{type(value).__qualname__}: {_first_line(error)}"
            ) from error
        if not _all_plain(value) and _may_be_non_finite(payload) and _has_non_finite(value):
            raise NotSerializableError(
                f"{type(value).__qualname__}: NaN or infinity has no JSON form"
            )
        if len(payload) > self.payload_bytes_max:
            raise PayloadTooLargeError(f"{len(payload)} bytes, the cap is {self.payload_bytes_max}")
        return payload

    def decode(self, spec: MessageType, payload: bytes) -> Any:
        """The object of received bytes. Raises UndecodableError, PayloadTooLargeError."""
        if len(payload) > self.payload_bytes_max:
            raise PayloadTooLargeError(f"{len(payload)} bytes, the cap is {self.payload_bytes_max}")
        if spec.tombstone and not payload:
            return spec.cls()
        try:
            reader = self._readers.get(spec.cls)
            if reader is None:
                reader = self._readers[spec.cls] = _reader(spec.cls)
            value = reader.read(payload)
        except (msgspec.MsgspecError, TypeError, ValueError, RecursionError) as error:
            # Not `from error`: validators quote the values they refuse, and those are the payload.
            text = _QUOTED.sub("'...'", _first_line(error))
            raise UndecodableError(f"{spec.name}: {text}") from None
        if reader.suspect(payload) and _has_non_finite(value):
            raise UndecodableError(f"{spec.name}: NaN or infinity")
        return value


class _Reader(NamedTuple):
    """How a class is read. suspect: whether the value read from these bytes may hold NaN."""

    read: Callable[[bytes], Any]
    suspect: Callable[[bytes], bool]


def _reader(cls: type) -> _Reader:
    """The reader of a class. Raises TypeError for one that msgspec cannot read."""
    validate: Callable[[bytes], Any] | None = getattr(cls, "model_validate_json", None)
    if validate is not None:  # pydantic reads NaN, and 1e400 as infinity
        return _Reader(validate, lambda _payload: True)
    # msgspec reads "nan" only as a Decimal, and no infinity else.
    read: Callable[[bytes], Any] = msgspec.json.Decoder(cls).decode
    return _Reader(read, _names_non_finite if _holds_decimal(cls) else lambda _payload: False)


def _names_non_finite(payload: bytes) -> bool:
    lowered = payload.lower()
    return b"nan" in lowered or b"inf" in lowered


def _holds_decimal(cls: type) -> bool:
    """Whether objects of the class may have a Decimal somewhere, by its annotations."""
    todo: list[Any] = [msgspec.inspect.type_info(cls)]
    seen: dict[int, Any] = {}  # recursive types; kept, so that no id is given out twice
    while todo:
        item = todo.pop()
        if isinstance(item, msgspec.inspect.DecimalType):
            return True
        if isinstance(item, tuple | msgspec.Struct) and id(item) not in seen:
            seen[id(item)] = item
            todo.extend(_parts(item))
    return False


def check_key(key: str) -> str:
    """Return ``key`` when order can be kept by it. Raises InvalidKeyError."""
    if not is_key(key):
        raise InvalidKeyError(f"key {ascii(key)[:80]}")
    return key


def is_key(value: object) -> bool:
    """Whether ``value`` is text of 1 to KEY_BYTES_MAX bytes of UTF-8, without NUL."""
    if not isinstance(value, str) or not 1 <= len(value) <= KEY_BYTES_MAX:
        return False
    if value.isascii():
        return "\0" not in value
    return not _NO_KEY.search(value) and len(value.encode()) <= KEY_BYTES_MAX


def check_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """A copy of the user's headers. Raises InvalidHeaderError for reserved names, control
    characters, too many.
    """
    if len(headers) > HEADERS_MAX:
        raise InvalidHeaderError(f"{len(headers)} headers, at most {HEADERS_MAX}")
    size = 0
    for name, value in headers.items():
        if problem := header_problem(name, value):
            raise InvalidHeaderError(f"header {ascii(name)[:80]}: {problem}")
        size += len(name) + len(value.encode())
    if size > HEADER_BYTES_MAX:
        raise InvalidHeaderError(f"{size} bytes of headers, at most {HEADER_BYTES_MAX}")
    return dict(headers)


def header_problem(name: object, value: object) -> str:
    """Why a user's header cannot be sent; empty when it can."""
    if not isinstance(name, str) or not isinstance(value, str):
        return "name and value must be text"
    if not name or not name.isascii() or not name.isprintable() or " " in name or len(name) > 100:
        return "the name is not 1 to 100 printable ASCII characters without spaces"
    if name in RESERVED_HEADERS or name.lower().startswith(("ce_", "ce-", "cloudevents")):
        return "the name is reserved"
    if value and not is_plain_text(value, bytes_max=HEADER_BYTES_MAX):
        return "the value has control characters, lone surrogates or too many bytes"
    return ""


def is_plain_text(value: object, *, bytes_max: int) -> bool:
    """Whether ``value`` is text of 1 to ``bytes_max`` bytes of UTF-8 without control characters."""
    if not isinstance(value, str) or not value or len(value) > bytes_max:
        return False
    if value.isascii():  # the usual case; what is not printable there is C0 and DEL
        return value.isprintable()
    return not _CONTROL.search(value) and len(value.encode()) <= bytes_max


def _encode_hook(value: Any) -> Any:
    if dump := getattr(value, "model_dump", None):  # a pydantic model inside ours
        return dump(mode="json")
    raise TypeError(f"{type(value).__qualname__} has no JSON form")


def _all_plain(value: Any) -> bool:
    """Whether this is a Struct of plain values: the usual case, for less than a search costs."""
    names = getattr(type(value), "__struct_fields__", None)
    return names is not None and _PLAIN.issuperset([type(getattr(value, n)) for n in names])


def _may_be_non_finite(payload: bytes) -> bool:
    """Whether a sign of such a number is in there."""
    for letter, signs in _NON_FINITE_SIGNS.items():
        if letter in payload:
            for sign in signs:
                if sign in payload:
                    return True
    return False


def _has_non_finite(value: Any) -> bool:
    """Whether a number in here is NaN or infinite."""
    todo = [value]
    seen: set[int] = set()  # a field that is left out of the JSON may hold a cycle
    while todo:
        item = todo.pop()
        if isinstance(item, Decimal):  # math.isfinite takes one of 1e400 for infinite
            if not item.is_finite():
                return True
        elif isinstance(item, float):
            if not math.isfinite(item):
                return True
        elif not isinstance(item, _NEVER_NON_FINITE) and id(item) not in seen:
            seen.add(id(item))
            parts = _parts(item)
            if not _PLAIN.issuperset(map(type, parts)):
                todo += [part for part in parts if type(part) not in _PLAIN]
    return False


def _parts(item: Any) -> Iterable[Any]:
    if isinstance(item, _LISTS):
        return item
    if type(item) is dict or isinstance(item, Mapping):  # to ask for an abstract class takes long
        return [*item.keys(), *item.values()]
    return _field_values(item)


def _field_values(value: Any) -> list[Any]:
    cls = type(value)
    names: Iterable[str] = getattr(cls, "__struct_fields__", ())
    if dataclasses.is_dataclass(cls):
        names = [f.name for f in dataclasses.fields(cls)]
    elif hasattr(cls, "__attrs_attrs__"):
        names = [a.name for a in cls.__attrs_attrs__]
    elif hasattr(cls, "model_fields"):
        names = [*cls.model_fields, "model_extra"]
    return [getattr(value, name, None) for name in names]


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
