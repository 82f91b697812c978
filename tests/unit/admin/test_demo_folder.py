"""``./duly-demo``: made, replaced, never taken from somebody else."""

from __future__ import annotations

from pathlib import Path

import pytest

from duly.admin.demo.folder import FOLDER, own_folder
from duly.config import load
from duly.errors import ConfigurationError


def test_a_new_folder_holds_settings_that_duly_reads(tmp_path: Path) -> None:
    with own_folder(tmp_path, embedded=True) as folder:
        assert folder == tmp_path / FOLDER
        settings = load({}, environ={}, path=str(folder / "duly.toml"))
    assert settings.database == "sqlite:///flights.db"
    assert settings.table_prefix == "duly_demo_"


def test_servers_need_no_settings(tmp_path: Path) -> None:
    with own_folder(tmp_path, embedded=False) as folder:
        assert not (folder / "duly.toml").exists()


def test_its_own_folder_is_emptied(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    with own_folder(tmp_path, embedded=True) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "old.db").write_text("old")
        (folder / "link").symlink_to(outside)
    with own_folder(tmp_path, embedded=False) as folder:
        assert [entry.name for entry in folder.iterdir()] == [".made-by-duly-demo"]
    assert (outside / "kept").read_text() == "kept"


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_the_demo_did_not_make_is_refused_and_kept(tmp_path: Path, kind: str) -> None:
    target = tmp_path / FOLDER
    if kind == "folder":
        target.mkdir()
        (target / "precious").write_text("mine")
    elif kind == "file":
        target.write_text("mine")
    else:
        (tmp_path / "real").mkdir()
        (tmp_path / "real" / ".made-by-duly-demo").touch()
        target.symlink_to(tmp_path / "real")
    before = sorted(tmp_path.rglob("*"))
    with (
        pytest.raises(ConfigurationError, match="not made by the demo"),
        own_folder(tmp_path, embedded=True),
    ):
        pytest.fail("entered")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_second_demo_in_the_same_place_is_refused(tmp_path: Path) -> None:
    with own_folder(tmp_path, embedded=True) as folder:
        (folder / "flights.db").write_text("in use")
        with (
            pytest.raises(ConfigurationError, match="running"),
            own_folder(tmp_path, embedded=True),
        ):
            pytest.fail("entered")
        assert (folder / "flights.db").read_text() == "in use"
