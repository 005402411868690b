"""Rows that tasks write."""

from django.db import models


class Order(models.Model):
    """An order, and how often it was shipped."""

    number = models.IntegerField(unique=True)
    shipped = models.IntegerField(default=0)
