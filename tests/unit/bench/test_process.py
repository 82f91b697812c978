from __future__ import annotations

import pytest

from bench.process import run_side


def test_a_side_that_fails_says_why():
    with pytest.raises(RuntimeError, match="no_such_side"):
        run_side("reference.no_such_side")


def test_a_side_runs_in_the_python_that_is_asked_for():
    with pytest.raises(RuntimeError, match=r"bench\.latency ended with 1"):
        run_side("latency", "/bin/false")
