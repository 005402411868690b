"""The site, and the dashboard below /jobs/ for its superusers."""

from __future__ import annotations

import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "examples.django_site.settings")
site = get_asgi_application()

from tenure.contrib.django import asgi  # noqa: E402 - Django is set up now

application = asgi(site, "/jobs")
