"""Every interleaving of a coordinator with a crash and with recoveries, on databases of paper.

The journal is the real one, on SQLite; branches are states in a dictionary.  At each place where
the coordinator can be stopped it dies, or sleeps while a recovery sweeps, or both.  Whatever
happens, all branches end alike, and as the caller was told.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from duly.branches import Finished
from duly.databases.sqlite.database import SqliteDatabase
from duly.errors import DatabaseUnavailableError, OutcomeUnknownError, RetryableError
from duly.kernel import failpoints
from duly.kernel.twophase import Status
from duly.observe.hooks import Hooks
from duly.outbox.schema import Schema
from duly.twophase import journal as journals
from duly.twophase import recovery
from duly.twophase.coordinator import Coordinator
from duly.twophase.journal import Journal
from duly.twophase.recovery import Recovery

PLACES = ("app", "ledger")


class Crash(BaseException):
    """The coordinator's process ends here."""


class Place:
    """A participant: its branches by name, ``open``, ``prepared``, ``committed``, ``undone``."""

    def __init__(self, name: str) -> None:
        self.name, self.states, self.away = name, dict[str, str](), False

    @property
    def resource(self) -> Place:
        if self.away:
            raise DatabaseUnavailableError(self.name)
        return self

    branches = resource

    def connect(self) -> SimpleNamespace:
        return SimpleNamespace(close=lambda: None)

    def prepared(self, connection: object) -> list[str]:
        return [name for name, state in self.states.items() if state == "prepared"]

    def finish(self, connection: object, name: str, *, commit: bool) -> Finished:
        if self.states.get(name) != "prepared":
            return Finished.GONE
        self.states[name] = "committed" if commit else "undone"
        return Finished.DONE

    def fate(self, connection: object, mark: str) -> bool | None:
        return {"committed": True, "undone": False}.get(self.states.get(mark, ""))


class Live:
    """A branch in hand. breaks: where its preparation fails, ``before`` or ``after`` it is done."""

    def __init__(self, place: Place, name: str, *, breaks: str = "") -> None:
        self.participant: Any = place
        self.name, self._breaks = name, breaks
        place.states[name] = "open"

    def settle(self) -> None:
        pass

    def mark(self) -> str:
        return self.name

    def prepare(self) -> None:
        if self._breaks != "before":
            self.participant.states[self.name] = "prepared"
        if self._breaks:
            raise DatabaseUnavailableError("lost while preparing")

    def finish(self, *, commit: bool) -> None:
        state = self.participant.states[self.name]
        if commit and state != "prepared":
            raise DatabaseUnavailableError(f"it is {state}")
        if state in ("open", "prepared"):
            self.participant.states[self.name] = "committed" if commit else "undone"

    def release(self, *, clean: bool) -> None:
        if self.participant.states[self.name] == "open":
            self.participant.states[self.name] = "undone"


class World:
    def __init__(self, folder: Path) -> None:
        database = SqliteDatabase(f"sqlite:///{folder / 'app.db'}")
        Schema(database, "shop").start()
        self.journal = Journal(database)
        self.places = {name: Place(name) for name in PLACES}
        self.told = ""

    def recovery(self) -> Recovery:
        found = SimpleNamespace(names=list(PLACES), find=self.places.__getitem__)
        return Recovery(found, self.journal, hooks=Hooks())  # type: ignore[arg-type]

    def sweep(self) -> None:
        one = self.recovery()
        for _ in range(3):
            one._looked_at = -1e9
            one.sweep()

    def pay(self, *, breaks: tuple[str, str] = ("", "")) -> Coordinator:
        made = Coordinator(self.journal, prepare_seconds=0.0, aside=lambda job: job())
        for place, how in zip(self.places.values(), breaks, strict=True):
            made.branches.append(Live(place, made.next_name(), breaks=how))
        try:
            made.commit()
        except Crash:
            self.told = "nothing"
        except OutcomeUnknownError:
            self.told = "unknown"
        except RetryableError:
            self.told = "failed"
        else:
            self.told = "committed"
        return made

    def ends(self) -> set[str]:
        return {state for place in self.places.values() for state in place.states.values()}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(recovery, "GRACE_SECONDS", -1.0)
    monkeypatch.setattr(journals, "DECIDE_SECONDS", 0.0)
    yield World(tmp_path)
    failpoints.arm(None)


HITS = (
    failpoints.TWOPHASE_JOURNALLED,
    failpoints.TWOPHASE_BRANCH_PREPARED,
    failpoints.TWOPHASE_BRANCH_PREPARED,
    failpoints.TWOPHASE_PREPARED,
    failpoints.TWOPHASE_DECIDED,
    failpoints.TWOPHASE_BRANCH_ENDED,
    failpoints.TWOPHASE_BRANCH_ENDED,
    failpoints.TWOPHASE_NOT_RECORDED,
)


def test_the_places_of_a_payment_are_these(world: World) -> None:
    hits: list[str] = []
    failpoints.arm(hits.append)
    world.pay()
    assert tuple(hits) == HITS
    assert (world.ends(), world.told) == ({"committed"}, "committed")


@pytest.mark.parametrize("place", range(len(HITS)))
@pytest.mark.parametrize("act", ["die", "sleep", "sleep, die", "away, die"])
def test_all_branches_end_alike_whatever_happens_where(world: World, place: int, act: str) -> None:
    seen = 0

    def action(name: str) -> None:
        nonlocal seen
        if name not in HITS:
            return  # a recovery's own
        seen += 1
        if seen != place + 1:
            return
        if "sleep" in act:
            world.sweep()
        if "away" in act:
            world.places["ledger"].away = True
            world.sweep()  # what it can do without the ledger
            world.places["ledger"].away = False
        if "die" in act:
            raise Crash

    failpoints.arm(action)
    done = world.pay()
    failpoints.arm(None)
    world.sweep()
    (row,) = world.journal.read([done.id])
    assert world.ends() in ({"committed"}, {"undone"})
    good = world.ends() == {"committed"}
    assert row.status is (Status.COMMITTED if good else Status.ABORTED)
    assert world.told in ("nothing", "committed" if good else "failed")


@pytest.mark.parametrize("breaks", [("before", ""), ("after", ""), ("", "before"), ("", "after")])
def test_a_preparation_that_fails_undoes_everything(world: World, breaks: tuple[str, str]) -> None:
    done = world.pay(breaks=breaks)
    world.sweep()
    assert (world.ends(), world.told) == ({"undone"}, "failed")
    assert world.journal.read([done.id])[0].status is Status.ABORTED


def test_a_journal_that_does_not_answer_leaves_the_branches_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> Any:
        raise DatabaseUnavailableError("away")

    with monkeypatch.context() as broken:
        broken.setattr(Journal, "_decided", away)
        world.pay()
    assert (world.ends(), world.told) == ({"prepared"}, "unknown")
    world.sweep()
    assert world.ends() == {"undone"}


def test_a_journal_that_does_not_answer_after_a_failed_preparation(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> Any:
        raise DatabaseUnavailableError("away")

    with monkeypatch.context() as broken:
        broken.setattr(Journal, "_decided", away)
        world.pay(breaks=("", "before"))
    assert (world.ends(), world.told) == ({"prepared", "undone"}, "failed")
    world.sweep()
    assert world.ends() == {"undone"}
