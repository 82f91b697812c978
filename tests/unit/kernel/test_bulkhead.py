from __future__ import annotations

import pytest

from duly.errors import ConfigurationError
from duly.kernel.bulkhead import LIMIT_MAX, Bulkhead


def test_limits():
    assert Bulkhead(LIMIT_MAX, "250ms").wait_seconds == 0.25
    assert Bulkhead().wait_seconds == 0


@pytest.mark.parametrize(
    "wrong", [{"limit": 0}, {"limit": LIMIT_MAX + 1}, {"limit": True}, {"limit": 1.5}, {"wait": -1}]
)
def test_refuses_what_is_outside(wrong):
    with pytest.raises(ConfigurationError, match=f"Bulkhead: {next(iter(wrong))}"):
        Bulkhead(**wrong)
