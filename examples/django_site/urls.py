"""The page, and Django's admin."""

from __future__ import annotations

from django.contrib import admin
from django.contrib.staticfiles.urls import staticfiles_urlpatterns
from django.urls import path

from examples.django_site.views import notes

urlpatterns = [
    path("", notes, name="notes"),
    path("admin/", admin.site.urls),
    *staticfiles_urlpatterns(),
]
