"""The outbox as Django sees it: for its router and for tests.

The table is the store's (``managed = False``): its columns and indexes are made by duly's own
migrations, and rows are written and settled by duly alone.  Only what reads alike on every database
is a field here.
"""

from __future__ import annotations

from django.db import models

from duly.frameworks.django.configuration import outbox_table

__all__ = ["OutboxMessage"]


class OutboxMessage(models.Model):  # type: ignore[misc]  # Django ships no types
    """A stored message that is not relayed yet, or is kept as history."""

    id = models.BigAutoField(primary_key=True)
    message_id = models.CharField(max_length=64)
    message_type = models.CharField(max_length=120)
    kind = models.CharField(max_length=16)
    topic = models.CharField(max_length=120)
    payload = models.BinaryField()
    headers = models.TextField()
    status = models.CharField(max_length=16)
    attempts = models.IntegerField()

    class Meta:
        managed = False
        app_label = "duly"
        db_table = outbox_table()

    def __str__(self) -> str:
        return f"{self.message_type} {self.message_id}"
