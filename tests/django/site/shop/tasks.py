"""Tasks of the site."""

import django

if django.VERSION >= (6,):
    from django.tasks import task
else:
    from django_tasks import task

from shop.models import Order


@task
def ship(number: int, by: int = 1) -> dict[str, int]:
    """Ship an order."""
    order = Order.objects.get(number=number)
    order.shipped += by
    order.save()
    return {"shipped": order.shipped}


@task
async def ship_async(number: int) -> int:
    """Ship an order with Django's asynchronous queries."""
    order = await Order.objects.aget(number=number)
    order.shipped += 1
    await order.asave()
    return order.shipped


@task
def fail() -> None:
    """Fail."""
    raise ValueError("no such order")
