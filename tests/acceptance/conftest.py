"""The two stacks that everything must work on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.shop_app import Shop

MakeShop = Callable[..., Shop]


@pytest.fixture(params=["sqlite+embedded", "postgres+rabbitmq"])
def stack(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    """The URLs of a database and a broker."""
    if request.param.startswith("sqlite"):
        return f"sqlite:///{tmp_path / 'shop.db'}", f"embedded:///{tmp_path / 'broker.db'}"
    return request.getfixturevalue("postgres_url"), request.getfixturevalue("rabbitmq_url")


@pytest.fixture
def make_shop(stack: tuple[str, str]) -> Iterator[MakeShop]:
    """Makes shops on this stack, with other settings where they are given."""
    made: list[Shop] = []

    def make(**settings: Any) -> Shop:
        made.append(Shop(*stack, **settings))
        return made[-1]

    yield make
    for shop in made:
        shop.close()


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Shop]:
    """A shop on SQLite and the embedded broker."""
    shop = Shop(f"sqlite:///{tmp_path / 'shop.db'}", f"embedded:///{tmp_path / 'broker.db'}")
    yield shop
    shop.close()
