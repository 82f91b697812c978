"""Messages as CloudEvents 1.0: binary mode (attributes in headers) both ways, structured mode
inwards.

Owns the names of the attributes and what is legal in them.  Three invariants.  What ``to_headers``
wrote, ``from_headers`` reads back as the same message.  Reading never raises, whatever a foreign
producer sent: a broken message must be held for a person, and a reader that died of it would meet
it again forever.  And nothing is guessed: when an attribute that decides identity, meaning or order
is there but not legal, the whole envelope counts as broken.

Rules for what is read:
    no id                       -> ``fallback_id``, by which the adapter names the message's place;
                                   no id where it cannot
    no type                     -> type "", which no App knows
    no or empty partitionkey    -> no key;  no dulykind -> an event
    illegal specversion, id, type, partitionkey, dulykind, dulyversion, dulyreplaces, source
                                -> id ``fallback_id``, type "", and HEADER_UNDECODABLE says why
    CR, LF or NUL in a header   -> that header is dropped and HEADER_UNDECODABLE says why: somebody
                                   tried something, or is badly broken; the rest is kept
    a time that is no RFC 3339 timestamp; values that are not text, whole numbers or booleans;
    names and values that are not legal as headers of ours; what is past 64 headers or 16 KB
                                -> dropped, silently: they carry no guarantee
    other attributes            -> headers without the prefix, where none of that name came along

Attributes are plain UTF-8 text, as the Kafka and AMQP bindings say; percent-encoding belongs to
HTTP.  An adapter that has a content type of its own sets that to CONTENT_TYPE too.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import cache, lru_cache
from itertools import chain
from typing import Generic, TypeAlias, TypeVar

import msgspec

from duly.kernel.names import is_name
from duly.message import (
    HEADER_BYTES_MAX,
    HEADER_REPLACES,
    HEADER_SOURCE,
    HEADER_TIME,
    HEADER_UNDECODABLE,
    HEADER_VERSION,
    HEADERS_MAX,
    Message,
    header_problem,
    is_key,
    is_plain_text,
)

__all__ = [
    "CONTENT_TYPE",
    "STRUCTURED_CONTENT_TYPE",
    "HeaderWriter",
    "common_of",
    "from_headers",
    "from_structured",
    "like",
    "own_names",
    "to_headers",
]

CONTENT_TYPE = "application/json"
STRUCTURED_CONTENT_TYPE = "application/cloudevents+json"

_OUR_SOURCES = "/duly/"
_TEXT_BYTES_MAX = 255
# The AMQP binding asks readers to accept both; they are of one length.
_AMQP_PREFIXES = ("cloudEvents:", "cloudEvents_")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:\d\d)", re.ASCII)
_VERSION = re.compile(r"[1-9][0-9]{0,5}", re.ASCII)
_SPECVERSION = re.compile(r"1\.[0-9]{1,3}", re.ASCII)
_KIND = re.compile(r"event|command")
_CORE = frozenset(
    {"specversion", "id", "type", "source", "time", "datacontenttype", "partitionkey"}
    | {"dulykind", HEADER_VERSION, HEADER_REPLACES, HEADER_UNDECODABLE}
)
_ILLEGAL = "\ud800"  # stands for a value that cannot be text; no rule admits it
_BREAKS = re.compile("[\r\n\0]")  # what splits headers and lines of a log
_DATA = frozenset({"data", "data_base64"})
_COMMON_MAX = 16
_ALL_TEXT = {str, bytes}


T = TypeVar("T")
_Sort: TypeAlias = tuple[str, str, str, str]  # type, kind, source, version


class _BrokenError(ValueError):
    """An attribute that must not be guessed is illegal."""


# --- out ------------------------------------------------------------------------------------------
def to_headers(message: Message, *, prefix: str) -> dict[str, str]:
    """The headers of a message in binary mode. prefix: ``cloudEvents:`` for AMQP, ``ce_`` for
    Kafka.

    User headers travel without the prefix, traceparent among them.
    """
    out = {name: value for name, value in message.headers.items() if name not in _CORE}
    return out | _shared_headers(_sort_of(message), prefix) | _own_headers(message, prefix)


class HeaderWriter(Generic[T]):
    """Writes what ``to_headers`` says in the form of an adapter, in two parts: what all messages of
    one sort have in common is encoded once.

    encode: headers as the adapter writes them; what it raises is raised by ``write``.
    """

    def __init__(self, prefix: str, encode: Callable[[Mapping[str, str]], T]) -> None:
        self._prefix, self._encode = prefix, encode
        self._shared = lru_cache(maxsize=1024)(self._encode_shared)

    def write(self, message: Message) -> tuple[T, T]:
        """What its sort has in common, and what is its own; no header is in both."""
        names, shared = self._shared(_sort_of(message))
        own = _own_headers(message, self._prefix)
        headers = message.headers
        if not headers.keys() <= _CORE:
            taken = _CORE | names | own.keys()
            own |= {name: value for name, value in headers.items() if name not in taken}
        return shared, self._encode(own)

    def _encode_shared(self, sort: _Sort) -> tuple[frozenset[str], T]:
        headers = _shared_headers(sort, self._prefix)
        return frozenset(headers), self._encode(headers)


def _sort_of(message: Message) -> _Sort:
    headers = message.headers
    source, version = headers.get(HEADER_SOURCE, ""), headers.get(HEADER_VERSION, "")
    return message.type, message.kind, source, version


def _shared_headers(sort: _Sort, prefix: str) -> dict[str, str]:
    type_, kind, source, version = sort
    attributes = {
        "specversion": "1.0",
        "type": type_,
        "source": _OUR_SOURCES + source if not source or is_name(source) else source,
        "datacontenttype": CONTENT_TYPE,
        "dulykind": kind,
        HEADER_VERSION: version,
    }
    return {prefix + name: value for name, value in attributes.items() if value}


def _own_headers(message: Message, prefix: str) -> dict[str, str]:
    id_, moment, key = own_names(prefix)
    headers = message.headers
    own = {id_: message.id}
    if time := headers.get(HEADER_TIME):
        own[moment] = time
    if message.key:
        own[key] = message.key
    if replaces := headers.get(HEADER_REPLACES):
        own[prefix + HEADER_REPLACES] = replaces
    return own


# --- in -------------------------------------------------------------------------------------------
def from_headers(
    headers: Mapping[str, object], payload: bytes, *, prefix: str, topic: str, fallback_id: str
) -> Message:
    """The message of received headers; never raises.

    headers: as the client library gave them. topic: where it was received. fallback_id: stands in
    for a missing id; unique and the same at every redelivery; empty where the broker has no such.
    """
    known = _like_another(headers, payload, prefix=prefix, topic=topic)
    return known or _from_headers(
        headers, payload, prefix=prefix, topic=topic, fallback_id=fallback_id
    )


def _like_another(
    headers: Mapping[str, object], payload: bytes, *, prefix: str, topic: str
) -> Message | None:
    """The message, when it differs from one that was read before in no more than id, time and key:
    then only these are looked at. None when it must be read as a whole.
    """
    names = own_names(prefix)
    common = common_of(headers, prefix=prefix, topic=topic)
    if common is None:
        return None
    id_, moment, key = map(_as_text, map(headers.get, names))
    return like(common, own=(id_, moment, key), payload=payload)


def common_of(headers: Mapping[str, object], *, prefix: str, topic: str) -> Message | None:
    """What all messages have in common that have these headers, whatever their id, time and key;
    None when each must be read as a whole.
    """
    if "traceparent" in headers or not 0 < len(headers) <= _COMMON_MAX:
        return None  # every one is different, or there is nothing, or too much
    if not _ALL_TEXT.issuperset(map(type, headers.values())):
        return None
    names = own_names(prefix)
    return _common(tuple([item for item in headers.items() if item[0] not in names]), prefix, topic)


def like(common: Message, *, own: tuple[object, object, object], payload: bytes) -> Message | None:
    """The message that has its own id, time and key and the rest in common with others; None when
    one of them is not legal.
    """
    id_, moment, key = own
    if not _is_text(id_) or not (key is None or is_key(key)):
        return None
    if not isinstance(moment, str) or not moment or _time(moment) != moment:
        return None
    kept = {**common.headers, HEADER_TIME: moment}
    return Message(id_, common.type, common.kind, common.topic, key, payload, kept)  # type: ignore[arg-type]


@cache
def own_names(prefix: str) -> tuple[str, str, str]:
    """The headers of id, time and key, which every message has for itself."""
    return prefix + "id", prefix + HEADER_TIME, prefix + "partitionkey"


@lru_cache(maxsize=128)
def _common(rest: tuple[tuple[str, object], ...], prefix: str, topic: str) -> Message | None:
    """What messages with these headers have in common; None when the headers are broken, or have
    id, time or key in another spelling.
    """
    headers = dict(rest)
    if any(name in headers for other in _AMQP_PREFIXES for name in own_names(other)):
        return None
    read = _from_headers(headers, b"", prefix=prefix, topic=topic, fallback_id="")
    return None if HEADER_UNDECODABLE in read.headers else read


def _from_headers(
    headers: Mapping[str, object], payload: bytes, *, prefix: str, topic: str, fallback_id: str
) -> Message:
    prefixes = _AMQP_PREFIXES if prefix in _AMQP_PREFIXES else (prefix,)
    attributes: dict[str, str] = {}
    others: dict[str, str] = {}
    for name, text in _texts(headers):
        if name.startswith(prefixes):
            attributes.setdefault(name[len(prefix) :], text)
        else:
            others[name] = text
    return _message(attributes, others, payload=payload, topic=topic, fallback_id=fallback_id)


def from_structured(
    payload: bytes, *, topic: str, fallback_id: str, headers: Mapping[str, object] | None = None
) -> Message:
    """The message of a body of content type ``application/cloudevents+json``; never raises.

    headers: what came beside it; kept like user headers. ``data`` becomes the payload byte for
    byte, ``data_base64`` decoded, neither an empty one.  A body that is no JSON object is broken,
    and kept whole as the payload.
    """
    others = dict(_texts(headers or {}))
    try:
        members = msgspec.json.decode(payload, type=dict[str, msgspec.Raw])
        body = _data(members)
        scalars = {n: msgspec.json.decode(m) for n, m in members.items() if n not in _DATA}
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        reason = f"structured mode: {type(error).__name__}"
        return _broken(reason, payload, topic=topic, fallback_id=fallback_id)
    return _message(
        dict(_texts(scalars)), others, payload=body, topic=topic, fallback_id=fallback_id
    )


def _data(members: Mapping[str, msgspec.Raw]) -> bytes:
    if "data" in members:
        return bytes(members["data"])
    if "data_base64" in members:
        return b64decode(msgspec.json.decode(members["data_base64"], type=str), validate=True)
    return b""


def _texts(values: Mapping[str, object]) -> list[tuple[str, str]]:
    """Names and values as text; None is an absent value, and a name that is no text is left out."""
    return [
        (name, text)
        for name, value in values.items()
        if (text := value if type(value) is str else _as_text(value)) is not None
        and isinstance(name, str)
    ]


def _as_text(value: object) -> str | None:
    if isinstance(value, str):
        return str(value)
    if isinstance(value, bytes):
        return value.decode(errors="surrogateescape")  # what is no UTF-8 fails the text rule later
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value) if abs(value) < 2**63 else _ILLEGAL
    if isinstance(value, datetime):  # AMQP's timestamp; client libraries give UTC without saying so
        return value.isoformat() + ("" if value.tzinfo else "Z")
    return None if value is None else _ILLEGAL


def _message(
    attributes: Mapping[str, str],
    others: Mapping[str, str],
    *,
    payload: bytes,
    topic: str,
    fallback_id: str,
) -> Message:
    try:
        _checked(attributes, "specversion", _SPECVERSION)
        return Message(
            id=_text(attributes, "id") or _plain(fallback_id),
            type=_text(attributes, "type"),
            kind=_checked(attributes, "dulykind", _KIND) or "event",
            topic=topic,
            key=_text(attributes, "partitionkey", legal=is_key) or None,
            payload=payload,
            headers=_reserved(attributes) | _user(attributes, others),
        )
    except _BrokenError as error:
        return _broken(f"illegal {error}", payload, topic=topic, fallback_id=fallback_id)


def _broken(reason: str, payload: bytes, *, topic: str, fallback_id: str) -> Message:
    headers = {HEADER_UNDECODABLE: reason}
    fallback_id = _plain(fallback_id)
    return Message(
        id=fallback_id,
        type="",
        kind="event",
        topic=topic,
        key=None,
        payload=payload,
        headers=headers,
    )


def _plain(fallback_id: str) -> str:
    """The adapter's id, escaped where a foreign producer had a hand in it."""
    if not fallback_id or _is_text(fallback_id):
        return fallback_id
    return ascii(fallback_id)[:_TEXT_BYTES_MAX]


def _is_text(value: object) -> bool:
    return is_plain_text(value, bytes_max=_TEXT_BYTES_MAX)


def _text(
    attributes: Mapping[str, str], name: str, *, legal: Callable[[object], bool] = _is_text
) -> str:
    value = attributes.get(name, "")
    if value and not legal(value):
        raise _BrokenError(name)
    return value


def _checked(attributes: Mapping[str, str], name: str, pattern: re.Pattern[str]) -> str:
    value = attributes.get(name, "")
    if value and not pattern.fullmatch(value):
        raise _BrokenError(name)
    return value


def _reserved(attributes: Mapping[str, str]) -> dict[str, str]:
    source = _text(attributes, "source")
    ours = source.removeprefix(_OUR_SOURCES)
    found = {
        HEADER_VERSION: _checked(attributes, HEADER_VERSION, _VERSION),
        HEADER_SOURCE: ours if not ours or is_name(ours) else source,
        HEADER_TIME: _time(attributes.get(HEADER_TIME, "")),
        HEADER_REPLACES: _text(attributes, HEADER_REPLACES),
    }
    return {name: value for name, value in found.items() if value}


def _time(text: str) -> str:
    """``text`` when it names a moment, a leap second as the second before it; else nothing."""
    if not _TIME.fullmatch(text):
        return ""
    text = text[:17] + "59" + text[19:] if text[17:19] == "60" else text
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return ""
    return text


def _user(attributes: Mapping[str, str], others: Mapping[str, str]) -> dict[str, str]:
    kept: dict[str, str] = {}
    size, broken = 0, ""
    # The sender's own headers first: an extension must not push out the trace context.
    for name, value in chain(others.items(), attributes.items()):
        if name in _CORE or name in kept:
            continue
        if header_problem(name, value):
            if _BREAKS.search(name) or _BREAKS.search(value):
                broken = f"header {ascii(name)[:80]} with CR, LF or NUL"
            continue
        length = len(name) + len(value.encode())
        if len(kept) < HEADERS_MAX and size + length <= HEADER_BYTES_MAX:
            kept[name] = value
            size += length
    return kept | {HEADER_UNDECODABLE: broken} if broken else kept
