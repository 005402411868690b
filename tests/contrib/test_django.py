"""What Django's backend says where it cannot work."""

from __future__ import annotations

import subprocess
import sys

WITHOUT_TASKS = """
import sys
import django

django.VERSION = (5, 2, 0, "final", 0)
sys.modules["django_tasks"] = None
import tenure.contrib.django.models
"""


def test_a_django_without_tasks_named_a_module_and_nothing_to_do() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TASKS], check=False, capture_output=True, text=True
    )
    assert done.stderr.splitlines()[-1] == (
        "django.core.exceptions.ImproperlyConfigured: Django before 6.0 has no tasks: pip install "
        "django-tasks, and add django_tasks to INSTALLED_APPS"
    )
