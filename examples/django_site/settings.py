"""Settings of the site. What Tenure needs: its application, TASKS, and four words for SQLite."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import django

DATABASE_URL = os.environ.get("DATABASE_URL", "")
"""`postgresql://user:password@host/name`; without one, a file beside you."""


def database() -> dict[str, Any]:
    if not DATABASE_URL:
        return {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": os.environ.get("NOTES_FILE", Path.cwd() / "notes.db"),
            "OPTIONS": {
                "transaction_mode": "IMMEDIATE",
                "init_command": "PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=0",
            },
        }
    from psycopg.conninfo import conninfo_to_dict

    given = conninfo_to_dict(DATABASE_URL)
    engine = "django.db.backends.postgresql"
    return {"ENGINE": engine, "NAME": given.pop("dbname"), "OPTIONS": given}


DATABASES = {"default": database()}
TASKS = {
    "default": {
        "BACKEND": "tenure.contrib.django.TenureBackend",
        "QUEUES": [],
        "OPTIONS": {"tasks": {"examples.django_site.tasks.count_words": {"atomic": True}}},
    }
}
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "tenure.contrib.django",
    "examples.django_site",
    *([] if django.VERSION >= (6,) else ["django_tasks"]),
]

DEBUG = True
SECRET_KEY = "for trying it on your own machine"
ALLOWED_HOSTS = ["127.0.0.1", "localhost", "testserver"]
ROOT_URLCONF = "examples.django_site.urls"
ASGI_APPLICATION = "examples.django_site.asgi.application"
LOGIN_URL = "admin:login"
STATIC_URL = "static/"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
