"""Django: atomic requests, the ORM in the background, connections given back."""

import threading
from typing import Any

import django
from django.conf import settings
from django.db import connection, connections, models, transaction
from django.http import HttpRequest, JsonResponse
from django.urls import path

settings.configure(
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": "shop.db",
            "ATOMIC_REQUESTS": True,
            "CONN_MAX_AGE": 0,
        }
    },
    ROOT_URLCONF=__name__,
    ALLOWED_HOSTS=["*"],
    INSTALLED_APPS=[],
    LOGGING_CONFIG=None,
    SECRET_KEY="test",
)
django.setup()

from django.test import Client

from duly import App
from duly.errors import CrossesThreadsError

app = App("shop", database="sqlite:///shop.db", broker="embedded:///broker.db")


class Order(models.Model):
    id = models.IntegerField(primary_key=True)

    class Meta:
        app_label = "shop"


@app.background(pool="mail", workers=1)
def send_receipt(order_id: int) -> tuple[bool, bool, int]:
    inside = connection.in_atomic_block
    found = Order.objects.filter(id=order_id).exists()
    return found, inside, threading.get_ident()


@app.background(pool="mail")
def connected() -> bool:
    return connections["default"].connection is not None


SENT: list[Any] = []


def place(_: HttpRequest, order_id: int) -> JsonResponse:
    order = Order.objects.create(id=order_id)
    SENT.append(send_receipt.after(connection).submit(order.id))
    try:
        with transaction.atomic():
            SENT.append(send_receipt.after(connection).submit(order.id))
            raise LookupError
    except LookupError:
        return JsonResponse({"begun": SENT[0].done()})


def careless(_: HttpRequest, what: str) -> JsonResponse:
    given = {"connection": connections["default"], "proxy": connection, "cursor": None}[what]
    with connection.cursor() as cursor:
        try:
            send_receipt.submit(given or cursor)  # type: ignore[arg-type]
        except CrossesThreadsError as error:
            return JsonResponse({"refused": error.code})
    return JsonResponse({})


urlpatterns = [path("orders/<int:order_id>", place), path("careless/<str:what>", careless)]

with connection.schema_editor() as editor:
    editor.create_model(Order)
client = Client()
assert client.post("/orders/1").json() == {"begun": False}
assert SENT[1].cancelled()
found, inside, thread = SENT[0].result(20)
assert (found, inside) == (True, False)
assert thread != threading.get_ident()
assert not connected.submit().result(20)  # the worker gave its connection back
for what in ("connection", "proxy", "cursor"):
    assert client.post(f"/careless/{what}").json() == {"refused": "CROSSES_THREADS"}, what
order = Order.objects.get(id=1)
assert app.background(name="model")(lambda one: one.id).submit(order).result(20) == 1
print("django ok")
