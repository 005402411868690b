"""The pages of the newsletter."""

from __future__ import annotations

from uuid import uuid4

from flask import Blueprint, redirect, render_template_string, request, url_for
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from werkzeug import Response

from examples.flask_app.jobs import Mail, Subscriber, db, queue, send_issue, send_welcome

pages = Blueprint("pages", __name__)
PAGE = """\
<!doctype html>
<html lang="en">
<title>A newsletter</title>
<h1>A newsletter</h1>
<form method="post" action="{{ url_for('pages.subscribe') }}">
  <label>Address <input name="address" type="email" required></label> <button>Subscribe</button>
</form>
<form method="post" action="{{ url_for('pages.publish') }}">
  <input name="key" type="hidden" value="{{ key }}">
  <label>Text <input name="text" required></label> <button>Send to all</button>
</form>
<h2>Jobs</h2>
<ul>{% for job in jobs %}<li>{{ job.type }}: {{ job.status }}</li>{% endfor %}</ul>
<h2>Mails</h2>
<ul>{% for mail in mails %}<li>{{ mail.address }}: {{ mail.text }}</li>{% endfor %}</ul>
"""


@pages.get("/")
def index() -> str:
    mails = db.session.scalars(select(Mail).order_by(Mail.id.desc()).limit(10))
    key = uuid4().hex  # of the form: pressed twice, it sends once
    return render_template_string(PAGE, mails=mails, jobs=queue.find(limit=10), key=key)


@pages.post("/subscribers")
def subscribe() -> tuple[str, int] | Response:
    subscriber = Subscriber(address=request.form["address"])
    db.session.add(subscriber)
    try:
        db.session.flush()  # it has its id
    except IntegrityError:
        return "This address is subscribed already.", 409
    send_welcome.within(db.session).enqueue(subscriber.id)
    db.session.commit()  # both, or neither
    return redirect(url_for("pages.index"))


@pages.post("/issues")
def publish() -> Response:
    send_issue.options(idempotency_key=request.form["key"]).enqueue(request.form["text"])
    return redirect(url_for("pages.index"))
