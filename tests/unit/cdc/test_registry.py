from __future__ import annotations

from typing import Any

import pytest

from duly import Retry
from duly.cdc.registry import RuleRegistry
from duly.errors import ConfigurationError, InvalidNameError, NotFoundError
from duly.kernel.rules import RuleFailedError
from duly.ports import Severity
from duly.sources import ChangeFeatures, TableSpec
from duly.testing.changes import updated


def rule(change: Any) -> None:
    pass


def other(change: Any) -> None:
    pass


async def late(change: Any) -> None:
    pass


async def later(change: Any) -> Any:
    yield change


def strange(change: Any, session: Any) -> None:
    pass


def reversed_(tx: Any, change: Any) -> None:
    pass


def nothing() -> None:
    pass


def writing(change: Any, tx: Any) -> None:
    pass


def registry(**options: Any) -> RuleRegistry:
    made = RuleRegistry("Shop-2")
    made.rule(**{"table": "orders", **options})(rule)
    return made


def test_a_rule_stays_a_plain_function_and_gives_its_name() -> None:
    made = RuleRegistry("shop")
    assert made.rule(table="orders")(rule) is rule
    made.rule(table="orders", name="second")(rule)
    (stream,) = made.streams
    assert (stream.name, stream.url) == ("shop", None)
    assert [one.name for one in stream.rules] == ["rule", "second"]


def test_the_default_stream_is_named_after_the_app() -> None:
    names = ("Shop-2", "9to5", "x" * 60, "...")
    assert [RuleRegistry(name)._default for name in names] == ["shop_2", "to5", "x" * 41, "___"]


@pytest.mark.parametrize(
    ("function", "options", "said"),
    [
        (late, {"table": "t"}, "async"),
        (later, {"table": "t"}, "async"),
        (rule, {}, "table="),
        (rule, {"table": ""}, "no name of a table"),
        (rule, {"table": "a\nb"}, "no name of a table"),
        (rule, {"table": "t", "transaction": True, "on_snapshot": True}, "snapshot"),
        (rule, {"table": "t", "snapshot": "sometimes"}, "'initial' or 'never'"),
        (rule, {"table": "t", "coalesce": "all"}, "coalesce"),
        (rule, {"table": "t", "include": ["a"], "exclude": ["a"]}, "'a'"),
        (rule, {"table": "t", "tabel": "u"}, "tabel"),
        (rule, {"table": "t", "retry": 3}, "Retry"),
        (rule, {"table": "t", "retry": Retry(on=(OSError,))}, "on"),
        (strange, {"table": "t"}, "'session'; after the change only tx"),
        (reversed_, {"table": "t"}, "first parameter is the change"),
        (nothing, {"table": "t"}, "first parameter is the change"),
    ],
)
def test_what_is_wrong_is_refused_when_it_is_written(
    function: Any, options: Any, said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said):
        RuleRegistry("shop").rule(**options)(function)


def test_a_rule_that_takes_tx_writes() -> None:
    made = registry()
    assert not made.stream().writes
    made.rule(table="orders", retry=Retry(attempts=3))(writing)
    assert made.stream().writes
    failed = RuleFailedError("rule, writing", "KeyError")
    assert made.stream().retry_after(failed) == Retry(attempts=3)
    assert made.stream().retry_after(RuleFailedError("rule", "KeyError")) is None


def test_two_rules_of_one_name_would_share_ids() -> None:
    made = registry()
    with pytest.raises(ConfigurationError, match="name="):
        made.rule(table="lines")(rule)
    made.rule(table="lines", source="crm")(rule)  # another stream


def test_sources() -> None:
    made = RuleRegistry("shop")
    made.rule(table="people", source="crm")(rule)
    with pytest.raises(ConfigurationError, match=r"crm.*app\.source"):
        made.streams  # noqa: B018
    made.source("crm", "postgresql://crm/people")
    made.source("crm", "postgresql://crm/people")
    with pytest.raises(ConfigurationError, match="twice"):
        made.source("crm", "sqlite:///crm.db")
    with pytest.raises(InvalidNameError):
        made.source("C-R-M", None)
    assert made.stream().url == "postgresql://crm/people"
    assert made.stream("crm").name == "crm"
    with pytest.raises(ConfigurationError, match="crm"):
        made.stream("other")


def test_a_table_is_captured_as_all_its_rules_need_it() -> None:
    made = registry(include=["a", "b"], before=False, key=["id", "no"])
    made.rule(table="orders", include=["b", "c"], exclude=["x", "y"])(other)
    made.rule(table="lines", exclude=["x", "y"], before=False)(other_named("lines"))
    made.rule(table="lines", exclude=["y", "z"], before=False)(other_named("more"))
    assert made.stream().tables() == [
        TableSpec("lines", exclude=("y",)),
        TableSpec("orders", ("a", "b", "c", "id", "no"), (), ("id", "no"), before_image=True),
    ]


def other_named(name: str) -> Any:
    def function(change: Any) -> None:
        pass

    function.__name__ = name
    return function


def test_two_keys_of_one_table_are_found_before_the_start() -> None:
    made = registry(key="id")
    assert made.check() == []
    made.rule(table="orders", key="number")(other)
    (finding,) = made.check()
    assert (finding.code, finding.severity) == ("CDC_RULES", Severity.RED)


def test_what_the_source_never_gives() -> None:
    made = registry(on_snapshot=True)
    made.rule(table="orders", transaction=True)(other)
    found = made.stream().findings(ChangeFeatures())
    assert [(one.code, one.severity) for one in found] == [
        ("CDC_NO_SNAPSHOT", Severity.RED),
        ("CDC_NO_TRANSACTIONS", Severity.WEAK),
    ]
    everything = ChangeFeatures(True, True, True, True, True, True)
    assert made.stream().findings(everything) == []


def test_snapshots() -> None:
    made = registry(on_snapshot=True)
    made.rule(table="lines", on_snapshot=True, snapshot="never")(other)
    made.rule(table="people")(other_named("people"))
    stream = made.stream()
    assert stream.initial() == ["orders"]
    assert [stream.on_snapshot(table) for table in ("orders", "lines", "people")] == [
        True, True, False,
    ]  # fmt: skip
    with pytest.raises(NotFoundError):
        stream.on_snapshot("nothing")


def test_what_any_rule_masks_is_hidden_from_people() -> None:
    made = registry(mask=["a"])
    made.rule(table="orders", mask=["b"])(other)
    change = updated("orders", {"id": 1, "a": 1, "b": 1, "c": 1}, {"a": 2})
    hidden = made.stream().masked(change)
    assert str(hidden.after) == "{'id': 1, 'a': ***, 'b': ***, 'c': 1}"
    assert hidden.changed("a")
    assert made.stream().masked(updated("lines", {"id": 1}, {})).after == {"id": 1}
