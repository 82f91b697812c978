"""The store's 0005_settled: a function of PostgreSQL for the flush of keyed messages.

Nothing here is a model: these tables are duly's alone.
"""

from __future__ import annotations

from django.db import migrations

from duly.frameworks.django.tables import make_tables

__all__ = ["Migration"]


class Migration(migrations.Migration):  # type: ignore[misc]  # Django ships no types
    """Version 5 of the tables."""

    atomic = False
    dependencies = (("duly", "0004_global_tx"),)
    operations = (migrations.RunPython(make_tables, migrations.RunPython.noop),)
