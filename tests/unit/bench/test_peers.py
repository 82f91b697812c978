from __future__ import annotations

import re
import subprocess

import pytest

from bench.measure import Sample
from bench.rows.peers import TRIAL, beside
from tools.peers import PeersMissingError


def ours() -> Sample:
    return Sample(10.0)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PeersMissingError("no index"), "cannot be installed: no index"),
        (RuntimeError("bench.reference.peer_x ended with 1"), "cannot be run: bench.reference"),
        (RuntimeError("999 messages, not 1000"), "cannot be run: 999 messages"),
        (subprocess.TimeoutExpired(["python"], 180), "cannot be run: .*timed out"),
    ],
)
def test_a_peer_that_is_not_there_makes_its_row_void(error: Exception, said: str):
    def peer(count: int) -> Sample:
        raise error

    sides = beside(ours, peer, 5_000)
    assert sides.reference is None
    assert re.search(said, sides.void)


def test_a_peer_is_tried_and_then_measured_on_its_own_backlog():
    asked: list[int] = []

    def peer(count: int) -> Sample:
        asked.append(count)
        return Sample(2.0)

    sides = beside(ours, peer, 5_000)
    assert sides.reference is not None
    assert (sides.reference().figure, sides.ours().figure, sides.void) == (2.0, 10.0, "")
    assert asked == [TRIAL, 5_000]
