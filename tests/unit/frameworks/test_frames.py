"""What the joins share: order, rounds, driving statements, finishing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from duly.errors import ConfigurationError
from duly.frameworks.frames import Item, by_outlet, drive, finish, item, resolve, write
from duly.ports import Pending, Result, Statement, Steps


class Entry:
    """A Pending that writes down what happens to it."""

    def __init__(
        self, log: list[Any], name: str, outlet: Any = None, *, frozen: bool = True
    ) -> None:
        self.log, self.name, self.outlet, self.frozen = log, name, outlet, frozen
        self.error: BaseException | None = None

    def resolve(self) -> None:
        self.log.append(("resolve", self.name))
        self.frozen = True

    def committed(self) -> None:
        self.log.append(("run", self.name))
        if self.error is not None:
            raise self.error

    def failed(self, error: Exception) -> None:
        self.log.append(("failed", self.name, error))


class Outlet:
    def __init__(self, log: list[Any], name: str) -> None:
        self.log, self.name = log, name

    def prepare(self, statement: Statement) -> Any:
        raise AssertionError(statement)

    map_error = admits = prepare

    def write(self, entries: Sequence[Pending], *, last: bool = True) -> Steps[None]:
        first = yield Statement("one", {"n": len(entries)})
        second = yield Statement("two")
        self.log.append((self.name, first.count, second.count))

    def committed(self, entries: Sequence[Pending]) -> None:
        self.log.append(("wake", self.name, len(entries)))


def test_entries_leave_in_the_order_of_publishing() -> None:
    a, b = Outlet([], "a"), Outlet([], "b")
    items = [item(Entry([], str(n), (a, b, None)[n % 3])) for n in range(9)]
    found = by_outlet(reversed(items))
    assert [[e.name for e in found[outlet]] for outlet in (a, b)] == [  # type: ignore[attr-defined]
        ["0", "3", "6"],
        ["1", "4", "7"],
    ]


def test_resolve_goes_on_until_nothing_is_late() -> None:
    log: list[Any] = []
    items: list[Item] = []

    class Breeder(Entry):
        def resolve(self) -> None:
            super().resolve()
            if len(items) < 5:
                items.append(item(Breeder(log, str(len(items)), frozen=False)))

    items.append(item(Breeder(log, "0", frozen=False)))
    resolve(lambda: items)
    assert log == [("resolve", str(n)) for n in range(5)]


def test_resolve_ends_after_a_hundred_rounds() -> None:
    log: list[Any] = []

    class Never(Entry):
        def resolve(self) -> None:
            self.log.append(1)

    with pytest.raises(ConfigurationError) as caught:
        resolve(lambda: [item(Never(log, "x", frozen=False))])
    assert (caught.value.code, len(log)) == ("PUBLISH_NEVER_ENDS", 100)


def test_drive_sends_results_and_gives_back_the_value() -> None:
    def steps() -> Steps[int]:
        first = yield Statement("a")
        second = yield Statement("b")
        return first.count + second.count

    assert drive(steps(), lambda s: Result([], {"a": 1, "b": 20}[s.name])) == 21


def test_write_gives_each_statement_to_its_outlet() -> None:
    log: list[Any] = []
    a, b = Outlet(log, "a"), Outlet(log, "b")
    seen: list[tuple[Any, str]] = []

    def run(outlet: Any, statement: Statement) -> Result:
        seen.append((outlet.name, statement.name))
        return Result([], len(seen))

    write([item(Entry(log, "1", b)), item(Entry(log, "2", a)), item(Entry(log, "3"))], run)
    assert seen == [("b", "one"), ("b", "two"), ("a", "one"), ("a", "two")]
    assert log == [("b", 1, 2), ("a", 3, 4)]


def test_finish_wakes_first_and_ends_each_entrys_transaction() -> None:
    log: list[Any] = []
    good, bad, last = Entry(log, "good", Outlet(log, "o")), Entry(log, "bad"), Entry(log, "last")
    bad.error = ValueError()
    finish([item(e) for e in (good, bad, last)], lambda fine: log.append(("end", fine)))
    assert log == [
        ("wake", "o", 1),
        ("run", "good"),
        ("end", True),
        ("run", "bad"),
        ("end", False),
        ("failed", "bad", bad.error),
        ("run", "last"),
        ("end", True),
    ]


def test_a_hooks_own_commit_that_fails_is_reported_too() -> None:
    log: list[Any] = []
    error = RuntimeError("commit")

    def end(fine: bool) -> None:
        raise error

    finish([item(Entry(log, "a")), item(Entry(log, "b"))], end)
    assert [entry for entry in log if entry[0] == "failed"] == [
        ("failed", "a", error),
        ("failed", "b", error),
    ]


def test_keyboard_interrupt_is_not_swallowed() -> None:
    log: list[Any] = []
    stop = Entry(log, "stop")
    stop.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        finish([item(stop), item(Entry(log, "next"))], lambda fine: log.append(fine))
    assert log == [("run", "stop"), False]
