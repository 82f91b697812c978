"""A request is one transaction (ATOMIC_REQUESTS)."""

from django.http import HttpResponse

from duly.frameworks.django import publish
from shop.messages import OrderPlaced
from shop.models import Order


def order(request, number):
    Order.objects.create(number=number)
    publish(OrderPlaced(number=number), key=number)
    return HttpResponse("placed")


def lost(request, number):
    order(request, number)
    raise LookupError("after publish")
