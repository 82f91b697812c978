"""The pytest plugin: ``pip install duly`` and these fixtures are there.

Owns the fixtures and nothing else; what they give is in ``duly.testing.app_test``, imported when a
test asks for it.

    # conftest.py
    @pytest.fixture
    def duly_app():
        from shop import app
        return app

    # test_orders.py
    def test_an_order_is_charged(app_test):
        place_order(app_test.session, order_id=7)
        app_test.session.commit()
        app_test.drain()
        app_test.assert_published(ChargeCard, order_id=7)
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from duly.app import App
    from duly.testing.app_test import AppTest

__all__ = ["app_test", "duly_app"]


@pytest.fixture
def duly_app() -> App:
    """The App that ``app_test`` tests; to be defined by you, in ``conftest.py``."""
    pytest.fail("app_test needs a fixture duly_app that returns your App", pytrace=False)


@pytest.fixture
def app_test(duly_app: App, tmp_path: Path) -> Iterator[AppTest]:
    """The App of ``duly_app`` on a fresh SQLite file; see ``duly.testing.app_test.AppTest``."""
    from duly.testing.app_test import AppTest

    with AppTest(duly_app, tmp_path) as test:
        yield test
