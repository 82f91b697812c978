from __future__ import annotations

from hashlib import md5

import pytest

from duly.errors import InvalidNameError
from duly.kernel.names import LANES, STRIPES, check_name, check_sql_name, is_name, place

# What breaks identifiers in databases, brokers, files and terminals.
BAD_EVERYWHERE = [
    "",
    'a"b',
    "a'b",
    "a;drop table x;--",
    "a\nb",
    "name\n",
    "\u0430",  # Cyrillic
    "\u043erders",
    "a\u202eb",
    "a\0b",
    "%s",
    "{0}",
    "../x",
    "$JS.API",
    "*",
    ">",
    "#",
    "a.*",
    "a b",
    "a\tb",
    "a/b",
    "a\\b",
    "\uff41",  # full width
    "٣",  # a digit, but no ASCII one
    "ﬀ",
    "\ud800",
    "-a",
    ".a",
    "x" * 10_000,
    None,
    5,
    b"orders",
]


@pytest.mark.parametrize("bad", BAD_EVERYWHERE, ids=lambda v: ascii(v)[:20])
def test_bad_names_are_refused_and_shown_escaped(bad):
    for check in (check_name, check_sql_name):
        with pytest.raises(InvalidNameError, match="topic") as caught:
            check(bad, "topic")
        shown = caught.value.detail
        assert shown.isascii()
        assert shown.isprintable()
        assert len(shown) < 200
    assert not is_name(bad)


@pytest.mark.parametrize(
    "good", ["a", "A", "9lives", "a.b", "orders_v2", "billing.charge-card", "x" * 120, "select"]
)
def test_good_names_come_back_unchanged(good):
    assert check_name(good, "topic") == good
    assert is_name(good)


def test_a_name_has_at_most_120_characters():
    with pytest.raises(InvalidNameError):
        check_name("x" * 121, "topic")


@pytest.mark.parametrize("good", ["a", "duly_", "_x", "select", "x" * 41])
def test_good_sql_names(good):
    assert check_sql_name(good, "table") == good


@pytest.mark.parametrize("bad", ["A", "9x", "a.b", "a-b", "x" * 42, "x" * 64, "Duly", "\u0131"])
def test_sql_names_are_narrower(bad):
    with pytest.raises(InvalidNameError):
        check_sql_name(bad, "table")


def test_place_is_a_constant_of_the_schema():
    """Frozen for ever: rows of one version are found by the next, in any language."""
    assert place("orders", "customer-1") == (590, 14)
    assert place("orders", "7") == (674, 34)
    assert place("héllo", "ключ") == (674, 34)  # lengths in bytes, not in characters


def test_place_is_what_the_design_says():
    digest = md5(b"6:orders10:customer-1", usedforsecurity=False).digest()
    stripe = int.from_bytes(digest[:4], "big") % 1024
    assert place("orders", "customer-1") == (stripe, stripe % 64)


def test_place_tells_apart_what_concatenates_alike():
    assert place("ab", "c") != place("a", "bc")


def test_places_are_spread():
    stripes = [place("orders", str(n)).stripe for n in range(20_000)]
    lanes = [place("orders", str(n)).lane for n in range(20_000)]
    assert set(stripes) == set(range(STRIPES))
    assert max(lanes.count(lane) for lane in range(LANES)) < 2 * 20_000 / LANES
