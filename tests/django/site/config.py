"""Settings of the site. The database is that of SITE_DATABASE: a path, or a URL of PostgreSQL."""

import json
import os
from urllib.parse import parse_qsl, unquote, urlsplit

import django


def database_of(place: str) -> dict[str, object]:
    """Return the entry of DATABASES for a path or a URL."""
    if not place.startswith("postgresql:"):
        careful = "PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=0"
        options = {"transaction_mode": "IMMEDIATE", "init_command": careful}
        test = {"NAME": os.environ.get("SITE_TEST_DATABASE", f"{place}.test")}
        engine = "django.db.backends.sqlite3"
        return {"ENGINE": engine, "NAME": place, "OPTIONS": options, "TEST": test}
    url = urlsplit(place)
    given = dict(parse_qsl(url.query))
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": url.path.lstrip("/"),
        "USER": given.get("user") or unquote(url.username or ""),
        "PASSWORD": unquote(url.password or ""),
        "HOST": url.hostname or given.get("host", ""),
        "PORT": url.port or given.get("port", ""),
        "OPTIONS": {"assume_role": given["assume_role"]} if "assume_role" in given else {},
    }


SECRET_KEY = "for tests"
USE_TZ = True
DEBUG = False
DATABASES = {"default": database_of(os.environ["SITE_DATABASE"])}
DATABASES["archive"] = DATABASES["default"] | {"NAME": f"{DATABASES['default']['NAME']}_archive"}
if "TEST" in DATABASES["default"]:
    DATABASES["archive"]["TEST"] = {"NAME": f"{DATABASES['archive']['NAME']}.test"}
INSTALLED_APPS = ["tenure.contrib.django", "shop"]
if django.VERSION < (6,):
    INSTALLED_APPS.append("django_tasks")
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
TASKS = {
    "default": {
        "BACKEND": "tenure.contrib.django.TenureBackend",
        "QUEUES": [],
        "OPTIONS": {
            "tasks": {
                "shop.tasks.ship_once": {"atomic": True},
                "shop.tasks.ship_slowly": {"atomic": True},
                "shop.tasks.apart": {"process": True},
                "shop.tasks.hosts": {"process": True},
                "shop.tasks.flaky": {"retry_exceptions": True, "backoff": 0.01},
            },
            **json.loads(os.environ.get("SITE_OPTIONS", "{}")),
        },
    },
    "slow": {
        "BACKEND": "tenure.contrib.django.TenureBackend",
        "QUEUES": ["slow"],
        "OPTIONS": {"retry_exceptions": True, "max_retries": 2, "backoff": 0.01}
        | {"tasks": {"shop.tasks.ship_async": {"process": True}}}
        | json.loads(os.environ.get("SITE_SLOW_OPTIONS", "{}")),
    },
    "archive": {
        "BACKEND": "tenure.contrib.django.TenureBackend",
        "QUEUES": [],
        "OPTIONS": {"database": "archive"},
    },
}
CACHES = {"default": {"BACKEND": "shop.caches.Counted"}}
if os.environ.get("SITE_MIGRATIONS") == "off":  # as pytest --nomigrations
    MIGRATION_MODULES = {"tenure": None, "shop": None}
