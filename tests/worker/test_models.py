"""Models of Pydantic as arguments and results. Pydantic checks them; Tenure never imports it."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, Literal

import pytest
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    RootModel,
    SecretStr,
    computed_field,
    field_serializer,
)

from tenure import InvalidInput, Tenure
from tenure.handlers import arguments
from tests.support.workers import running_worker


class Line(BaseModel):
    article: str = Field(min_length=1)
    price: Decimal


class OrderPlaced(BaseModel):
    """Strict, with an alias, no room for other fields, and one that is computed."""

    model_config = ConfigDict(strict=True, extra="forbid")
    number: int = Field(alias="orderNumber", gt=0)
    on: datetime.date
    lines: list[Line] = []

    @computed_field  # type: ignore[prop-decorator]
    @property
    def total(self) -> Decimal:
        return sum((line.price for line in self.lines), Decimal(0))


@dataclass
class Parcel:
    order: OrderPlaced
    weight: float


ORDER = OrderPlaced(
    orderNumber=7, on=datetime.date(2027, 1, 31), lines=[Line(article="pen", price=Decimal("1.20"))]
)
STORED = {"orderNumber": 7, "on": "2027-01-31", "lines": [{"article": "pen", "price": "1.20"}]}


def test_models_are_arguments_and_results_also_inside_other_types(app: Tenure) -> None:
    seen: list[Any] = []

    @app.job
    async def pack(
        order: OrderPlaced, more: list[OrderPlaced] | None = None, parcel: Parcel | None = None
    ) -> Parcel:
        seen.append((order, more, parcel))
        return Parcel(order, 1.5)

    @app.job
    def first(orders: dict[str, OrderPlaced], **others: Line) -> OrderPlaced | None:
        seen.append(others)
        return orders.get("first")

    with running_worker(app):
        handle = pack.submit(ORDER, more=[ORDER], parcel=Parcel(ORDER, 2.0))
        assert app.get(handle.id).payload == {
            "order": STORED,
            "more": [STORED],
            "parcel": {"order": STORED, "weight": 2.0},
        }
        assert handle.result("20s") == Parcel(ORDER, 1.5)
        assert seen == [(ORDER, [ORDER], Parcel(ORDER, 2.0))]
        assert first.submit({"first": ORDER}, pen=ORDER.lines[0]).result("20s") == ORDER
        assert seen[-1] == {"pen": ORDER.lines[0]}
        assert first.submit({}).result("20s") is None
        assert app.wait(first.enqueue({"first": ORDER})).result == STORED


@pytest.mark.parametrize(
    ("argument", "flaw"),
    [
        (OrderPlaced.model_construct(number=0, on=ORDER.on, lines=[]), "orderNumber: Input should"),
        ({"orderNumber": 0, "on": "2027-01-31", "secret": "s3cret"}, "secret: Extra inputs"),
        ({}, "orderNumber: Field required; on: Field required"),
        ("s3cret", "model: "),
    ],
)
def test_an_invalid_model_is_refused_before_anything_is_stored(
    app: Tenure, argument: Any, flaw: str
) -> None:
    @app.job
    def pack(order: OrderPlaced) -> None: ...

    for enqueue in (lambda: pack.enqueue(argument), lambda: pack.enqueue(order=argument)):
        with pytest.raises(InvalidInput, match=flaw) as refused:
            enqueue()
        assert refused.value.path == "$.payload.order"
        assert "s3cret" not in str(refused.value)
    assert app.find() == []


def test_a_worker_checks_what_came_by_name(app: Tenure) -> None:
    @app.job
    def pack(order: OrderPlaced) -> None: ...

    with running_worker(app):
        job = app.wait(app.enqueue("pack", {"order": {**STORED, "on": "s3cret"}}), timeout="20s")
    assert (job.status, job.attempts) == ("failed", 1)
    assert job.last_error is not None
    assert "the payload does not fit pack: on: Input should be a valid date" in job.last_error
    assert "s3cret" not in job.last_error


def test_a_result_is_checked_by_its_annotation(app: Tenure) -> None:
    @app.job(max_retries=1)
    def broken() -> OrderPlaced:
        return {"orderNumber": 1}  # type: ignore[return-value]

    with running_worker(app), pytest.raises(InvalidInput, match="on: Field required"):
        broken.submit().result("20s")


def test_a_model_that_cannot_be_written_fails_no_job(app: Tenure) -> None:
    class Odd(BaseModel):
        model_config = ConfigDict(arbitrary_types_allowed=True)
        thing: Annotated[Any, Field()]

    @app.job(max_retries=1)
    def odd() -> Any:
        return Odd(thing=object())

    with running_worker(app):
        job = app.wait(odd.enqueue(), timeout="20s")
    assert job.status == "completed"
    assert "tenure:unstorable" in job.result


class Node(BaseModel):
    children: list[Node] = []


def test_the_schema_of_a_type_has_that_of_its_models(app: Tenure) -> None:
    @app.job
    def pack(order: OrderPlaced, tree: Node) -> None: ...

    handler = app.core.handlers.find("pack")
    assert handler is not None
    schema = arguments.known(handler.defaults, handler.decoder, {}).schema
    assert schema is not None
    found = json.dumps(json.loads(schema)["$defs"])
    assert '"orderNumber": {"exclusiveMinimum": 0' in found
    assert '"article": {"minLength": 1' in found
    assert "#/$defs/Line" not in found
    assert '"children": {"default": [], "items": {}' in found


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"


class Pet(RootModel[Cat | Dog]): ...


def test_a_union_of_models_says_what_to_write_and_that_works(app: Tenure) -> None:
    def feed(pet: Cat | Dog) -> Cat | Dog:
        return pet

    with pytest.raises(InvalidInput, match="such as a RootModel of Pydantic"):
        app.job(feed)

    @app.job
    def walk(pet: Pet) -> Cat | Dog:
        return pet.root

    with running_worker(app), pytest.raises(InvalidInput, match="such as a RootModel of Pydantic"):
        walk.submit(Pet(Dog())).result("20s")
    (job,) = app.find()
    assert job.result == {"kind": "dog"}


class Login(BaseModel):
    user: str
    key: SecretStr | None = None


class Open(Login):
    @field_serializer("key", when_used="json")
    def show(self, key: SecretStr | None) -> str | None:
        return None if key is None else key.get_secret_value()


def test_a_secret_that_would_be_stored_as_asterisks_is_refused(app: Tenure) -> None:
    @app.job(max_retries=1)
    def sign_in(logins: list[Open]) -> Login:
        assert [one.key.get_secret_value() for one in logins if one.key] == ["abc"]
        return Login(user="ann", key=logins[0].key)

    @app.job
    def refused(login: Login) -> None: ...

    login = Login(user="ann", key=SecretStr("abc"))
    with pytest.raises(InvalidInput, match=r"a secret of Login .* by a field_serializer") as error:
        refused.new_job(login)
    assert "abc" not in str(error.value)
    assert refused.new_job(Login(user="ann")).payload["login"]["key"] is None
    with running_worker(app):
        job = app.wait(sign_in.enqueue([Open(user="ann", key=SecretStr("abc"))]), timeout="20s")
    assert "a secret of Login" in job.result["reason"]  # a result that is only a note


def test_an_object_is_anything_in_the_schema(app: Tenure) -> None:
    @app.job
    def note(fields: dict[str, object]) -> None: ...

    handler = app.core.handlers.find("note")
    assert handler is not None
    schema = arguments.known(handler.defaults, handler.decoder, {}).schema
    assert schema is not None
    assert '"fields":{"type":"object","additionalProperties":{"description":' in schema


def test_without_models_pydantic_is_not_imported() -> None:
    code = (
        "import sys; from tenure import Tenure; app = Tenure('sqlite:///:none:')\n"
        "@app.job\ndef work(n: int) -> int: return n\n"
        "work.new_job(1); assert 'pydantic' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
