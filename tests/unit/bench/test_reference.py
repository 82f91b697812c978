from __future__ import annotations

import ast
from pathlib import Path

import pytest

import bench.reference

ALL = sorted(Path(bench.reference.__file__).parent.glob("[a-z]*.py"))
PEERS = [path for path in ALL if path.stem.startswith("peer_")]
FILES = [path for path in ALL if path not in PEERS]
LINES_MAX = 60
# Threads have no other; psql and sftp are programs.
DRIVERS = {"concurrent", "pika", "psycopg", "pymysql", "subprocess"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_reference_is_short_and_uses_the_plain_driver(path: Path):
    assert len(path.read_text().splitlines()) <= LINES_MAX
    ours = {"bench", "duly", "sqlalchemy"}
    assert not imported(path) & ours
    assert imported(path) & (DRIVERS | {"sqlite3"})


@pytest.mark.parametrize("path", PEERS, ids=lambda p: p.stem)
def test_a_peer_is_short_and_stands_alone(path: Path):
    assert len(path.read_text().splitlines()) <= LINES_MAX
    assert not imported(path) & {"bench", "duly"}
    assert path.stem.removeprefix("peer_").startswith(tuple(imported(path)))


def imported(path: Path) -> set[str]:
    return {
        name.partition(".")[0]
        for node in ast.walk(ast.parse(path.read_text()))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }


def test_there_are_references():
    assert len(FILES) >= 6
    assert len(PEERS) >= 7
