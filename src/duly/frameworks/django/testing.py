"""What a test case of Django's sees of publishing: a mixin for ``TestCase`` and the others.

Messages are stored in the transaction of the test, so they are seen without a commit and gone with
the test.  ``TransactionTestCase`` commits: its mixin looks only at what came after ``setUp``.

    class OrderTest(PublishedMixin, TestCase):
        def test_an_order_is_announced(self):
            place_order(7)
            self.assert_published(OrderPlaced, order_id=7)
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from duly.errors import ConfigurationError
from duly.frameworks.django.configuration import current_app, using
from duly.message import HEADER_VERSION

if TYPE_CHECKING:
    from unittest import TestCase
else:
    TestCase = object

__all__ = ["PublishedMixin"]

_SHOWN_MAX = 20


class PublishedMixin(TestCase):
    """To be named before ``TestCase`` in a class."""

    def setUp(self) -> None:
        """Remember what is there already."""
        super().setUp()
        last = self._rows().order_by("-id").first()
        self._before = 0 if last is None else int(last.id)

    def published(self, kind: type | None = None) -> list[Any]:
        """What this test has published and nothing has relayed yet, in order, as objects of their
        classes; kind: only of this class.
        """
        rows = self._rows().filter(id__gt=self._before).order_by("id")
        found = [_object(row) for row in rows]
        return found if kind is None else [one for one in found if type(one) is kind]

    def assert_published(self, kind: type, **fields: Any) -> Any:
        """Return the one message of this class with these values of fields; more than one is wrong,
        too.
        """
        found = [
            one
            for one in self.published(kind)
            if all(getattr(one, name) == value for name, value in fields.items())
        ]
        if len(found) == 1:
            return found[0]
        wanted = ", ".join(f"{name}={value!r}" for name, value in fields.items())
        count = "was not published" if not found else f"was published {len(found)} times"
        raise self.failureException(f"{kind.__qualname__}({wanted}) {count}; {self._shown()}")

    def assert_nothing_published(self, kind: type | None = None) -> None:
        """Nothing was published by this test, or nothing of this class."""
        if self.published(kind):
            what = "nothing" if kind is None else f"no {kind.__qualname__}"
            raise self.failureException(f"{what} should have been published; {self._shown()}")

    def _shown(self) -> str:
        found = self.published()
        lines = [f"  {one!r}"[:300] for one in found[:_SHOWN_MAX]]
        if len(found) > _SHOWN_MAX:
            lines.append(f"  and {len(found) - _SHOWN_MAX} more")
        return "\n".join(["published so far:", *lines]) if lines else "nothing was published"

    @staticmethod
    def _rows() -> Any:
        from duly.frameworks.django.models import OutboxMessage

        return OutboxMessage.objects.using(using())


def _object(row: Any) -> Any:
    registry = current_app().registry
    spec = registry.find(row.message_type, int(json.loads(row.headers).get(HEADER_VERSION, 1)))
    if spec is None:
        raise ConfigurationError(f"{row.message_type} is stored and unknown to this App")
    return registry.decode(spec, bytes(row.payload))
