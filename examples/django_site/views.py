"""The page of the site."""

from __future__ import annotations

from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.template import engines
from django.template.context_processors import csrf
from django.views.decorators.http import require_http_methods

from examples.django_site.models import Note
from examples.django_site.tasks import count_words

PAGE = """\
<!doctype html>
<html lang="en">
<title>Notes</title>
<h1>Notes</h1>
<form method="post">{% csrf_token %}
  <label>Text <input name="text" required></label> <button>Write</button>
</form>
<ul>
{% for note in notes %}<li>{{ note.text }}: {{ note.words|default_if_none:"…" }} words</li>
{% endfor %}</ul>
<p><a href="/admin/tenure/job/">Jobs in the admin</a>, <a href="/jobs/">in the dashboard</a></p>
"""


@require_http_methods(["GET", "POST"])
def notes(request: HttpRequest) -> HttpResponse:
    if request.method == "POST":
        with transaction.atomic():  # the note and its task, or neither
            note = Note.objects.create(text=request.POST["text"])
            note.task = count_words.enqueue(note.pk).id
            note.save(update_fields=["task"])
        return redirect("notes")
    shown = {"notes": Note.objects.order_by("-pk")[:20], **csrf(request)}
    return HttpResponse(engines["django"].from_string(PAGE).render(shown))
