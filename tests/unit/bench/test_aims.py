from __future__ import annotations

from pathlib import Path

import pytest

from bench.aims import OWN, Aim, read_aims
from bench.rows import ROWS


def test_every_row_has_an_aim_of_our_own_and_every_aim_a_row():
    assert set(read_aims(OWN)) == {row.name for row in ROWS}


def test_an_aim_is_read_from_the_file(tmp_path: Path):
    path = tmp_path / "aims.toml"
    path.write_text(
        '[[bench]]\nname = "a"\nat_least = 0.6\n[[bench]]\nname = "b"\nvalue_at_most = 30\n'
        '[[crash]]\nname = "c"\nkills = 5\n'
    )
    assert read_aims(path) == {"a": Aim(at_least=0.6), "b": Aim(value_at_most=30.0)}


@pytest.mark.parametrize(
    ("aim", "figure", "ratio", "met"),
    [
        (Aim(at_least=0.6), 1.0, 0.6, True),
        (Aim(at_least=0.6), 1.0, 0.59, False),
        (Aim(at_least=0.6), 1.0, None, False),
        (Aim(at_most=3.0), 1.0, 3.0, True),
        (Aim(at_most=3.0), 1.0, 3.1, False),
        (Aim(value_at_most=1), 1.0, None, True),
        (Aim(value_at_most=1), 1.1, None, False),
        (Aim(), 1.0, 1.0, None),
    ],
)
def test_when_an_aim_is_met(aim: Aim, figure: float, ratio: float | None, met: bool | None):
    assert aim.met(figure, ratio) is met
