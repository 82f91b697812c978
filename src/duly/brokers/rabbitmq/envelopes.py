"""What a received content header says, at the cost of what is new in it.

The headers of one sender's messages differ in a few values: id, time, key, size.  Where these lie
is kept of a header that was read as a whole; in the next one of that length everything around them
is compared as bytes, and only they are read.  The invariant: equal bytes around the same places
mean the same fields, so a message is what reading its header as a whole would have given.  Whatever
is not equal, or not legal, is read as a whole.  Pure; owns no frame and no connection.
"""

from __future__ import annotations

from typing import NamedTuple

from duly.brokers.rabbitmq import frames
from duly.brokers.rabbitmq.publisher import PREFIX
from duly.message import Message
from duly.wire.cloudevents import (
    STRUCTURED_CONTENT_TYPE,
    common_of,
    from_headers,
    from_structured,
    like,
    own_names,
)

__all__ = ["Envelopes"]

_SIZE = (4, 12)  # of the body, in every content header
_LAYOUTS_MAX = 128
_BROKERS_OWN = ("x-delivery-count", "x-acquired-count", "x-death")


class _Layout(NamedTuple):
    """A header of which others differ in a few places. around: what must be equal there. again:
    where the id stands a second time, as a property.
    """

    around: tuple[tuple[slice, bytes], ...]
    id: slice
    again: slice
    time: slice
    key: slice | None
    common: Message

    def read(self, header: bytes, body: bytes) -> Message | None:
        for place, same in self.around:
            if header[place] != same:
                return None
        if header[self.again] != header[self.id]:
            return None
        key = None if self.key is None else _text(header[self.key])
        own = _text(header[self.id]), _text(header[self.time]), key
        return like(self.common, own=own, payload=body)


class Envelopes:
    """Reads the content headers of one topic's messages."""

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self._layouts: dict[int, _Layout] = {}  # by the length of the header

    def read(self, header: bytes, body: bytes) -> Message:
        """The message of a delivery; without an id where its sender gave none. Never raises."""
        layout = self._layouts.get(len(header))
        found = None if layout is None else layout.read(header, body)
        return found or self._read(header, body)

    def _read(self, header: bytes, body: bytes) -> Message:
        topic = self._topic
        try:
            properties = frames.decode_properties(header)
        except ValueError:
            return from_headers({}, body, prefix=PREFIX, topic=topic, fallback_id="")
        headers = properties.headers
        for name in _BROKERS_OWN:
            headers.pop(name, None)
        fallback = properties.message_id
        if properties.content_type.startswith(STRUCTURED_CONTENT_TYPE):
            return from_structured(body, topic=topic, fallback_id=fallback, headers=headers)
        common = common_of(headers, prefix=PREFIX, topic=topic)
        if common is not None:
            self._learn(header, common)
        return from_headers(headers, body, prefix=PREFIX, topic=topic, fallback_id=fallback)

    def _learn(self, header: bytes, common: Message) -> None:
        spans = frames.text_spans(header)
        id_, time, key = map(spans.get, own_names(PREFIX))
        if id_ is None or time is None:
            return
        if len(self._layouts) >= _LAYOUTS_MAX:
            self._layouts.clear()
        places = [_SIZE, id_, time, *([key] if key else []), spans[""]]
        self._layouts[len(header)] = _Layout(
            _around(header, places),
            slice(*id_),
            slice(*spans[""]),
            slice(*time),
            slice(*key) if key else None,
            common,
        )


def _around(header: bytes, places: list[tuple[int, int]]) -> tuple[tuple[slice, bytes], ...]:
    at, found = 0, []
    for start, end in sorted(places):
        found.append(slice(at, start))
        at = end
    found.append(slice(at, len(header)))
    return tuple((place, header[place]) for place in found if place.stop > place.start)


def _text(value: bytes) -> str:
    return str(value, "utf-8", "surrogateescape")
