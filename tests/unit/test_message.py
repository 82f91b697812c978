from __future__ import annotations

import dataclasses
import enum
import os
import threading
import time
import traceback
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import attrs
import msgspec
import pydantic
import pytest

from duly import message as module
from duly.errors import (
    ConfigurationError,
    InvalidHeaderError,
    InvalidKeyError,
    InvalidNameError,
    NotSerializableError,
    PayloadTooLargeError,
    UndecodableError,
    UnknownTypeError,
)
from duly.message import (
    HEADER_BYTES_MAX,
    HEADERS_MAX,
    KEY_BYTES_MAX,
    RESERVED_HEADERS,
    Command,
    Event,
    Message,
    Registry,
    check_headers,
    check_key,
    new_id,
)


class OrderPlaced(Event, name="order.placed", version=2, topic="orders"):
    order_id: int
    total: Decimal
    note: str = ""


class ChargeCard(Command, name="billing.charge_card", queue="billing", handled_by="billing"):
    order_id: int


class Anything(Event, name="anything", topic="things"):
    value: Any


# --- ids ------------------------------------------------------------------------------------------
def test_ids_are_uuids_of_version_7_that_grow():
    ids = [new_id() for _ in range(20_000)]
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)
    parsed = UUID(ids[0])
    assert (parsed.version, parsed.variant) == (7, "specified in RFC 4122")
    assert ids[0] == parsed.hex
    assert abs(int(ids[-1][:12], 16) / 1000 - time.time()) < 60


def test_ids_are_unique_and_grow_in_every_thread():
    made: list[list[str]] = [[] for _ in range(8)]
    start = threading.Barrier(8)

    def make(into: list[str]) -> None:
        start.wait(10)
        into.extend(new_id() for _ in range(5_000))

    threads = [threading.Thread(target=make, args=(into,)) for into in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert all(len(ids) == 5_000 and ids == sorted(ids) for ids in made)
    assert len({i for ids in made for i in ids}) == 40_000


def test_ids_grow_while_the_clock_stands_still_or_goes_back(monkeypatch):
    now = time.time_ns()
    readings = iter([now, *[now] * 5_000, *[now - 10**12] * 5_000])
    monkeypatch.setattr(module.time, "time_ns", lambda: next(readings))
    ids = [new_id() for _ in range(10_001)]
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
def test_a_forked_child_does_not_make_the_ids_of_its_parent(monkeypatch):
    new_id()
    now = time.time_ns()
    monkeypatch.setattr(module.time, "time_ns", lambda: now)  # the same moment for both
    there, here = os.pipe()
    child = os.fork()
    if not child:
        os.write(here, " ".join(new_id() for _ in range(50)).encode())
        os._exit(0)
    os.close(here)
    with os.fdopen(there) as said:
        theirs = said.read().split()
    os.waitpid(child, 0)
    ours = [new_id() for _ in range(50)]
    assert [one[:16] for one in ours] == [one[:16] for one in theirs]
    assert len({one[16:] for one in ours + theirs}) == 100


# --- the two kinds --------------------------------------------------------------------------------
def test_what_the_registry_knows():
    registry = Registry()
    spec = registry.of(OrderPlaced)
    assert spec == (OrderPlaced, "order.placed", 2, "event", "orders", None, False)
    command = registry.of(ChargeCard)
    assert (command.kind, command.topic, command.handled_by) == ("command", "billing", "billing")
    assert list(registry.names()) == [spec, command]


def test_messages_are_frozen_and_take_keywords():
    event = OrderPlaced(order_id=1, total=Decimal("1.50"))
    with pytest.raises(AttributeError):
        event.order_id = 2  # type: ignore[misc]
    with pytest.raises(TypeError):
        OrderPlaced(1, Decimal(1))  # type: ignore[misc]


@pytest.mark.parametrize(
    "keywords",
    [
        {"name": "a"},
        {"name": "a", "queue": "q"},
        {"name": "a", "topic": "t", "queue": "q"},
        {"name": "a", "topic": "t", "version": 0},
        {"name": "a", "topic": "t", "version": 1_000_000},
        {"name": "a", "topic": "t", "version": True},
        {"name": "a", "topic": "t", "version": "1"},
        {"name": "a", "topic": "t", "handled_by": "billing"},
        {"topic": "t"},
        {},
    ],
)
def test_wrong_declarations_of_events(keywords):
    with pytest.raises(ConfigurationError):
        type(Event)("Bad", (Event,), {}, **keywords)


def test_a_tombstone_is_an_event_of_no_bytes():
    class Gone(Event, name="order.gone", topic="orders", tombstone=True):
        pass

    registry = Registry()
    assert registry.of(Gone).tombstone
    assert not registry.of(OrderPlaced).tombstone
    assert registry.decode(registry.of(Gone), b"") == Gone()
    with pytest.raises(UndecodableError):
        registry.decode(registry.of(OrderPlaced), b"")


@pytest.mark.parametrize("kind", [Event, Command])
def test_wrong_tombstones(kind):
    fields = {"__annotations__": {"order_id": int}} if kind is Event else {}
    keywords = {"name": "a", "topic" if kind is Event else "queue": "t", "tombstone": True}
    with pytest.raises(ConfigurationError, match="without fields"):
        type(kind)("Bad", (kind,), fields, **keywords)


@pytest.mark.parametrize("keywords", [{"name": "a"}, {"name": "a", "topic": "t"}, {}])
def test_wrong_declarations_of_commands(keywords):
    with pytest.raises(ConfigurationError):
        type(Command)("Bad", (Command,), {}, **keywords)


@pytest.mark.parametrize(
    "bad", ["", "a b", "name\n", "\u0430", "a\u202eb", "a\0", "%s", "../x", "*", "#", "x" * 121, 5]
)
def test_wire_names_and_topics_obey_the_rule(bad):
    with pytest.raises(InvalidNameError):
        type(Event)("Bad", (Event,), {}, name=bad, topic="t")
    with pytest.raises(InvalidNameError):
        type(Event)("Bad", (Event,), {}, name="a", topic=bad)
    with pytest.raises(InvalidNameError):
        type(Command)("Bad", (Command,), {}, name="a", queue="q", handled_by=bad)


def test_a_wire_name_belongs_to_one_class():
    registry = Registry()
    registry.of(OrderPlaced)
    registry.of(OrderPlaced)

    class Another(Event, name="order.placed", version=2, topic="orders"):
        pass

    with pytest.raises(ConfigurationError, match="names two classes") as caught:
        registry.of(Another)
    assert caught.value.code == "DUPLICATE_WIRE_NAME"


def test_a_class_has_one_wire_name():
    registry = Registry()

    @dataclasses.dataclass
    class Plain:
        a: int

    registry.declare(Plain, "plain", kind="event", topic="t")
    registry.declare(Plain, "plain", kind="event", topic="t")
    for name, topic, version in (("other", "t", 1), ("plain", "u", 1), ("plain", "t", 2)):
        with pytest.raises(ConfigurationError, match="declared in two ways"):
            registry.declare(Plain, name, kind="event", topic=topic, version=version)


def test_one_name_has_one_kind_in_all_versions():
    registry = Registry()
    registry.of(OrderPlaced)
    with pytest.raises(ConfigurationError, match="both an event and a command"):
        registry.declare(
            type("A", (), {}), "order.placed", kind="command", topic="orders", version=3
        )


def test_there_are_two_kinds():
    with pytest.raises(ConfigurationError, match="kind must be"):
        Registry().declare(type("A", (), {}), "a", kind="query", topic="t")


def test_a_subclass_without_a_name_is_no_message():
    with pytest.raises(ConfigurationError, match="wire name"):

        class Special(OrderPlaced):
            extra: int = 0


@pytest.mark.parametrize("cls", [int, dict, Event, Command, Message])
def test_other_classes_are_unknown(cls):
    with pytest.raises(UnknownTypeError):
        Registry().of(cls)


def test_finding_a_version():
    registry = Registry()
    first = registry.declare(type("A", (), {}), "a", kind="event", topic="t", version=1)
    third = registry.declare(type("A3", (), {}), "a", kind="event", topic="t", version=3)
    assert registry.find("a", 1) is first
    assert registry.find("a", 2) is first
    assert registry.find("a", 3) is third
    assert registry.find("a", 4) is None
    assert registry.find("a", 0) is None
    assert registry.find("b", 1) is None
    assert registry.find("", 1) is None


# --- encode and decode ----------------------------------------------------------------------------
@dataclasses.dataclass
class Data:
    value: Any
    at: datetime | None = None


@attrs.define
class Attr:
    value: Any
    at: datetime | None = None


class Pydantic(pydantic.BaseModel):
    value: Any
    at: datetime | None = None


class Struct(msgspec.Struct):
    value: Any
    at: datetime | None = None


FAMILIES = [Data, Attr, Pydantic, Struct]


def declared(cls: type) -> tuple[Registry, Any]:
    registry = Registry()
    return registry, registry.declare(cls, "x", kind="event", topic="t")


def test_round_trip():
    registry = Registry()
    event = OrderPlaced(order_id=2**53 + 1, total=Decimal("0.10"), note="größe \U0001f600\n")
    assert registry.decode(registry.of(OrderPlaced), registry.encode(event)) == event
    assert b'"0.10"' in registry.encode(event)  # a decimal keeps its digits


@pytest.mark.parametrize("cls", FAMILIES)
def test_classes_of_others_round_trip(cls):
    registry, spec = declared(cls)
    value = cls(value={"a": [1, "x", None, 2.5]}, at=datetime(2026, 1, 2, tzinfo=UTC))
    assert registry.decode(spec, registry.encode(value)) == value


class Colour(enum.Enum):
    RED = "red"


@pytest.mark.parametrize("cls", FAMILIES)
@pytest.mark.parametrize(
    "value",
    [
        date(2026, 1, 2),
        UUID(int=1),
        Colour.RED,
        (1, 2),
        Struct(value=1),
        Pydantic(value=1),
        Data(1),
    ],
)
def test_usual_values_are_serialisable_in_every_family(cls, value):
    registry, spec = declared(cls)
    if cls is Pydantic and isinstance(value, Struct):  # pydantic knows no struct and says so
        with pytest.raises(NotSerializableError):
            registry.encode(cls(value=value))
    else:
        assert registry.decode(spec, registry.encode(cls(value=value))).value is not None


NOW = datetime(2026, 1, 2, tzinfo=UTC)
NAN = [
    float("nan"),
    float("inf"),
    float("-inf"),
    Decimal("NaN"),
    Decimal("Infinity"),
    Decimal("sNaN"),
]


@pytest.mark.parametrize("cls", FAMILIES)
@pytest.mark.parametrize("number", NAN, ids=str)
@pytest.mark.parametrize(
    "wrap",
    [
        lambda n: n,
        lambda n: [1, [n]],
        lambda n: {"a": {"b": (n,)}},
        lambda n: [n] if "sNaN" in str(n) else {1, n},  # a signalling NaN cannot be hashed
        lambda n: Data(n, NOW),
        lambda n: Attr(n, NOW),
        lambda n: Pydantic(value=n, at=NOW),
        lambda n: Struct(value=[Struct(value=n, at=NOW)], at=NOW),
    ],
    ids=["bare", "list", "dict", "set", "dataclass", "attrs", "pydantic", "struct"],
)
def test_nan_and_infinity_are_refused_wherever_they_hide(cls, number, wrap):
    registry, _ = declared(cls)
    with pytest.raises(NotSerializableError) as caught:
        registry.encode(cls(value=wrap(number), at=NOW))  # no None: its null is a sign too
    assert caught.value.code == "NOT_SERIALIZABLE"


@pytest.mark.parametrize("cls", FAMILIES)
@pytest.mark.parametrize("number", NAN[:5], ids=str)  # a signalling NaN is no key
def test_nan_as_a_key_is_refused(cls, number):
    registry, _ = declared(cls)
    with pytest.raises(NotSerializableError):
        registry.encode(cls(value={number: 1}, at=NOW))


@pytest.mark.parametrize("cls", FAMILIES)
def test_a_decimal_beyond_all_floats_is_a_number(cls):
    registry, spec = declared(cls)
    payload = registry.encode(cls(value=[Decimal("1e400"), None]))
    assert Decimal(registry.decode(spec, payload).value[0]) == Decimal("1e400")


@pytest.mark.parametrize("cls", FAMILIES)
def test_none_is_fine_and_the_text_null_is_no_nan(cls):
    registry, spec = declared(cls)
    assert registry.decode(spec, registry.encode(cls(value=[None, "null"]))).value == [None, "null"]


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def cycle() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize("cls", FAMILIES)
@pytest.mark.parametrize(
    "value",
    [
        object(),
        {1: object()},
        lambda: 0,
        "\ud800",
        {"\udfff": 1},
        ["x\udc80"],
        nested(100_000),
        cycle(),
    ],
    ids=["object", "in-dict", "function", "surrogate", "surrogate-key", "half", "deep", "cycle"],
)
def test_what_has_no_json_form_is_refused(cls, value):
    registry, _ = declared(cls)
    with pytest.raises(NotSerializableError) as caught:
        registry.encode(cls(value=value))
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("cls", FAMILIES)
def test_nan_below_many_levels_is_refused_or_too_deep(cls):
    value: Any = float("nan")
    for _ in range(400):
        value = [value]
    registry, _ = declared(cls)
    with pytest.raises(NotSerializableError):
        registry.encode(cls(value=value))


def test_the_cap_counts_bytes():
    registry = Registry(payload_bytes_max=100)
    spec = registry.of(Anything)
    room = 100 - len(registry.encode(Anything(value="")))
    payload = registry.encode(Anything(value="x" * room))
    assert len(payload) == 100
    assert registry.decode(spec, payload).value == "x" * room
    with pytest.raises(PayloadTooLargeError):
        registry.encode(Anything(value="x" * (room + 1)))
    with pytest.raises(PayloadTooLargeError):
        registry.encode(Anything(value="é" * room))
    with pytest.raises(PayloadTooLargeError):
        registry.decode(spec, payload + b" ")


DEEP = b'{"value":' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@pytest.mark.parametrize("cls", FAMILIES)
@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"{",
        b'{"value":NaN}',
        b'{"value":Infinity}',
        b'{"value":"\xff"}',
        b'{"value":"\xed\xa0\x80"}',
        b'{"value":"\\ud800"}',
        b'{"value":1,"at":"yesterday"}',
        b'{"value":1,"at":"9999-99-99T00:00:00Z"}',
        b"\x80\x04\x95\x10\x00\x00\x00",
        b'{"value":1}garbage',
        DEEP,
        b'{"value":' + b"[" * 100_000,
    ],
    ids=lambda p: ascii(p)[2:22],
)
def test_hostile_bytes_are_undecodable(cls, payload):
    registry, spec = declared(cls)
    with pytest.raises(UndecodableError) as caught:
        registry.decode(spec, payload)
    assert len(str(caught.value)) < 600


SECRET = b'{"value":"s3cr3tc4n4ry","at":"s3cr3tc4n4ry"}'


class Painted(msgspec.Struct):
    value: Colour


@pytest.mark.parametrize("cls", [*FAMILIES, Painted])
def test_an_error_does_not_repeat_the_payload(cls):
    registry, spec = declared(cls)
    with pytest.raises(UndecodableError) as caught:
        registry.decode(spec, SECRET)
    assert "s3cr3tc4n4ry" not in "".join(traceback.format_exception(caught.value))


class Optional(pydantic.BaseModel):
    value: float | None = None
    at: Decimal | None = None


class Extra(pydantic.BaseModel):
    model_config = {"extra": "allow"}


@pytest.mark.parametrize(
    ("cls", "payload"),
    [
        (Optional, b'{"value":1e400}'),
        (Optional, b'{"value":-1e400}'),
        (Optional, b'{"value":"nan"}'),
        (Optional, b'{"value":"inf"}'),
        (Extra, b'{"other":[NaN]}'),
        (OrderPlaced, b'{"order_id":1,"total":"NaN"}'),
        (OrderPlaced, b'{"order_id":1,"total":"-Infinity"}'),
        (OrderPlaced, b'{"order_id":1,"total":"inf"}'),
        (OrderPlaced, b'{"order_id":1,"total":"nan"}'),
    ],
)
def test_nan_and_infinity_do_not_come_in_either(cls, payload):
    registry = Registry()
    spec = (
        registry.of(cls)
        if cls is OrderPlaced
        else registry.declare(cls, "x", kind="event", topic="t")
    )
    with pytest.raises(UndecodableError):
        registry.decode(spec, payload)


class Shy(pydantic.BaseModel):
    value: Any = None
    myself: Any = pydantic.Field(default=None, exclude=True)


def test_a_cycle_in_a_field_that_is_left_out_does_no_harm():
    registry, _ = declared(Shy)
    shy = Shy()
    shy.myself = [shy]
    assert registry.encode(shy) == b'{"value":null}'


def test_nan_in_an_extra_field_is_refused():
    registry, _ = declared(Extra)
    with pytest.raises(NotSerializableError):
        registry.encode(Extra(other=float("nan")))


def test_a_decoded_number_too_large_for_its_type_is_refused():
    registry = Registry()
    with pytest.raises(UndecodableError):
        registry.decode(registry.of(OrderPlaced), b'{"order_id":1e400,"total":"1"}')


def test_unknown_fields_are_ignored_so_that_a_producer_may_add_some():
    registry = Registry()
    payload = b'{"order_id":1,"total":"1","added_later":[1]}'
    assert registry.decode(registry.of(OrderPlaced), payload).order_id == 1


# --- headers, keys, the envelope ------------------------------------------------------------------
def test_good_headers_come_back_as_a_copy():
    given = {"tenant": "größe 7", "traceparent": "00-a", "x": ""}
    checked = check_headers(given)
    assert checked == given
    assert checked is not given


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[(name, "v") for name in sorted(RESERVED_HEADERS)],
        ("ce_id", "v"),
        ("CE-type", "v"),
        ("cloudEvents:id", "v"),
        ("", "v"),
        ("a b", "v"),
        ("a\n", "v"),
        ("ä", "v"),
        ("n" * 101, "v"),
        ("a", "v\r\nX: y"),
        ("a", "\n"),
        ("a", "\0"),
        ("a", "\x1b[31m"),
        ("a", "\x85"),
        ("a", "\u2028"),
        ("a", "\ud800"),
        ("a", "x" * (HEADER_BYTES_MAX + 1)),
        ("a", "é" * HEADER_BYTES_MAX),
        ("a", 5),
        (5, "v"),
        ("a", None),
        ("a", b"v"),
    ],
)
def test_bad_headers(name, value):
    with pytest.raises(InvalidHeaderError) as caught:
        check_headers({name: value})
    assert caught.value.detail.isascii()
    assert len(caught.value.detail) < 250


def test_headers_are_bounded_in_number_and_size():
    assert len(check_headers({f"h{n}": "v" for n in range(HEADERS_MAX)})) == HEADERS_MAX
    with pytest.raises(InvalidHeaderError, match="10000 headers"):
        check_headers({f"h{n}": "v" for n in range(10_000)})
    with pytest.raises(InvalidHeaderError, match="bytes of headers"):
        check_headers({f"h{n}": "v" * 500 for n in range(40)})


@pytest.mark.parametrize(
    "key", ["1", "größe", "a\nb", "x" * KEY_BYTES_MAX, "\u3000", "../x", "'", " "]
)
def test_good_keys(key):
    assert check_key(key) == key


@pytest.mark.parametrize("key", ["", "a\0b", "\0", "\ud800", "x" * 1_025, "é" * 600, None, 5, b"k"])
def test_bad_keys(key):
    with pytest.raises(InvalidKeyError):
        check_key(key)


@pytest.mark.parametrize(
    ("text", "version"),
    [("3", 3), ("", 1), ("x", 1), ("-1", 1), ("٣", 1), ("9" * 5_000, 1), ("999999", 999_999)],
)
def test_the_version_of_an_envelope(text, version):
    headers = {"dulyversion": text}
    assert Message("1", "a", "event", "t", None, b"", headers).version == version


def test_the_other_properties_of_an_envelope():
    bare = Message("1", "a", "event", "t", None, b"", {})
    assert (bare.version, bare.source, bare.time) == (1, "", "")
    full = Message(
        "1", "a", "event", "t", None, b"", {"source": "shop", "time": "2026-01-02T00:00:00Z"}
    )
    assert (full.source, full.time) == ("shop", "2026-01-02T00:00:00Z")


class Loose(Event, name="m.loose", topic="m"):
    parts: dict[str, list[Decimal | None]]


class Nested(Event, name="m.nested", topic="m"):
    inner: Loose | None
    more: list[Nested]


def test_a_decimal_that_is_no_number_is_found_at_any_depth_of_a_type():
    registry = Registry()
    payload = b'{"inner":null,"more":[{"inner":{"parts":{"a":["NaN"]}},"more":[]}]}'
    with pytest.raises(UndecodableError, match="NaN"):
        registry.decode(registry.of(Nested), payload)
    fine = payload.replace(b"NaN", b"1.5")
    assert registry.decode(registry.of(Nested), fine).more[0].inner.parts == {"a": [Decimal("1.5")]}
