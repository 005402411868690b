"""Requests at random for a real server: `python -m tests.chaos.misuse SECONDS SEED [DATABASE]`.

Callers with different rights call every route of the OpenAPI document and every page and form of
the dashboard, all at the same time. Most values fit their schema, and name what earlier answers
named; some are hostile. No answer is a failure of the server, none shows a limited caller anything
of other queues, and the database is in order afterwards.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import re
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2

from tenure import Tenure
from tenure.dashboard.site import ACTIONS, PAGES
from tenure.http.openapi import document
from tenure.http.routes import ROUTES
from tenure.rules.tokens import Scope
from tests.chaos.fuzz import TOKEN, judged
from tests.support.http import UNKNOWN_ID, ServerProcess
from tests.support.raw_sql import RawSql

SECRET = "zzq"
"""In everything that the callers of the other queues say in words of their own."""
QUEUES = {"own": ("mail", "shop.*"), "other": (f"{SECRET}*",)}
LINK_TOKEN = "t" * 22
ENDLESS = ("/events", "/leases/ended", "/ui/live")
MAX_LOG = 16 * 1024 * 1024
KEPT = 200
"""Values of each name that a caller remembers."""
HOSTILE_SHARE, FOREIGN_SHARE, BROKEN_SHARE = 0.015, 0.1, 0.02
HOSTILE: list[Any] = [
    *(None, True, -1, 0, 2**63, 1e308, 1e-9, "", " ", "\0", "\ud800", "\u202e\x1b[2J", "x" * 5_000),
    *([], {}, [None], {"": ""}, [[[[[[[[[[]]]]]]]]]], "-", "..", "%", "'", '"><img src=x>', "NaN"),
    *(
        "0001-01-01T00:00:00Z",
        "9999-12-31T23:59:59Z",
        "2026-13-01",
        "PT",
        "1e9",
        "9" * 40,
        [1] * 999,
    ),
]
TEXTS = [
    *("a", "mail", "shop.a", "default", "x" * 128, "30s", "PT5M", "1h30m", "1", "0.5", "all", "go"),
    *("* * * * *", "0 3 * * *", "@daily", "Europe/Berlin", "UTC", "2030-01-01T00:00:00Z", "é"),
    *("2026-01-01T00:00:00Z", "2026-01-02T00:00:00+02:00", "key", "w", "%", "_", "payload", "any"),
    *(UNKNOWN_ID, UNKNOWN_ID.replace("-", ""), hashlib.sha256(LINK_TOKEN.encode()).hexdigest()),
]
NUMBERS = (0, 1, 2, 3, 5, 10, 60, 500)
DOCUMENT: dict[str, Any] = json.loads(document(ROUTES, secured=True))
TEMPLATES = Path(sys.modules[Tenure.__module__].__file__ or "").parents[1] / "dashboard/templates"
FIELDS = sorted(
    {name for path in TEMPLATES.iterdir() for name in re.findall(r'name="(\w+)"', path.read_text())}
)
"""The names of the fields of all forms."""


@cache
def texts(pattern: str, least: int, most: int) -> tuple[str, ...]:
    """Those of TEXTS that fit a schema."""
    return tuple(t for t in TEXTS if re.search(pattern, t) and least <= len(t) <= most)


@dataclass
class Caller:
    """One who calls with a token, and remembers what the answers named."""

    name: str
    token: str
    chance: random.Random
    word: str = ""  # what its own texts begin with
    known: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    foreign: dict[str, list[Any]] = field(default_factory=dict)  # what somebody else knows
    asked: str = ""  # its last request

    def recall(self, name: str) -> Any:
        """Something that goes by this name, or None."""
        name = {"lease": "lease_id", "job_id": "id"}.get(name, name)
        foreign = name in ("id", "workflow", "cursor") and self.chance.random() < FOREIGN_SHARE
        found = (self.foreign if foreign else self.known).get(name)
        one = self.chance.choice(found) if found else None
        return None if foreign and SECRET in str(one) else one

    def learn(self, value: Any, name: str = "") -> None:
        """Remember every text of an answer by its name."""
        if isinstance(value, dict):
            for key, one in value.items():
                self.learn(one, key)
        elif isinstance(value, list):
            for one in value[:20]:
                self.learn(one, name)
        elif isinstance(value, str) and len(value) < 300 and (SECRET in value) <= bool(self.word):
            kept = self.known[name]
            kept.append(value)
            if len(kept) > KEPT:
                kept.pop(self.chance.randrange(KEPT))

    def value(self, schema: dict[str, Any], name: str = "", depth: int = 0) -> Any:
        """A value for a schema, most often a good one."""
        chance = self.chance
        if chance.random() < HOSTILE_SHARE:
            return chance.choice(HOSTILE)
        if ref := schema.get("$ref"):
            return self._named(ref.rpartition("/")[2], name, depth)
        for choice in ("anyOf", "oneOf", "enum"):
            if choice in schema:
                one = chance.choice(schema[choice])
                return one if choice == "enum" else self.value(one, name, depth)
        match schema.get("type"):
            case "object":
                needed = schema.get("required", ())
                share = 0.3 / (depth + 1)
                return {
                    key: self.value(one, key, depth + 1)
                    for key, one in schema.get("properties", {}).items()
                    if key in needed or chance.random() < share
                }
            case "array":
                count = max(chance.choice((0, 1, 1, 2, 3)), schema.get("minItems", 0))
                return [self.value(schema.get("items", {}), name, depth + 1) for _ in range(count)]
            case "integer" | "number":
                if name.startswith("wait"):
                    return 0
                least, most = schema.get("minimum", 0), schema.get("maximum", 2**31)
                return chance.choice([n for n in (least, most, *NUMBERS) if least <= n <= most])
            case "boolean":
                return chance.random() < 0.5
            case "null":
                return None
        return self.text(schema, name)

    def _named(self, component: str, name: str, depth: int) -> Any:
        if component in ("Json", "JsonObject"):
            text = f"{self.word}{self.chance.randrange(5)}"
            return {"text": text, "n": [1, None, {"é": 2.5}]}
        if component.endswith("Duration") or component == "StartBy":
            return self.chance.choice((0.001, 1, 30, "1s", "2h", "PT5M"))
        if component == "Needs":
            return self.chance.choice(("all", "any", 1, 2))
        return self.value(DOCUMENT["components"]["schemas"][component], name, depth)

    def text(self, schema: dict[str, Any], name: str) -> str:
        """A text by its name, if one is known, or one that fits."""
        chance = self.chance
        if chance.random() < 0.6 and (known := self.recall(name)) is not None:
            return str(known)
        pattern = schema.get("pattern", "")
        fits = texts(pattern, schema.get("minLength", 0), schema.get("maxLength", 1_000))
        text = chance.choice(fits or TEXTS)
        own = f"{self.word}{text}"
        return own if re.search(pattern, own) and "date" not in schema.get("format", "") else text

    def path(self, template: str) -> str:
        """A path, whose parts are known ones as a rule."""
        parts = {
            part: str(self.recall(part) or self.chance.choice(("a", UNKNOWN_ID, LINK_TOKEN, "x.y")))
            for part in re.findall(r"{(\w+)}", template)
        }
        for part, text in parts.items():
            template = template.replace(
                f"{{{part}}}", httpx2.QueryParams({"p": text}).__str__()[2:]
            )
        return template


@dataclass
class Misuse:
    """Requests of all callers to one server, and what they were answered."""

    server: ServerProcess
    callers: list[Caller]
    statuses: Counter[str] = field(default_factory=Counter)
    found: list[str] = field(default_factory=list)

    def run(self, seconds: float) -> None:
        """Let each caller call for so long; raise AssertionError over what was found wrong."""
        until = time.monotonic() + seconds
        threads = [
            threading.Thread(target=self._call, args=(caller, until)) for caller in self.callers
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not self.found, "\n".join(self.found[:10])

    def _call(self, caller: Caller, until: float) -> None:
        headers = {"Authorization": f"Bearer {caller.token}"}
        with httpx2.Client(base_url=self.server.url, headers=headers, timeout=60) as client:
            while time.monotonic() < until and len(self.found) < 10:
                try:
                    self._once(caller, client, caller.chance)
                except (httpx2.TransportError, httpx2.InvalidURL) as error:
                    self.found.append(f"{caller.name}: {caller.asked}: {error!r}")

    def _once(self, caller: Caller, client: httpx2.Client, chance: random.Random) -> None:
        if chance.random() < 0.2:
            method, path, sent = self._of_dashboard(caller)
        else:
            method, path, sent = self._of_api(caller)
        request = client.build_request(method, caller.path(path), **sent)
        caller.asked = f"{method} {request.url} {request.content[:500]!r}"
        response = client.send(request, stream=True)
        text = ""
        with contextlib.closing(response), contextlib.suppress(httpx2.ReadTimeout):
            if path not in ENDLESS or response.status_code != 200:
                text = response.read().decode()
        self._check(caller, request, response, text)

    def _of_api(self, caller: Caller) -> tuple[str, str, dict[str, Any]]:
        route = caller.chance.choice(ROUTES)
        operation = DOCUMENT["paths"][route.path][route.method.lower()]
        query, headers = {}, {}
        for one in operation.get("parameters", ()):
            if one["in"] == "path" or caller.chance.random() < 0.6:
                continue
            value = caller.value(one["schema"], one["name"])
            if one["in"] == "header":
                headers[one["name"]] = re.sub(r"[^!-~]+", "", str(value))
            elif isinstance(value, str | int | float):
                query[one["name"]] = value if not isinstance(value, str) else _sendable(value)
        sent: dict[str, Any] = {"params": query, "headers": headers}
        if body := operation.get("requestBody"):
            schema = body["content"]["application/json"]["schema"]
            data = json.dumps(caller.value(schema, "body")).encode()
            if caller.chance.random() < BROKEN_SHARE:
                data = data[: caller.chance.randrange(len(data) + 1)]
            sent["content"] = data
            headers["Content-Type"] = "application/json"
        return route.method, route.path, sent

    def _of_dashboard(self, caller: Caller) -> tuple[str, str, dict[str, Any]]:
        chance = caller.chance
        given = {
            name: _sendable(str(caller.value({"type": "string"}, name)))
            for name in chance.sample(FIELDS, 5)
        }
        if chance.random() < 0.5:
            return "GET", chance.choice(list(PAGES)), {"params": given}
        secret = "a" * 32
        headers = {"Origin": self.server.url, "Cookie": f"tenure_form={secret}"}
        given |= {"form": secret}
        return "POST", chance.choice(list(ACTIONS)), {"data": given, "headers": headers}

    def _check(
        self, caller: Caller, request: httpx2.Request, response: httpx2.Response, text: str
    ) -> None:
        self.statuses[str(response.status_code)] += 1
        wrong = ""
        if response.status_code >= 500:
            wrong = "a failure of the server"
        elif caller.name.startswith("own") and SECRET in text + str(response.headers):
            asked = f"{request.url} {request.content!r}"
            wrong = "" if SECRET in asked else "this is of other queues"
        if wrong:
            shown = text[max(text.find(SECRET) - 200, 0) :][:600]
            self.found.append(
                f"{caller.name}: {caller.asked}: {response.status_code}, {wrong}: {shown}"
            )
        if response.headers.get("content-type", "").startswith("application/json") and text:
            caller.learn(json.loads(text))
            for link in response.links.values():
                caller.learn({n: v[0] for n, v in parse_qs(urlsplit(link["url"]).query).items()})


def _sendable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def callers_of(app: Tenure, chance: random.Random) -> list[Caller]:
    """Callers for own queues, for other queues, for all, and one without rights to change."""

    def caller(name: str, scopes: list[Scope], word: str = "") -> Caller:
        queues = QUEUES.get(name.partition(" ")[0])
        token, _ = app.tokens.create(name.replace(" ", "-"), scopes, queues=queues)
        made = Caller(name, token, random.Random(chance.random()), word)
        made.learn({"queue": [each.replace("*", "a") for each in queues or ("mail", "any")]})
        made.learn({"name": made.known["queue"]})
        return made

    everything = [Scope.ADMIN]
    own, other = caller("own", everything), caller("other", everything, SECRET)
    limited = caller("own reader", [Scope.READ, Scope.ENQUEUE, Scope.WORK])
    own.foreign = limited.foreign = other.known
    other.foreign = own.known
    every = caller("every", everything)
    return [own, other, limited, every, caller("reader", [Scope.READ])]


def strangers_moves(database: str) -> list[Any]:
    """Transitions that a limited caller made of a job of somebody else's queues."""
    raw = RawSql(database)
    try:
        return raw.run(
            "SELECT j.queue, t.event, t.actor FROM {transition} t JOIN {job} j ON j.id = t.job_id"
            f" WHERE (substr(t.actor, 1, 9) = 'token:own' AND substr(j.queue, 1, 3) = '{SECRET}')"
            f" OR (t.actor = 'token:other' AND substr(j.queue, 1, 3) <> '{SECRET}')"
        )
    finally:
        raw.close()


def misuse(seconds: float, seed: int, database: str) -> int:
    """Call a server for about so long; return the number of requests."""
    chance = random.Random(seed)
    with Tenure(database) as app:
        callers = callers_of(app, chance)
        with ServerProcess(database, "--log-format", "text", TENURE_TOKEN=TOKEN) as server:
            calls = Misuse(server, callers)
            with judged(server, MAX_LOG):
                calls.run(seconds)
        print(dict(calls.statuses), flush=True)
        assert strangers_moves(database) == []
        assert app.verify() == []
    return calls.statuses.total()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        asked = sys.argv[3] if len(sys.argv) > 3 else f"sqlite:///{folder}/jobs.db"
        made = misuse(float(sys.argv[1]), int(sys.argv[2]), asked)
        print(f"{made:,} requests at random", flush=True)
