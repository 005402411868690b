"""A payload reaches its handler as the annotations say, or fails for good naming what is wrong."""

from __future__ import annotations

import enum
import uuid
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple, TypedDict
from zoneinfo import ZoneInfo

import msgspec
import pytest

from tenure import InvalidInput, JobContext, NewJob, Tenure
from tenure.handlers.results import read_result
from tenure.rules.search import Filter
from tenure.store.sqlite import writer
from tests.support.workers import running_worker, wait_until_completed, wait_until_failed
from tests.worker import children


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


@dataclass
class Item:
    name: str
    price: Decimal
    tags: list[str] = field(default_factory=list)


@dataclass
class Stock:
    by_shelf: dict[int, Decimal]


class Order(msgspec.Struct):
    id: uuid.UUID
    items: list[Item]
    placed: datetime


class Point(NamedTuple):
    x: float
    y: float


class Size(TypedDict):
    width: int
    height: int


ID = uuid.UUID("0190a0b0-0000-7000-8000-000000000001")
NOON = datetime(2026, 3, 1, 12, 30, 15, 250_000, tzinfo=UTC)
EAST = timezone(timedelta(hours=5, minutes=30))

VALUES: list[tuple[Any, Any]] = [
    (str, "Grüße, 世界 \u2028 🦊"),
    (int, -(2**63)),
    (float, 0.1),
    (bool, True),
    (type(None), None),
    (bytes, b"\0\xff"),
    (datetime, NOON),
    (datetime, NOON.astimezone(EAST)),
    (date, date(2026, 2, 28)),
    (time, time(8, 30, 0, 250)),
    (time, time(8, 30, tzinfo=UTC)),
    (dict[time, int], {time(8, 30, tzinfo=EAST): 1}),
    (timedelta, timedelta(days=1, seconds=0.5)),
    (uuid.UUID, ID),
    (Decimal, Decimal("10.10")),
    (Colour, Colour.BLUE),
    (Level, Level.HIGH),
    (Literal["a", "b"], "b"),
    (Annotated[int, msgspec.Meta(ge=1)], 1),
    (Item, Item("cup", Decimal("4.20"), ["blue"])),
    (Order, Order(ID, [Item("cup", Decimal(1))], NOON)),
    (list[Item], [Item("a", Decimal(1)), Item("b", Decimal(2))]),
    (dict[str, Item], {"first": Item("a", Decimal(1))}),
    (set[int], {1, 2}),
    (tuple[int, str], (1, "a")),
    (Point, Point(1.5, -2.0)),
    (Size, {"width": 1, "height": 2}),
    (Item | None, None),
    (Item | None, Item("cup", Decimal(1))),
    (int | str, "1"),
    (dict[uuid.UUID, int], {ID: 1}),
    (dict[Colour, tuple[int, ...]], {Colour.RED: (1, 2)}),
    (dict[int, str], {-1: "a", 2: "b"}),
    (dict[float, dict[int, str]] | None, {1.5: {2: "b"}}),
    (dict[Level, int], {Level.HIGH: 1}),
    (dict[Literal[1, 2], int], {2: 1}),
    (Stock, Stock({7: Decimal(1)})),
    (Any, {"any": ["thing", 1, None]}),
    (object, {"any": ["thing", 1, None]}),
    (dict[str, object], {"any": ["thing", 1, None]}),
    (list[object] | None, [{"any": 1}, None]),
]


class Moment(datetime):
    """As those of pendulum, and of freezegun while the clock is frozen."""


class Day(date):
    pass


def test_times_of_a_subclass_are_stored_as_plain_ones(app: Tenure) -> None:
    """freezegun lets `datetime.now()` return such times, and a test with them has to run."""

    @app.job
    def seen(at: datetime, days: list[date], whatever: Any) -> list[Any]:
        kinds = [type(value).__name__ for value in (at, *days)]
        return [kinds, Moment.fromtimestamp(0, UTC), {"day": Day(2026, 1, 2)}]

    moment = Moment(2026, 3, 1, 12, 30, 15, 250_000, UTC)
    job = seen.enqueue(moment, [Day(2026, 2, 28)], {"at": moment.astimezone(EAST)})
    plain = seen.enqueue(NOON, [date(2026, 2, 28)], {"at": NOON.astimezone(EAST)})
    assert job.payload_json == plain.payload_json
    with running_worker(app):
        result = wait_until_completed(app, job).result
    assert result == [["datetime", "date"], "1970-01-01T00:00:00Z", {"day": "2026-01-02"}]


AMSTERDAM = ZoneInfo("Europe/Amsterdam")
"""Until 1937, its clocks were 19 minutes and 32 seconds ahead of UTC."""


@pytest.mark.parametrize("kind", [datetime, Moment])
def test_seconds_in_the_offset_of_a_zone_change_no_time(app: Tenure, kind: type[datetime]) -> None:
    """JSON has offsets of whole minutes: it was 28 seconds early, or no handler could read it."""
    noon = kind(1880, 1, 1, 12, tzinfo=AMSTERDAM)  # on a clock there

    @app.job
    def seen(at: datetime, by_time: dict[datetime, int]) -> list[Any]:
        return [at == noon, by_time == {noon: 1}, {noon: noon}, noon]

    job = seen.enqueue(noon, {noon: 1})
    with running_worker(app):
        result = wait_until_completed(app, job).result
    text = "1880-01-01T11:40:28Z"
    assert result == [True, True, {text: text}, text]


@pytest.mark.parametrize("zone", [AMSTERDAM, timezone(timedelta(seconds=17))])
def test_a_time_of_day_whose_offset_would_be_lost_is_refused(app: Tenure, zone: tzinfo) -> None:
    """It came to the handler without its zone, or without the seconds."""
    early = time(8, tzinfo=zone)

    @app.job
    def ring(at: time) -> time:
        return early

    for wrong in (early, {early: 1}, [early]):
        with pytest.raises(InvalidInput, match="pass the time without tzinfo, and the zone by"):
            ring.enqueue(wrong)  # type: ignore[arg-type]
    job = ring.enqueue(time(8))
    with running_worker(app):
        assert "pass the time without" in str(wait_until_completed(app, job).result)


def test_the_first_time_of_a_zone_is_stored(app: Tenure) -> None:
    """`datetime.min`, as for "never", has no form in UTC: it was refused, and no result."""

    @app.job
    def seen(at: datetime) -> datetime:
        return datetime.max.replace(tzinfo=timezone(-timedelta(seconds=1)))

    job = seen.enqueue(datetime.min.replace(tzinfo=AMSTERDAM))
    assert job.payload == {"at": "0001-01-01T00:00:00Z"}
    with running_worker(app):
        assert wait_until_completed(app, job).result == "9999-12-31T23:59:59.999999Z"


class FrozenClass(type):
    """That of `datetime` while freezegun has frozen the clock."""

    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, datetime)


class Frozen(datetime, metaclass=FrozenClass):
    pass


@pytest.mark.parametrize("kind", [Moment, Frozen])
def test_times_of_a_subclass_are_options_and_filters_too(
    app: Tenure, monkeypatch: pytest.MonkeyPatch, kind: type[datetime]
) -> None:
    """With an idempotency key, in an amendment on SQLite and in a bulk action they were none."""
    if kind is Frozen:
        monkeypatch.setattr(writer, "datetime", Frozen)
    later, plain = kind(2090, 1, 1, tzinfo=EAST), datetime(2090, 1, 1, tzinfo=EAST)
    jobs = [app.enqueue("see", run_at=at, idempotency_key="one") for at in (later, plain)]
    assert jobs[0].id == jobs[1].id
    assert app.amend(jobs[0].id, run_at=later + timedelta(1)).run_at == plain + timedelta(1)
    assert app.bulk.start("cancel", Filter(created_before=later)).total == 1


class NotATime(datetime):
    """As `NaT` of pandas, which is one."""

    def isoformat(self, *_: object) -> str:
        return "NaT"


def test_what_only_looks_like_a_time_is_refused(app: Tenure) -> None:
    """It was stored as a text that no handler could read, so each attempt failed."""

    @app.job
    def see(at: datetime | None) -> None: ...

    for enqueue in (see.enqueue, lambda at: app.enqueue("see", {"at": at})):
        with pytest.raises(InvalidInput, match=r"^\$.payload.at: .* of type NotATime"):
            enqueue(NotATime(2026, 1, 1))


@dataclass
class Seen:
    at: Moment
    day: Day | None = None


def test_times_of_a_subclass_are_read(app: Tenure) -> None:
    """Annotations that are first read while freezegun has frozen the clock are its classes."""

    @app.job
    def see(text: str) -> Seen:
        return Seen(Moment.fromisoformat(text), Day(2026, 1, 2))

    handle = see.submit("2026-03-01T12:30:15Z")
    with running_worker(app):
        assert handle.result(timeout="20s") == Seen(
            Moment(2026, 3, 1, 12, 30, 15, 0, UTC), Day(2026, 1, 2)
        )
    with pytest.raises(InvalidInput, match=r"a text that is a Day - at `\$.day`$"):
        read_result('{"at": "2026-03-01T12:30:15Z", "day": "secret"}', Seen, "it")


def test_values_of_every_kind_arrive_as_they_were_given(app: Tenure) -> None:
    given: dict[str, Any] = {}
    got: dict[str, Any] = {}
    jobs = []
    for number, (kind, value) in enumerate(VALUES):

        def take(x: Any, number: int = number) -> None:
            got[str(number)] = x

        take.__annotations__["x"] = kind
        jobs.append(app.job(name=f"take{number}")(take).enqueue(value))
        given[str(number)] = value
    with running_worker(app):
        for job in jobs:
            wait_until_completed(app, job)

    assert got == given
    assert {name: type(value) for name, value in got.items()} == {
        name: type(value) for name, value in given.items()
    }


def test_arguments_are_typed_in_async_and_process_handlers_and_with_a_context(
    app_on_each_engine: Tenure,
) -> None:
    app = app_on_each_engine
    got: list[Any] = []

    @app.job
    async def coroutine(context: JobContext, when: datetime, item: Item) -> str:
        got.append((context.type, when, item))
        return item.name

    @app.job
    def function(context: JobContext, when: datetime, item: Item) -> str:
        got.append((context.type, when, item))
        return item.name

    app.job(process=True)(children.describe)
    describe = app.core.handlers.find("describe")
    assert describe is not None
    item = Item("cup", Decimal("4.20"))
    jobs = [coroutine.enqueue(NOON, item), function.enqueue(item=item, when=NOON)]
    in_child = app.enqueue("describe", {"when": "2026-03-01T12:30:15Z", "price": "4.20"})
    with running_worker(app):
        ends = [wait_until_completed(app, job).result_json for job in jobs]
        child_end = wait_until_completed(app, in_child).result_json

    assert ends == ['"cup"', '"cup"']
    assert sorted(got) == [("coroutine", NOON, item), ("function", NOON, item)]
    assert child_end == '["datetime","Decimal"]'


def test_the_context_tells_about_the_attempt(app: Tenure) -> None:
    contexts: list[JobContext] = []

    @app.job(queue="mail", max_retries=2, timeout=60, backoff=0)
    def send(context: JobContext) -> None:
        contexts.append(context)
        if context.attempt == 1:
            raise RuntimeError

    job = send.enqueue()
    before = datetime.now(UTC)
    with running_worker(app):
        wait_until_completed(app, job)

    first, second = contexts
    assert (first.id, first.type, first.queue, first.max_retries) == (job.id, "send", "mail", 2)
    assert (first.attempt, first.token, second.attempt, second.token) == (1, 1, 2, 2)
    assert first.deadline is not None
    assert timedelta(seconds=55) < first.deadline - before < timedelta(seconds=90)
    assert (first.stopping, first.stopped) == (False, None)


def test_absent_arguments_take_the_defaults_of_the_handler_that_runs(app: Tenure) -> None:
    got: list[Any] = []

    @app.job
    def take(a: int, b: str = "b", *, c: list[int] | None = None, d: Decimal = Decimal(4)) -> None:
        got.append((a, b, c, d))

    @app.job
    def nothing() -> None:
        got.append(())

    jobs = [take.enqueue(1), take.enqueue(2, "x", c=[3], d=Decimal(5)), nothing.enqueue()]
    jobs.append(app.enqueue("take", {"a": 3, "c": None}))
    with running_worker(app, concurrency=1):
        for job in jobs:
            wait_until_completed(app, job)

    assert got == [(1, "b", None, 4), (2, "x", [3], 5), (), (3, "b", None, 4)]


def test_other_arguments_are_converted_too(app: Tenure) -> None:
    got: list[Any] = []

    @app.job
    def beside(when: datetime, **others: Decimal) -> None:
        got.append((when, others))

    @app.job
    def anything(context: JobContext, /, **others: Any) -> None:
        got.append((context.type, others))

    jobs = [
        beside.enqueue(NOON, a=Decimal("1.10"), b=Decimal(2)),
        beside.enqueue(when=NOON),
        anything.enqueue(context=1, **{"": [None]}),
        anything.enqueue(self=1),
        anything.submit(self=1).id,
    ]
    with running_worker(app, concurrency=1):
        for job in jobs:
            wait_until_completed(app, job)

    assert got == [
        (NOON, {"a": Decimal("1.10"), "b": Decimal(2)}),
        (NOON, {}),
        ("anything", {"context": 1, "": [None]}),
        ("anything", {"self": 1}),
        ("anything", {"self": 1}),
    ]


WRONG: list[tuple[Any, Any, str]] = [
    (int, "many", r"$.payload.x: Expected `int`, got `str`"),
    (int, None, "$.payload.x: Expected `int`, got `null`"),
    (str, 5, "$.payload.x: Expected `str`, got `int`"),
    (date, NOON, "$.payload.x: Invalid RFC3339 encoded date"),
    (Annotated[int, msgspec.Meta(ge=1)], 0, "$.payload.x: Expected `int` >= 1"),
    (list[Item], [{"name": "a", "price": "1"}, {}], "$.payload.x[1]: Object missing required"),
    (dict[int, str], {"one": "a"}, "$.payload.x: Expected `int`, got `str` as a key"),
    (float, float("nan"), "$.payload.x: NaN or infinity, which JSON does not have"),
    (int, 2**64, "$.payload.x: an integer beyond 64 bits"),
    (str, "\ud800", "$.payload.x: half of a surrogate pair"),
    (Any, {1: 2}, "$.payload.x: a key of type int; keys are strings"),
]


def test_a_caller_hears_of_an_argument_that_the_handler_cannot_read(app: Tenure) -> None:
    """Such a job would fail for good, in another process and perhaps at night."""
    for number, (kind, value, said) in enumerate(WRONG):

        def take(x: Any) -> None: ...

        def take_others(y: int = 1, **others: Any) -> None: ...

        take.__annotations__["x"] = take_others.__annotations__["others"] = kind
        for function in (take, take_others):
            if function is take_others and isinstance(value, dict):
                continue  # what `**` holds is named one by one
            adds = app.job(name=f"{function.__name__}{number}")(function)
            for call in (adds.enqueue, adds.submit):
                with pytest.raises(InvalidInput) as refusal:
                    call(x=value)
                assert str(refusal.value).startswith(said)
    assert app.find() == []


UNFIT: list[tuple[dict[str, Any], str]] = [
    ({}, "missing required field `count`"),
    ({"count": "many"}, "Expected `int`, got `str` - at `$.count`"),
    ({"count": 1.5}, "$.count"),
    ({"count": None}, "$.count"),
    ({"count": 0}, "Expected `int` >= 1 - at `$.count`"),
    ({"count": 1, "cuont": 2}, "unknown field `cuont`"),
    ({"count": 1, "when": "yesterday"}, "Invalid RFC3339 encoded datetime - at `$.when`"),
    ({"count": 1, "colour": "green"}, "Invalid enum value 'green' - at `$.colour`"),
    ({"count": 1, "items": [{"name": "a", "price": "1"}, {"name": "b"}]}, "$.items[1]"),
    ({"count": 1, "items": {}}, "got `object` - at `$.items`"),
    ({"count": 1, "context": 1}, "unknown field `context`"),
]


@pytest.mark.scenario(79)
def test_a_payload_that_does_not_fit_fails_for_good_and_names_the_field(app: Tenure) -> None:
    ran = []

    def body(
        context: JobContext,
        count: Annotated[int, msgspec.Meta(ge=1)],
        when: datetime | None = None,
        colour: Colour = Colour.RED,
        items: list[Item] | None = None,
    ) -> None:
        ran.append(count)

    async def coroutine(context: JobContext, count: int) -> None: ...

    coroutine.__annotations__ = body.__annotations__
    coroutine.__signature__ = app.job(name="thread")(body).handler.signature  # type: ignore[attr-defined]
    app.job(name="loop")(coroutine)
    jobs = [
        (app.enqueue(type, payload, max_retries=5, backoff=0), message)
        for type in ("thread", "loop")
        for payload, message in UNFIT
    ]
    with running_worker(app):
        for job, message in jobs:
            error = wait_until_failed(app, job)
            assert message in error, (job.payload, error)
            assert error.startswith(f"the payload does not fit {job.type}:")
            assert app.get(job.id).attempts == 1
    assert ran == []


def test_other_arguments_that_do_not_fit_are_named(app: Tenure) -> None:
    @app.job
    def numbers(context: JobContext, first: int, **more: int) -> None: ...

    @app.job
    def anything(context: JobContext, **more: Any) -> None: ...

    wrong_value = app.enqueue("numbers", {"first": 1, "second": "two"})
    missing = app.enqueue("numbers", {"second": 2})
    of_the_context = app.enqueue("numbers", {"first": 1, "context": 1})
    of_the_only_context = app.enqueue("anything", {"context": 1})
    with running_worker(app):
        assert "Expected `int`, got `str` - at `$.second`" in wait_until_failed(app, wrong_value)
        assert "missing required field `first`" in wait_until_failed(app, missing)
        assert "$.context" in wait_until_failed(app, of_the_context)
        assert "$.context" in wait_until_failed(app, of_the_only_context)
    assert {job.attempts for job in app.find()} == {1}


def test_a_payload_that_does_not_fit_a_process_handler_is_permanent_too(app: Tenure) -> None:
    app.job(process=True, max_retries=5, backoff=0)(children.describe)

    job = app.enqueue("describe", {"when": "soon", "price": "1"})
    with running_worker(app):
        assert "at `$.when`" in wait_until_failed(app, job)
    assert app.get(job.id).attempts == 1


def test_thousands_of_payloads_that_do_not_fit_each_fail_by_themselves(app: Tenure) -> None:
    """However many stand in a row, they are refused one after the other, not one in the other."""

    @app.job(max_retries=5, backoff=0)
    def take(x: int) -> None: ...

    good = [NewJob("take", {"x": 1}, {}) for _ in range(1_500)]
    bad = [NewJob("take", {"x": "one"}, {}) for _ in range(1_500)]
    jobs = app.enqueue_many(good + bad)
    with running_worker(app):
        errors = {wait_until_failed(app, job) for job in jobs[1_500:]}
        ends = {wait_until_completed(app, job).attempts for job in jobs[:1_500]}

    assert errors == {"the payload does not fit take: Expected `int`, got `str` - at `$.x`"}
    assert ends == {1}
    assert {job.attempts for job in app.find(status="failed", limit=500)} == {1}
