"""Orders, their lines, what was billed, and an archive on another database."""

from django.db import models


class Order(models.Model):
    number = models.IntegerField(unique=True)
    placed_at = models.DateTimeField(auto_now_add=True)


class Line(models.Model):
    order = models.ForeignKey(Order, models.CASCADE)


class Invoice(models.Model):
    number = models.IntegerField()
    total = models.DecimalField(max_digits=10, decimal_places=2)
    paid = models.BooleanField(default=False)
    details = models.JSONField(default=dict)
    billed_at = models.DateTimeField(auto_now_add=True)


class Archived(models.Model):
    number = models.IntegerField()
