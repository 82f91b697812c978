"""The store's 0003_run: the runs of batch jobs.

Nothing here is a model: these tables are duly's alone.
"""

from __future__ import annotations

from django.db import migrations

from duly.frameworks.django.tables import make_tables

__all__ = ["Migration"]


class Migration(migrations.Migration):  # type: ignore[misc]  # Django ships no types
    """Version 3 of the tables."""

    atomic = False
    dependencies = (("duly", "0002_offset"),)
    operations = (migrations.RunPython(make_tables, migrations.RunPython.noop),)
