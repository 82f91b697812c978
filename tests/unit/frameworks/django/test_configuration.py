from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.test import override_settings

from duly import App, Event, Tx
from duly.checks import check_code
from duly.databases.statements import load_migrations
from duly.errors import ConfigurationError
from duly.frameworks.django import DjangoDatabase, current_app, from_settings
from duly.frameworks.django.management.commands.duly import Command
from duly.testing.app_test import AppTest


class OrderPlaced(Event, name="order.placed", topic="orders"):
    number: int


@pytest.mark.parametrize(
    "given", [{}, {"app": "shop"}, {"app": 7}, {"app": ":app"}, ["app"], {"app": "json:nothing"}]
)
def test_an_app_that_cannot_be_found_is_said_so(given: Any) -> None:
    with override_settings(DULY=given), pytest.raises(ConfigurationError) as caught:
        current_app()
    assert caught.value.code == "DJANGO_SETTINGS"


def test_the_app_is_what_is_named() -> None:
    with override_settings(DULY={"app": "json:decoder.JSONDecoder"}):
        assert current_app().__name__ == "JSONDecoder"


def test_an_app_is_made_with_what_else_is_there() -> None:
    with override_settings(DULY={"app": "a:b", "using": "postgres", "workers": 8}):
        made = from_settings()
    assert isinstance(made.pop("database"), DjangoDatabase)
    assert made == {"workers": 8}


@pytest.mark.parametrize("dialect", ["sqlite", "postgres", "mysql"])
def test_every_migration_of_a_store_has_one_of_djangos(dialect: str) -> None:
    folder = files("duly.frameworks.django") / "migrations"
    ours = {entry.name[:-3] for entry in folder.iterdir() if entry.name[:4].isdigit()}
    stored = load_migrations(f"duly.databases.{dialect}", prefix="duly_")
    assert ours == {f"{version:04d}_{name}" for version, name, _ in stored}


def test_words_for_django_do_not_reach_duly(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DULY_APP", "nowhere:app")  # what the command sets where nobody has
    with override_settings(DULY={"app": "nowhere:app"}):
        for words in (["--version"], ["--settings=a.b", "--version", "--pythonpath", "/x"]):
            with pytest.raises(SystemExit) as ended:
                Command().run_from_argv(["manage.py", "duly", *words])
            assert ended.value.code == 0
            assert capsys.readouterr().out.startswith("duly, version")
        with pytest.raises(SystemExit) as ended:
            Command().run_from_argv(["manage.py", "duly", "outbox", "stats"])
        assert ended.value.code == 1
        assert "APP_MODULE" in capsys.readouterr().err
        with pytest.raises(CommandError, match="ended with 2"):
            call_command("duly", "no-such-command")


@pytest.mark.parametrize(
    ("database", "codes"), [(DjangoDatabase(), {"ASYNC_BESIDE_ORM"}), (None, set())]
)
def test_async_handlers_are_refused_beside_the_orm(database: Any, codes: set[str]) -> None:
    app = App("shop", database=database)

    @app.on(OrderPlaced, group="plain")
    def plain(event: OrderPlaced) -> None: ...

    assert {finding.code for finding in check_code(app)}.isdisjoint({"ASYNC_BESIDE_ORM"})

    @app.on(OrderPlaced, group="async")
    async def colour(event: OrderPlaced) -> None: ...

    assert {f.code for f in check_code(app)} & {"ASYNC_BESIDE_ORM"} == codes


def test_a_handler_without_django_has_no_alias(tmp_path: Path) -> None:
    app = App("shop")

    @app.on(OrderPlaced, group="plain")
    def plain(event: OrderPlaced, tx: Tx) -> None:
        assert tx.using

    with AppTest(app, tmp_path) as test:
        with test.session.begin():
            app.publish(test.session, OrderPlaced(number=1))
        assert test.drain().failures == ("plain/plain.order.placed: NOT_DJANGO",)
