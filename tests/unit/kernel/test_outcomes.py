from __future__ import annotations

from duly import calls
from duly.inbox import effects
from duly.kernel.outcomes import NotFound


def test_there_is_one_word_for_not_found() -> None:
    assert NotFound is effects.NotFound
    assert NotFound is calls.NotFound
