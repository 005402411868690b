"""The site and a worker in one process: `python -m examples.django_site [port]`."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "examples.django_site.settings")
os.environ.setdefault("DJANGO_SUPERUSER_PASSWORD", "notes")
django.setup()

if __name__ == "__main__":
    import uvicorn
    from django.contrib.auth.models import User
    from django.core.management import call_command

    from examples.django_site.asgi import application
    from tenure.contrib.django import app

    call_command("migrate", verbosity=0)
    if not User.objects.exists():
        call_command("createsuperuser", username="admin", email="", interactive=False)
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    alone = os.environ.get("NOTES_WORKER") == "no"
    with nullcontext() if alone else app.running(concurrency=4, grace=5):
        uvicorn.run(application, port=port, lifespan="off")
