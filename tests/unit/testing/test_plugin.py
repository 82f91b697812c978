"""The fixtures in a pytest of their own, as in a user's project."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]

CONFTEST = """
import pytest
from shop import app

@pytest.fixture
def duly_app():
    return app
"""
SHOP = """
from duly import App, Command, Event, Tx

app = App("shop")

class Placed(Event, name="order.placed", topic="orders"):
    order_id: int

class Charge(Command, name="billing.charge", queue="billing"):
    order_id: int

@app.on(Placed, group="sales")
def bill(event: Placed, tx: Tx) -> None:
    tx.send(Charge(order_id=event.order_id))

@app.handle(Charge)
def charge(command: Charge) -> None: ...
"""
TESTS = """
from shop import app, Charge, Placed

def test_charged(app_test):
    app.publish(app_test.session, Placed(order_id=7))
    app_test.session.commit()
    app_test.drain()
    app_test.assert_published(Charge, order_id=7)

def test_fresh(app_test):
    app_test.assert_nothing_published()

def test_wrong(app_test):
    app_test.assert_published(Charge, order_id=8)

def test_unused_fault(app_test):
    app_test.fail_next("commit")
"""


def run_pytest(folder: Path, **files: str) -> str:
    """The output of a pytest that knows our plugin and no other."""
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    path = os.pathsep.join([str(ROOT / "src"), str(folder)])
    environ = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": path}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "duly.testing.plugin", str(folder)]
    done = subprocess.run(
        command, cwd=folder, env=environ, capture_output=True, text=True, timeout=50, check=False
    )
    return done.stdout + done.stderr


def test_a_users_tests_get_a_fresh_app_each(tmp_path: Path) -> None:
    output = run_pytest(tmp_path, conftest=CONFTEST, shop=SHOP, test_shop=TESTS)
    assert "3 passed" in output, output
    assert "FAILED test_shop.py::test_wrong" in output
    assert "Charge(order_id=8) was not published; nothing was published" in output
    assert "ERROR test_shop.py::test_unused_fault" in output
    assert "commit (1 left)" in output


def test_without_an_app_it_says_what_to_define(tmp_path: Path) -> None:
    output = run_pytest(tmp_path, test_shop="def test_one(app_test): ...")
    assert "app_test needs a fixture duly_app" in output
    assert "1 error" in output


def test_the_entry_point_names_the_plugin() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module = import_module(project["entry-points"]["pytest11"]["duly"])
    assert set(module.__all__) == {"app_test", "duly_app"}
