"""The newsletter on Flask, started as its page says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tenure import Tenure
from tests.examples.programs import line_with, program, serving
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow
NEWSLETTER = "examples.flask_app"


def test_the_newsletter_in_one_process(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/newsletter.db"
    with (
        serving(NEWSLETTER, r"Running on (http://\S+)", DATABASE_URL=url) as web,
        Tenure(url) as queue,
    ):
        assert web.post("/subscribers", data={"address": "ann@example.com"}).status_code == 302
        wait_until(lambda: "ann@example.com: Welcome!" in web.get("/").text, "the mail")
        again = web.post("/subscribers", data={"address": "ann@example.com"})
        assert (again.status_code, queue.count().jobs) == (409, 1)

        for _ in range(2):  # the button is pressed twice
            web.post("/issues", data={"key": "form-1", "text": "News"})
        (issue,) = queue.find(type="send_issue")
        assert queue.wait(issue.id, timeout="20s").result == 1
        assert web.get("/").text.count("ann@example.com: News") == 1


@pytest.mark.postgres
def test_the_newsletter_with_a_worker_of_flask(postgres_url: str) -> None:
    """The mails of an issue and its completion are one commit."""
    url = postgres_url.replace("postgresql:", "postgresql+psycopg:")
    flask = ("flask", "--app", NEWSLETTER, "tenure")
    with Tenure(url) as queue, program(*flask, "worker", DATABASE_URL=url) as worker:
        line_with(worker, r"(runs jobs of)")
        with program(*flask, "enqueue", "send_issue", '{"text": "News"}', DATABASE_URL=url) as one:
            id = line_with(one, r"([0-9a-f-]{36})")
        done = queue.wait(id, timeout="20s")
        assert (done.queue, done.result) == ("issues", 0)
        assert queue.history(id)[-1].event == "completed"
