"""The tests of the site: `python -m django test examples.django_site.tests`."""

from __future__ import annotations

from django.test import TestCase

from examples.django_site.models import Note
from examples.django_site.tasks import count_words
from tenure.contrib.django.testing import TenureTestMixin


class NoteTest(TenureTestMixin, TestCase):
    def test_the_words_of_a_note_are_counted(self) -> None:
        self.client.post("/", {"text": "three short words"})
        note = Note.objects.get()
        self.jobs.assert_enqueued(count_words.module_path, {"args": [note.pk]}, count=1)
        self.jobs.drain()
        self.assertContains(self.client.get("/"), "three short words: 3 words")
        assert count_words.get_result(note.task).return_value == 3
