from __future__ import annotations

import ast
from pathlib import Path

import pytest

import bench.reference

FILES = sorted(Path(bench.reference.__file__).parent.glob("[a-z]*.py"))
LINES_MAX = 60
DRIVERS = {"pika", "psycopg"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_reference_is_short_and_uses_the_plain_driver(path: Path):
    text = path.read_text()
    assert len(text.splitlines()) <= LINES_MAX
    imported = {
        name.partition(".")[0]
        for node in ast.walk(ast.parse(text))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    ours = {"bench", "duly", "sqlalchemy"}
    assert not imported & ours
    assert imported & (DRIVERS | {"sqlite3"})


def test_there_are_references():
    assert len(FILES) >= 6
