"""Deferred calls in small: a few kills. What its checker can see: ``unit/crash``, and PLANTED=1."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.defer import run_defer
from tests.crash.pairs import Place

SEED = 20_263


@pytest.mark.timeout(200)
def test_a_few_kills_lose_no_call_and_make_none_twice(tmp_path: Path) -> None:
    result = run_defer(12, SEED, Place(tmp_path, quiet=True), minutes=2.5, slow_kills=0)
    assert result.clean, "\n".join(result.problems)
    assert result.row.kills >= 12
    assert result.row.delivered >= result.row.acknowledged > 0
