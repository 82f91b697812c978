"""A Django project on each database: its own tests, its commands, and handlers that are killed.

Each step is a process of its own, as in real life: Django's settings are global.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

PROJECT = Path(__file__).parent / "django_project"
SECONDS = 90
ORDER = """
from shop.models import Order
from shop.messages import OrderPlaced
from django.db import transaction
from duly.frameworks.django import publish
for number in {numbers}:
    with transaction.atomic():
        Order.objects.create(number=number)
        publish(OrderPlaced(number=number), key=number)
"""


class Project:
    """A copy of the project on one database."""

    def __init__(self, folder: Path, default: dict[str, Any]) -> None:
        self.folder = folder / "django_project"
        shutil.copytree(PROJECT, self.folder, ignore=shutil.ignore_patterns("__pycache__"))
        other = {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": str(folder / "other.db"),
            "TEST": {"NAME": str(folder / "test_other.db")},
        }
        sources = str(Path(__file__).parents[2] / "src")
        kept = {name: v for name, v in os.environ.items() if not name.startswith("DULY_")}
        self.environment = kept | {
            "PYTHONPATH": os.pathsep.join([sources, str(self.folder)]),
            "SHOP_DATABASE": json.dumps({"default": default, "other": other}),
            "SHOP_BROKER": f"embedded:///{folder}/broker.db",
        }

    def run(self, *arguments: str, code: int = 0, **environment: str) -> str:
        """Run a program of the project; its output. code: how it must end."""
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == code, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def manage(self, *arguments: str, **options: Any) -> str:
        """``manage.py`` ..."""
        return self.run("manage.py", *arguments, **options)

    def shell(self, code: str) -> str:
        """The output of some Python in ``manage.py shell``."""
        return self.manage("shell", "--no-imports", "-c", code).strip()

    def prepare(self, *numbers: int) -> None:
        """The tables of both databases by Django's migrations, and orders with these numbers."""
        self.shell(
            "from django.core.management import call_command\n"
            "call_command('migrate', verbosity=0)\n"
            "call_command('migrate', verbosity=0, database='other')\n"
            "call_command('makemigrations', 'duly', check_changes=True, dry_run=True)\n"
            "call_command('duly', 'db', 'check')\n" + ORDER.format(numbers=numbers)
        )

    def state(self) -> tuple[list[int], dict[str, int]]:
        """What was billed, and how many rows the inbox has, by group and status."""
        text = self.shell(
            "import json\n"
            "from django.db import connection\n"
            "from shop.models import Invoice\n"
            "billed = sorted(Invoice.objects.values_list('number', flat=True))\n"
            "with connection.cursor() as cursor:\n"
            "    cursor.execute('SELECT group_name, status FROM duly_inbox')\n"
            "    rows = [' '.join(row) for row in cursor.fetchall()]\n"
            "print(json.dumps([billed, {row: rows.count(row) for row in rows}]))"
        )
        billed, inbox = json.loads(text)
        return billed, inbox


def _described(engine: str, url: str) -> dict[str, Any]:
    parts = urlsplit(url)
    return {
        "ENGINE": f"django.db.backends.{engine}",
        "NAME": parts.path[1:],
        "USER": parts.username or "",
        "PASSWORD": parts.password or "",
        "HOST": parts.hostname or "",
        "PORT": str(parts.port or ""),
    }


def _sqlite(request: pytest.FixtureRequest) -> dict[str, Any]:
    folder = request.getfixturevalue("tmp_path")
    return {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": str(folder / "shop.db"),
        "TEST": {"NAME": str(folder / "test_shop.db")},
    }


DESCRIBED: dict[str, Callable[[pytest.FixtureRequest], dict[str, Any]]] = {
    "sqlite": _sqlite,
    "postgres": lambda request: _described("postgresql", request.getfixturevalue("postgres_url")),
    "mariadb": lambda request: _described("mysql", request.getfixturevalue("mariadb_url")),
}


@pytest.fixture(params=list(DESCRIBED))
def project(request: pytest.FixtureRequest, tmp_path: Path) -> Project:
    return Project(tmp_path, DESCRIBED[request.param](request))


@pytest.mark.timeout(120)
def test_a_project_tests_itself(project: Project) -> None:
    said = project.manage("test", "--noinput")
    assert "Ran 10 tests" in said, said
    assert "\nOK\n" in said


@pytest.mark.timeout(180)
def test_killed_between_the_work_and_the_commit_and_after_it(project: Project) -> None:
    project.prepare(1, 2)
    project.run("work.py", SHOP_KILLED="1", code=-signal.SIGKILL)
    billed, inbox = project.state()
    assert (billed, inbox["billing done"]) == ([1], 1)
    assert inbox.keys() <= {"billing done", "misuse done"}  # the other group may be as far
    project.run("work.py")
    billed, inbox = project.state()
    assert billed == [1, 2]
    assert inbox == {"billing done": 2, "misuse done": 2}, "nothing of the savepoint was sent"


def test_whatever_a_handler_tries_the_transaction_stays_ours(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    project = Project(tmp_path, DESCRIBED["sqlite"](request))
    ways = ["commit", "close", "durable", "set_rollback", "driver"]
    project.prepare(*range(len(ways)))
    project.run("work.py", SHOP_MISUSE=",".join(ways))
    billed, inbox = project.state()
    assert billed == list(range(len(ways)))
    assert inbox == {"billing done": len(ways), "misuse failed": len(ways)}
    paid = "from shop.models import Invoice\nprint(Invoice.objects.filter(paid=True).count())"
    assert project.shell(paid) == "1", "only what was committed by the driver itself"
    said = project.manage("duly", "inbox", "list", "--json")
    assert said.count("TRANSACTION_MISUSE") == 3
