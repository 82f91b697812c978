from __future__ import annotations

import pytest

from bench.process import run_side


def test_a_side_that_fails_says_why():
    with pytest.raises(RuntimeError, match="no_such_side"):
        run_side("reference.no_such_side")
