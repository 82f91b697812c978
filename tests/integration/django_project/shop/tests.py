"""Run by ``manage.py test`` on each database; see ``test_django_project.py``."""

from unittest import mock

from django.db import connection, connections, transaction
from django.test import TestCase, TransactionTestCase

from duly.errors import ConfigurationError, NotInTransactionError, PermanentError
from duly.frameworks.django import publish, send
from duly.frameworks.django.models import OutboxMessage
from duly.frameworks.django.testing import PublishedMixin
from shop.messages import OrderPlaced, Ship, app
from shop.models import Line, Order


class NeverCommits(PublishedMixin, TestCase):
    def test_what_was_published_is_seen_without_a_commit(self):
        with transaction.atomic():
            order = Order.objects.create(number=1)
            publish(lambda: OrderPlaced(number=order.number), key=lambda: order.pk)
            send(Ship(number=1))
        self.assert_published(OrderPlaced, number=1)
        self.assertEqual([type(one) for one in self.published()], [OrderPlaced, Ship])
        with self.assertRaisesRegex(AssertionError, "was not published"):
            self.assert_published(OrderPlaced, number=2)
        self.assert_nothing_published(str)

    def test_the_one_before_has_left_nothing(self):
        self.assert_nothing_published()
        with self.assertRaisesRegex(AssertionError, "should have been"):
            publish(OrderPlaced(number=5))
            self.assert_nothing_published()

    def test_hooks_run_when_the_test_says_so(self):
        with mock.patch.object(app.outlet, "_wake") as woken:
            done = []
            with self.captureOnCommitCallbacks(execute=True):
                app.after_commit(connection, lambda: done.append(1))
                publish(OrderPlaced(number=1))
                self.assertEqual(done, [])
            self.assertEqual(done, [1])
        woken.assert_called_once_with()


class Commits(PublishedMixin, TransactionTestCase):
    databases = frozenset({"default", "other"})

    def test_outside_of_atomic_it_is_refused(self):
        with self.assertRaises(NotInTransactionError) as caught:
            publish(OrderPlaced(number=1))
        self.assertEqual(caught.exception.code, "NOT_IN_ATOMIC")
        connection.set_autocommit(False)
        try:
            with self.assertRaises(NotInTransactionError):
                publish(OrderPlaced(number=1))
        finally:
            connection.rollback()
            connection.set_autocommit(True)
        self.assert_nothing_published()

    def test_rows_and_messages_are_one(self):
        with transaction.atomic():
            Order.objects.create(number=1)
            publish(OrderPlaced(number=1), key="one")
        with self.assertRaises(LookupError), transaction.atomic():
            Order.objects.create(number=2)
            publish(OrderPlaced(number=2), key="one")
            raise LookupError
        self.assertEqual([one.number for one in self.published(OrderPlaced)], [1])
        self.assertEqual(list(Order.objects.values_list("number", flat=True)), [1])

    def test_a_savepoint_takes_its_messages_along(self):
        done = []
        with transaction.atomic():
            publish(OrderPlaced(number=1))
            with self.assertRaises(LookupError), transaction.atomic():
                publish(OrderPlaced(number=2))
                app.after_commit(connection, lambda: done.append("inner"))
                raise LookupError
            app.after_commit(connection, lambda: done.append("outer"))
        self.assertEqual([one.number for one in self.published()], [1])
        self.assertEqual(done, ["outer"])

    def test_an_error_while_storing_cannot_be_caught_and_committed(self):
        with transaction.atomic():
            Order.objects.create(number=1)
            with self.assertRaises(PermanentError):
                publish(lambda: OrderPlaced(number=1), key=lambda: None)
            with self.assertRaises(NotInTransactionError):
                publish(OrderPlaced(number=1))
        self.assertEqual(Order.objects.count(), 0)
        self.assert_nothing_published()

    def test_a_request_is_one_transaction(self):
        self.client.raise_request_exception = False
        with mock.patch.dict(connection.settings_dict, ATOMIC_REQUESTS=True):
            self.assertEqual(self.client.get("/orders/1").status_code, 200)
            self.assertEqual(self.client.get("/lost/2").status_code, 500)
        self.assertEqual([one.number for one in self.published(OrderPlaced)], [1])
        self.assertEqual(Order.objects.count(), 1)

    def test_the_router_says_where_and_another_database_is_refused(self):
        self.assertEqual(OutboxMessage.objects.all().db, "default")
        with transaction.atomic(using="other"):
            with self.assertRaises(NotInTransactionError):
                publish(OrderPlaced(number=1))
        with transaction.atomic(using="other"):
            with self.assertRaises(ConfigurationError) as caught:
                publish(OrderPlaced(number=1), using="other")
        self.assertEqual(caught.exception.code, "WRONG_DATABASE")
        with transaction.atomic():
            app.publish(connection, OrderPlaced(number=1))
            app.publish(connections["default"], OrderPlaced(number=2))
        self.assertEqual(len(self.published()), 2)

    def test_deferred_foreign_keys_stay_deferred(self):
        if connection.vendor == "mysql":
            self.assertFalse(connection.features.can_defer_constraint_checks)
            return
        with transaction.atomic():
            Line.objects.create(order_id=77)
            publish(OrderPlaced(number=7), key="seven")
            Order.objects.create(pk=77, number=7)
        self.assert_published(OrderPlaced, number=7)
