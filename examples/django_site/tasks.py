"""The tasks of the site. Django 5.2 has them from the package `django-tasks`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import django

from examples.django_site.models import Note

if TYPE_CHECKING or django.VERSION >= (6,):
    from django.tasks import task
else:
    from django_tasks import task


@task
def count_words(note_id: int) -> int:
    """Count them. The settings say `atomic`: the row and the end of the task are one commit."""
    note = Note.objects.get(pk=note_id)
    note.words = len(note.text.split())
    note.save(update_fields=["words"])
    return note.words
