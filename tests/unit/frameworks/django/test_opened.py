from __future__ import annotations

import time
from pathlib import Path

from django.db import connections, transaction

from duly.frameworks import opened
from duly.frameworks.django.opened import note_blocks


def test_a_block_counts_since_before_the_call_that_came_back(path: Path) -> None:
    opened.watch()
    began = time.monotonic() - 5.0
    with transaction.atomic():
        connections["default"].cursor().execute("SELECT 1")
        note_blocks(began)
        with transaction.atomic():
            note_blocks(time.monotonic())
            assert opened.open_seconds() >= 5.0
    assert opened.open_seconds() == 0.0
    note_blocks(began)
    assert opened.open_seconds() == 0.0
    assert path.exists()
