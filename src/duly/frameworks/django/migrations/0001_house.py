"""The store's 0001_house: all of duly's tables, and the outbox as an unmanaged model.

There is one file here per migration of the store.  Going back leaves the tables as they are: they
hold messages.
"""

from __future__ import annotations

from django.db import migrations, models

from duly.frameworks.django.configuration import outbox_table
from duly.frameworks.django.tables import make_tables

__all__ = ["Migration"]


class Migration(migrations.Migration):  # type: ignore[misc]  # Django ships no types
    """Version 1 of the tables."""

    initial = True
    atomic = False
    operations = (
        migrations.RunPython(make_tables, migrations.RunPython.noop),
        migrations.CreateModel(
            name="OutboxMessage",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("message_id", models.CharField(max_length=64)),
                ("message_type", models.CharField(max_length=120)),
                ("kind", models.CharField(max_length=16)),
                ("topic", models.CharField(max_length=120)),
                ("payload", models.BinaryField()),
                ("headers", models.TextField()),
                ("status", models.CharField(max_length=16)),
                ("attempts", models.IntegerField()),
            ],
            options={"managed": False, "db_table": outbox_table()},
        ),
    )
