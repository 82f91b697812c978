"""``settings.DULY``: which App a project has, and what it is made with.

    app        "MODULE:APP", for ``publish``, migrations and ``manage.py duly``
    using      the alias of the database that holds duly's tables; ``default``
    others     any setting of duly (docs/reference/settings.md), as in ``duly.toml``

Read when it is needed, never at import.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from duly.errors import ConfigurationError
from duly.frameworks.django.source import DjangoDatabase

__all__ = ["app_name", "current_app", "from_settings", "outbox_table", "using"]

_OURS = {"app", "using"}


def from_settings() -> dict[str, Any]:
    """What an App of this project is made with: ``App("shop", **from_settings())``.

    Raises ConfigurationError (DJANGO_SETTINGS).
    """
    given = {name: value for name, value in _given().items() if name not in _OURS}
    return {"database": DjangoDatabase(using()), **given}


def using() -> str:
    """The alias of the database that holds duly's tables."""
    return str(_given().get("using", "default"))


def app_name() -> str:
    """``MODULE:APP``. Raises ConfigurationError (DJANGO_SETTINGS) where it is not set."""
    name = _given().get("app")
    if not isinstance(name, str) or not all(name.partition(":")):
        raise ConfigurationError(
            'settings.DULY needs the App: DULY = {"app": "shop.messages:app"}',
            code="DJANGO_SETTINGS",
        )
    return name


def current_app() -> Any:
    """The App of this project. Raises ConfigurationError (DJANGO_SETTINGS), ImportError."""
    module, _, attribute = app_name().partition(":")
    found = import_module(module)
    for name in attribute.split("."):
        if not hasattr(found, name):
            text = f"settings.DULY['app']: {module} has no attribute {attribute!r}"
            raise ConfigurationError(text, code="DJANGO_SETTINGS")
        found = getattr(found, name)
    return found


def outbox_table() -> str:
    """The name of the outbox in this project's database."""
    return f"{_given().get('table_prefix', 'duly_')}outbox"


def _given() -> dict[str, Any]:
    from django.conf import settings

    given = getattr(settings, "DULY", {})
    if not isinstance(given, dict):
        raise ConfigurationError("settings.DULY must be a dictionary", code="DJANGO_SETTINGS")
    return given
