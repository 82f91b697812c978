"""What is wrong with a background function is said where it is decorated."""

from __future__ import annotations

from typing import Any

import pytest

from duly import App
from duly.errors import ConfigurationError, InvalidNameError


def nothing() -> None: ...


@pytest.mark.parametrize(
    "options",
    [
        {"worker": 3},
        {"workers": 0},
        {"workers": True},
        {"queue": -1},
        {"on_full": "wait"},
        {"executor": "processes"},
        {"timeout": "soon"},
        {"timeout": 0},
        {"full_timeout": 0},
    ],
    ids=str,
)
def test_bad_options(app: App, options: Any) -> None:
    with pytest.raises(ConfigurationError):
        app.background(**options)(nothing)


def test_names(app: App) -> None:
    with pytest.raises(InvalidNameError):
        app.background()(lambda: None)
    app.background()(nothing)
    with pytest.raises(ConfigurationError, match="two background functions"):
        app.background()(nothing)
    app.background(name="other")(nothing)


def test_not_a_function(app: App) -> None:
    with pytest.raises(ConfigurationError):
        app.background(name="f")(3)  # type: ignore[call-overload]


def test_functions_of_one_pool_may_not_contradict_each_other(app: App) -> None:
    one = app.background(pool="p", workers=2, name="one")(nothing)
    app.background(pool="p", queue=5, name="two")(nothing)
    with pytest.raises(ConfigurationError) as error:
        app.background(pool="p", workers=3, name="three")(nothing)
    assert error.value.code == "BACKGROUND_POOL"
    one.submit()
    (status,) = app.tasks.status()
    assert (status.name, status.workers, status.queue) == ("p", 2, 5)
    app.background(pool="p", workers=2, name="four")(nothing)


def test_a_pool_in_use_is_not_changed(app: App) -> None:
    app.background(pool="p", name="one")(nothing).submit()
    with pytest.raises(ConfigurationError, match="in use already"):
        app.background(pool="p", queue=7, name="two")(nothing)


def test_async_on_a_caller(app: App) -> None:
    async def work() -> None: ...

    with pytest.raises(ConfigurationError) as error:
        app.background(on_full="caller_runs")(work)
    assert error.value.code == "BACKGROUND_EXECUTOR"


def test_an_app_without_pools_has_nothing_to_drain(app: App) -> None:
    app.background()(nothing)
    assert app.tasks.drain() == (0, 0, 0)
    assert app.tasks.status() == []
    assert not app.logs_calls


def test_each_executor_has_a_pool_by_default(app: App) -> None:
    async def work() -> int:
        return 1

    assert app.background()(work).submit().result(20) == 1
    app.background()(nothing).submit().result(20)
    assert [(pool.name, pool.executor) for pool in app.tasks.status()] == [
        ("tasks", "tasks"),
        ("threads", "threads"),
    ]
