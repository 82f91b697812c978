"""Every finding of a SQLite file, provoked once."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from types import SimpleNamespace

import pytest

from duly.databases.sqlite import inspection
from duly.databases.sqlite.inspection import inspect_file
from duly.ports import Severity


def found(path: Path | str) -> dict[str, Severity]:
    return {finding.code: finding.severity for finding in inspect_file(str(path))}


def test_a_good_file(tmp_path: Path) -> None:
    assert found(tmp_path / "a.db") == {"SQLITE_VERSION": Severity.GREEN}


def test_an_old_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))
    assert found(tmp_path / "a.db")["SQLITE_VERSION"] is Severity.RED


def test_a_folder_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert found(tmp_path / "a.db")["DATABASE_READ_ONLY"] is Severity.RED


def test_a_network_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "_filesystem", lambda folder: "nfs4")
    assert found(tmp_path / "a.db")["NETWORK_DISK"] is Severity.RED


def test_a_disk_that_is_nearly_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=10, f_frsize=4096))
    assert found(tmp_path / "a.db")["DISK_NEARLY_FULL"] is Severity.WEAK


def test_the_kind_of_a_disk_comes_from_the_nearest_mount_point() -> None:
    assert inspection._filesystem("/proc/self") == "proc"
    assert inspection._filesystem("/sys") == "sysfs"


def test_without_mounts_it_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError

    monkeypatch.setattr(Path, "open", refuse)
    assert inspection._filesystem("/") == ""
