"""Errors over the wire: written and read by one table, and the same at both ends."""

from __future__ import annotations

import json
from collections.abc import Iterator

import msgspec
import pytest

from tenure import errors
from tenure.rules import reports
from tenure.wire import problems
from tenure.wire.problems import KINDS, Refusal, error_of, problem_of


def sent(error: Exception, path: str = "/jobs") -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the answer to a request that failed."""
    body, headers = problem_of(error, path, [(b"x-request-id", b"r1")])
    return body.status, headers, msgspec.json.encode(body)


EXAMPLES = [
    errors.InvalidInput("give a number", path="$.priority"),
    errors.InvalidInput("too deep", path="$", code="too_deep"),
    errors.PayloadTooLarge("2 bytes; the limit is 1", path="$.payload"),
    errors.Unauthorized("send the token"),
    errors.Forbidden("needs the scope read"),
    errors.JobNotFound("0190163d-8694-739b-aea5-966c26f8ad90"),
    errors.BulkNotFound("0190163d-8694-739b-aea5-966c26f8ad90"),
    errors.ScheduleNotFound("nightly"),
    errors.SignalTokenNotFound(),
    errors.WorkflowNotFound("0190163d-8694-739b-aea5-966c26f8ad90"),
    errors.IllegalEdition("nightly", 3, "it was changed since you read it"),
    errors.IllegalTransition("j", "completed", "cancelled", ()),
    errors.IllegalTransition("j", "failed", "retried", ("retried",), "its attempts are used up: 3"),
    errors.LeaseLost("j"),
    errors.LeaseLost("j", "lease_expired"),
    errors.KeyConflict("k", "j"),
    errors.KeyConflict("k", workflow_id="w"),
    errors.DuplicateJob("j"),
    errors.QueueFull("mail", 0),
    errors.LimitConflict("a partition is paused: resume it first"),
]


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_arrives_as_it_left(error: errors.TenureError) -> None:
    status, _, body = sent(error)
    received = error_of(status, body)
    assert type(received) is type(error)
    assert str(received) == str(error)
    assert vars(received) == vars(error)
    assert received.code == error.code


def every_error() -> Iterator[type[errors.TenureError]]:
    waiting = errors.TenureError.__subclasses__()
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        yield kind


def test_every_error_has_a_place_in_the_table() -> None:
    """All but those that handlers raise, and those that say why a result cannot be had."""
    listed = {kind.error for kind in KINDS}
    raised = {kind for kind in every_error() if kind.__module__ == reports.__name__}
    raised |= {errors.PermanentFailure, errors.JobFailed, errors.JobCancelled}
    raised |= {errors.ResultGone, errors.ResultTruncated, errors.DuplicateStep, errors.JobUnsettled}
    raised |= {errors.SignalTimeout, errors.MoveRefused}
    assert set(every_error()) - listed == raised
    assert {type(example) for example in EXAMPLES} == listed - {
        errors.StoreUnavailable,
        errors.StoreMoved,
        errors.WriteRefused,
        errors.SchemaMismatch,
    }


@pytest.mark.parametrize("kind", [errors.StoreUnavailable, errors.SchemaMismatch])
def test_what_a_database_said_stays_here(kind: type[errors.TenureError]) -> None:
    status, headers, body = sent(kind("postgresql://user:secret@host: no route"))
    assert status == 503
    assert b"secret" not in body
    assert int(headers["Retry-After"]) >= 1
    assert isinstance(error_of(status, body), errors.StoreUnavailable)


def test_an_unknown_error_tells_nothing() -> None:
    status, _, body = sent(RuntimeError("secret"))
    assert status == 500
    assert b"secret" not in body
    assert isinstance(error_of(status, body), errors.StoreUnavailable)


def test_a_refusal_of_http_is_a_problem_too() -> None:
    refusal = Refusal(415, "unsupported_media_type", "Unsupported", "send JSON", {"Accept": "x"})
    status, headers, text = sent(refusal)
    body = json.loads(text)
    assert (status, body["code"], body["instance"]) == (415, refusal.code, "/jobs")
    assert headers == {"Accept": "x", "X-Request-Id": "r1"}
    assert body["request_id"] == "r1"
    assert type(error_of(status, text)) is errors.TenureError


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"{}", b'{"status": 409}', b"\xff"])
def test_what_is_no_problem_of_ours(body: bytes) -> None:
    assert type(error_of(413, body)) is errors.TenureError  # about this request, not the server
    for status in (302, 401, 404, 429, 502):
        assert type(error_of(status, body)) is errors.StoreUnavailable


def test_a_problem_without_its_members_is_still_an_error() -> None:
    body = json.loads(sent(errors.LeaseLost("j"))[2])
    del body["job_id"]
    received = error_of(409, json.dumps(body).encode())
    assert type(received) is errors.TenureError
    assert str(received) == body["detail"]


def test_texts_that_utf_8_cannot_say() -> None:
    _, _, body = sent(errors.InvalidInput("half of \ud800", path="$.\udfff"), "/\ud800")
    assert json.loads(body)["code"] == "invalid_input"
    assert problems.storable("\ud800") == "\\ud800"
