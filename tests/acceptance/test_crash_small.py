"""The kill loop in small, on both pairs and both sources, and a planted bug in one of its rows.

That each checker sees what is wrong is shown in tests/unit/crash, and for the loop itself by
``PLANTED=1 make crash``.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.crash import planted
from tests.crash.orders import CDC_POINTS, CONSUME_AND_RELAY, Orders
from tests.crash.pairs import PAIRS, SOURCE, Place, Result, cdc_orders, run_pair

SEED = 20_261
SQLITE, POSTGRES = PAIRS


def orders(kills: int, *, workers: int) -> Orders:
    """A few kills at the short lease, at the points of the main path."""
    return Orders(
        kills,
        SEED,
        slow_kills=0,
        workers=workers,
        minutes=1.5,
        points=CONSUME_AND_RELAY,
        writers=1,
        settle_seconds=40.0,
        least_messages=10 * kills,
    )


def _clean(result: Result) -> None:
    assert result.clean, "\n".join(result.problems)


@pytest.mark.timeout(150)
def test_twenty_kills_on_files_lose_and_double_nothing(tmp_path: Path) -> None:
    result = run_pair(SQLITE, orders(20, workers=2), Place(tmp_path, quiet=True))
    _clean(result)
    assert result.row.kills >= 20
    assert result.row.attempted >= 200
    assert result.row.delivered >= result.row.acknowledged > 0


@pytest.mark.timeout(150)
def test_twenty_kills_on_servers_lose_and_double_nothing(
    tmp_path: Path, postgres_url: str, rabbitmq_url: str
) -> None:
    del (
        postgres_url,
        rabbitmq_url,
    )  # asked for so that a missing server skips or fails as everywhere
    assert os.environ["DULY_TEST_POSTGRES"]
    result = run_pair(POSTGRES, orders(20, workers=2), Place(tmp_path, quiet=True))
    _clean(result)
    assert result.row.kills >= 20
    assert result.row.delivered >= result.row.acknowledged > 0


@pytest.mark.timeout(150)
@pytest.mark.parametrize("pair", ["cdc postgres", "cdc sqlite"])
def test_readers_killed_at_every_point_tell_each_change_once(
    tmp_path: Path, postgres_url: str, pair: str
) -> None:
    del postgres_url  # asked for as above
    given = cdc_orders(
        12,
        SEED,
        slow_kills=0,
        minutes=1.5,
        points=(*CDC_POINTS, "relay.confirmed", "consume.handled"),
        writers=1,
        settle_seconds=40.0,
        least_messages=200,
    )
    result = run_pair(pair, given, Place(tmp_path, quiet=True))
    _clean(result)
    assert result.row.kills >= 12
    assert result.row.delivered >= result.row.acknowledged > 0


@pytest.mark.parametrize("bug", planted.BUGS, ids=lambda bug: bug.name)
def test_every_planted_bug_fits_the_source(bug: planted.Bug, tmp_path: Path) -> None:
    made = planted.plant(bug, SOURCE, tmp_path / "src")
    for file, _, new in bug.changes:
        assert new in (made / "duly" / file).read_text()


@pytest.mark.timeout(150)
def test_a_planted_bug_is_caught(tmp_path: Path) -> None:
    """One of those that are quick to show; ``PLANTED=1 make crash`` shows each."""
    bug = next(bug for bug in planted.BUGS if bug.name == "after-commit fired on a savepoint")
    result, caught_by = planted.run_bug(bug, Place(tmp_path, quiet=True), seed=SEED)
    assert caught_by.startswith("unexpected"), result.problems
