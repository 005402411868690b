"""What people write, and what the tasks find out about it."""

from __future__ import annotations

from django.db import models


class Note(models.Model):
    text = models.TextField()
    words = models.IntegerField(null=True)
    task = models.CharField(max_length=36, blank=True)

    def __str__(self) -> str:
        return self.text[:40]
