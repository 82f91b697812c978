"""What a migration of Django's does: duly's own migrations, on the database being migrated.

One source of truth: the SQL is the store's, run by the store, with its lock and its record of
versions; so ``manage.py migrate`` and ``duly db upgrade`` may be mixed in any order.  It runs on a
connection of duly's, beside Django's, which therefore holds no transaction (``atomic = False``).
"""

from __future__ import annotations

from typing import Any

from duly.frameworks.django.configuration import current_app, using
from duly.frameworks.django.source import DjangoDatabase

__all__ = ["make_tables"]


def make_tables(_apps: Any, schema_editor: Any) -> None:
    """Run what is pending, where the App's tables belong; nothing on other databases.

    Idempotence: safe to repeat. Raises SchemaError (another App's tables) and what the database
    raises.
    """
    alias = schema_editor.connection.alias
    if alias != using():
        return
    with current_app().override(database=DjangoDatabase(alias)) as app:
        app.upgrade_tables()
