from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from duly.message import HEADERS_MAX, Message, check_headers, header_problem, is_key, is_plain_text
from duly.wire.cloudevents import from_headers, from_structured, to_headers

PREFIXES = ["cloudEvents:", "cloudEvents_", "ce_"]
ATTRIBUTES = [
    "id", "type", "source", "time", "specversion", "partitionkey", "datacontenttype",
    "dulykind", "dulyversion", "dulyreplaces", "dulyundecodable", "subject", "traceparent",
]  # fmt: skip

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}", fullmatch=True)


def plain(bytes_max: int) -> st.SearchStrategy[str]:
    return st.text(min_size=1, max_size=40).filter(lambda t: is_plain_text(t, bytes_max=bytes_max))


headers = st.dictionaries(
    st.from_regex(r"[!-~]{1,30}", fullmatch=True), st.text(max_size=40), max_size=8
).map(
    lambda h: {n: v for n, v in h.items() if not header_problem(n, v) and n not in ATTRIBUTES[:11]}
)
reserved = st.fixed_dictionaries(
    {},
    optional={
        "source": names,
        "dulyversion": st.integers(1, 999_999).map(str),
        "time": st.datetimes().map(lambda t: t.isoformat() + "Z"),
        "dulyreplaces": plain(255),
    },
)
messages = st.builds(
    Message,
    id=plain(255),
    type=names,
    kind=st.sampled_from(["event", "command"]),
    topic=names,
    key=st.none() | st.text(max_size=40).filter(is_key),
    payload=st.binary(max_size=50),
    headers=st.builds(lambda a, b: {**a, **b}, headers, reserved),
)


@given(message=messages, prefix=st.sampled_from(PREFIXES))
def test_round_trip(message, prefix):
    written = to_headers(message, prefix=prefix)
    again = from_headers(
        written, message.payload, prefix=prefix, topic=message.topic, fallback_id="none"
    )
    assert again == message


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.datetimes(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)
hostile_names = st.text() | st.sampled_from(ATTRIBUTES).flatmap(
    lambda a: st.sampled_from([p + a for p in [*PREFIXES, ""]])
)


@given(headers=st.dictionaries(hostile_names, anything), prefix=st.sampled_from(PREFIXES))
def test_hostile_headers_never_crash_and_what_is_read_can_be_sent_on(headers, prefix):
    message = from_headers(headers, b"{}", prefix=prefix, topic="orders", fallback_id="f/1")
    assert message.id
    assert len(message.headers) <= HEADERS_MAX + 5
    own = {n: v for n, v in message.headers.items() if n not in ATTRIBUTES[:11]}
    assert check_headers(own) == own
    once = to_headers(message, prefix=prefix)
    twice = from_headers(once, b"{}", prefix=prefix, topic="orders", fallback_id="f/1")
    assert to_headers(twice, prefix=prefix) == once


@given(
    st.binary(max_size=60)
    | st.text(max_size=60).map(lambda t: b'{"id":"1","data":' + t.encode("utf-8", "replace") + b"}")
)
def test_hostile_bodies_never_crash(body):
    message = from_structured(body, topic="orders", fallback_id="f/1")
    assert message.id in ("f/1", "1")
