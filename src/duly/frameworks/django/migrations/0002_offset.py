"""The store's 0002_offset: how far streams of changes are.

Nothing here is a model: the table is duly's alone.
"""

from __future__ import annotations

from django.db import migrations

from duly.frameworks.django.tables import make_tables

__all__ = ["Migration"]


class Migration(migrations.Migration):  # type: ignore[misc]  # Django ships no types
    """Version 2 of the tables."""

    atomic = False
    dependencies = (("duly", "0001_house"),)
    operations = (migrations.RunPython(make_tables, migrations.RunPython.noop),)
