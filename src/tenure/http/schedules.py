"""Schedules over HTTP."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType
from starlette.responses import Response

from tenure.errors import IllegalEdition, InvalidInput, ScheduleNotFound
from tenure.http.bodies import convert
from tenure.http.call import Call, answer
from tenure.rules.schedules import Schedule
from tenure.rules.search import MAX_LISTED
from tenure.rules.times import MAX_PREVIEWED, preview
from tenure.values.names import check_key
from tenure.wire.problems import Refusal
from tenure.wire.requests import Name, RunAt, TimeText, arguments_of, schedule_body

Limit = Annotated[int, Meta(ge=1, le=MAX_LISTED)]
NO_EDITION = 0
"""The first edition is 1."""
TAG = r'(W/)?"[!#-~]*"'
MATCH_PATTERN = rf"^(\*|{TAG}( *, *{TAG})*)$"
_tags_in = re.compile(TAG)


class SchedulesQuery(Struct, kw_only=True):
    """How many schedules to list, and after which name."""

    limit: Limit = 50
    after: Name | UnsetType = UNSET


class FiresQuery(Struct, kw_only=True):
    """How many fires to list, of ticks before which time."""

    limit: Limit = 50
    before: TimeText | None = None


class TimesQuery(Struct, kw_only=True):
    """How many ticks to show."""

    count: Annotated[int, Meta(ge=1, le=MAX_PREVIEWED)] = 5


def list_schedules(call: Call) -> Response:
    """List schedules by name."""
    found = call.app.schedules.list(limit=call.query.limit, after=call.query.after or "")
    return answer([schedule_body(each, call.redaction) for each in found])


def show_schedule(call: Call) -> Response:
    """Show a schedule."""
    return _shown(call, call.app.schedules.get(call.path["name"]))


def _exists() -> Refusal:
    detail = "there is a schedule of this name already"
    return Refusal(412, "schedule_exists", "The schedule exists", detail)


def _is_another() -> Refusal:
    return Refusal(
        412,
        "precondition_failed",
        "The schedule is another one",
        "no schedule has this name and the `ETag` of `If-Match`; read it, then send this again",
    )


def put_schedule(call: Call) -> Response:
    """Make a schedule, or replace it: with `If-Match` that edition, with `If-None-Match` none."""
    only_new = _only_new(call)
    schedules, options = call.app.schedules, arguments_of(call.body) | _by(call)
    if not only_new:
        try:
            return _shown(call, _matched(call, schedules.update, **options))
        except ScheduleNotFound:
            if call.header("If-Match") is not None:
                raise _is_another() from None
    try:
        return _shown(call, schedules.create(**options), 201)
    except InvalidInput as refused:  # perhaps because there is one, by now
        try:
            if only_new:
                schedules.get(options["name"])
                raise _exists() from None
            return _shown(call, schedules.update(**options))
        except ScheduleNotFound:
            raise refused from None


def delete_schedule(call: Call) -> Response:
    """Delete a schedule and the record of its fires; with `If-Match`, only that edition."""
    return _shown(call, _matched(call, call.app.schedules.delete, name=call.path["name"]))


def _matched(call: Call, change: Callable[..., Schedule], **given: Any) -> Schedule:
    """Change the schedule as the `If-Match` of the call allows (RFC 9110, 13.1.1)."""
    wanted, edition = call.header("If-Match"), None
    if wanted is not None and not re.fullmatch(MATCH_PATTERN, wanted):
        raise InvalidInput('send the `ETag` of the schedule, such as "3", or *', path="If-Match")
    if wanted not in (None, "*"):
        current = call.app.schedules.get(call.path["name"]).edition
        tags = [tag[0] for tag in _tags_in.finditer(wanted)]
        edition = current if f'"{current}"' in tags else NO_EDITION
    try:
        return change(**given, edition=edition)
    except IllegalEdition as error:
        if edition in (None, error.edition):  # it is declared in code
            raise
        raise _is_another() from None


def _only_new(call: Call) -> bool:
    """Return whether the call is to make a schedule, by its `If-None-Match`, and change none."""
    wanted = call.header("If-None-Match")
    if wanted is not None and (wanted != "*" or call.header("If-Match") is not None):
        raise InvalidInput("send `*`, and no `If-Match` with it", path="If-None-Match")
    return wanted is not None


def pause_schedule(call: Call) -> Response:
    """Let the ticks of a schedule add no jobs."""
    return _shown(call, call.app.schedules.pause(**_by(call), reason=call.body.reason))


def resume_schedule(call: Call) -> Response:
    """Let the ticks of a schedule add jobs again."""
    return _shown(call, call.app.schedules.resume(**_by(call), catch_up=call.body.catch_up))


def trigger_schedule(call: Call) -> Response:
    """Add the job of a schedule now."""
    key = call.header("Idempotency-Key")
    key = key and check_key(key, "Idempotency-Key")
    return answer(call.app.schedules.trigger(**_by(call), overlap=call.body.overlap, key=key))


def backfill_schedule(call: Call) -> Response:
    """Add the jobs of past ticks that have none yet."""
    return answer(call.app.schedules.backfill(**_by(call), **arguments_of(call.body)))


def list_fires(call: Call) -> Response:
    """List the past ticks of a schedule and their outcomes, newest first."""
    before = call.query.before and convert(call.query.before, RunAt, root="query before")
    name, limit = call.path["name"], call.query.limit
    return answer(call.app.schedules.fires(name, limit=limit, before=before))


def next_ticks(call: Call) -> Response:
    """Say when a schedule is due next, and on which days its clocks change."""
    when = call.app.schedules.get(call.path["name"]).when
    return answer(preview(when, call.app.core.clock(), call.query.count))


def preview_schedule(call: Call) -> Response:
    """Say when a schedule would be due; nothing is stored."""
    return answer(call.app.schedules.preview(call.query.count, **arguments_of(call.body)))


def _by(call: Call) -> dict[str, Any]:
    return {"name": call.path["name"], "actor": call.caller.name}


def _shown(call: Call, schedule: Schedule, status: int = 200) -> Response:
    tag = {"ETag": f'"{schedule.edition}"'}
    return answer(schedule_body(schedule, call.redaction), status, tag)
