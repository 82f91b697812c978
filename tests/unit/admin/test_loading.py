from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from duly.admin.cli.loading import load_app
from duly.app import App
from duly.config import chosen_app, load
from duly.errors import ConfigurationError

Write = Callable[[str, str], None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write a module into the current folder; forget it afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)

    def write(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_an_app_is_found(write: Write) -> None:
    write("loading_shop.py", "from duly.app import App\nclass Box:\n    app = App('shop')\n")
    found = load_app("loading_shop:Box.app")
    assert isinstance(found, App)
    assert found.name == "shop"


def test_an_app_in_a_package(write: Write) -> None:
    write("loading_pkg/__init__.py", "")
    write("loading_pkg/shop.py", "from duly.app import App\napp = App('inner')\n")
    assert load_app("loading_pkg.shop:app").name == "inner"


@pytest.mark.parametrize(
    ("text", "spec", "code"),
    [
        ("", "loading_bad:app", "APP_ATTRIBUTE"),
        ("app = 7", "loading_bad:app", "APP_TYPE"),
        ("from duly.app import App\napp = App", "loading_bad:app", "APP_TYPE"),
        ("1 / 0", "loading_bad:app", "APP_IMPORT"),
        ("import loading_other_missing", "loading_bad:app", "APP_IMPORT"),
        ("def (", "loading_bad:app", "APP_IMPORT"),
        ("raise SystemExit(3)", "loading_bad:app", "APP_IMPORT"),
        ("", "loading_missing:app", "APP_MODULE"),
        ("", "loading_missing.shop:app", "APP_MODULE"),
        ("", "shop", "APP_SPEC"),
        ("", "shop.py:app", "APP_MODULE"),
        ("", "./shop:app", "APP_SPEC"),
        ("", "a:b:c", "APP_SPEC"),
        ("", "shop:app()", "APP_SPEC"),
        ("", "shop:app\n", "APP_SPEC"),
        ("", "", "APP_SPEC"),
        ("", "\u0455hop:app", "APP_SPEC"),
    ],
)
def test_each_step_that_fails_has_its_code(write: Write, text: str, spec: str, code: str) -> None:
    write("loading_bad.py", text)
    with pytest.raises(ConfigurationError) as error:
        load_app(spec)
    assert error.value.code == code
    assert "\n" not in error.value.detail


def test_where_an_import_failed_is_said(write: Write) -> None:
    write("loading_bad.py", "x = 1\nraise ValueError('first\\nsecond')\n")
    with pytest.raises(ConfigurationError, match=r"ValueError at loading_bad.py:2: first second"):
        load_app("loading_bad:app")


def test_the_app_may_be_named_once_for_all(write: Write) -> None:
    assert chosen_app(environ={}) is None
    write("duly.toml", 'app = "shop:app"\nbatch_size = 7\n')
    assert chosen_app(environ={}) == "shop:app"
    assert chosen_app(environ={"DULY_APP": "mail:app"}) == "mail:app"
    assert load({}, environ={"DULY_APP": "mail:app"}).batch_size == 7  # none of the settings
    write("duly.toml", "app = 7\n")
    with pytest.raises(ConfigurationError):
        chosen_app(environ={})
