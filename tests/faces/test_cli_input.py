"""Bad input on the command line: the same verdicts as in Python, and nothing is written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tenure import InvalidInput, Tenure
from tenure.values.payload import MAX_PAYLOAD_BYTES
from tenure.values.text import visible
from tests.support.cli import cli_json, run_cli
from tests.support.payloads import HOSTILE_NAMES, REFUSED_JSON

EVERY_NAME_BUT = [name for name in HOSTILE_NAMES if isinstance(name, str)]


@pytest.fixture
def app(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tenure]:
    """The application; at the end of the test nothing may have been written.

    One engine is enough: nothing that is refused here reaches a store.
    """
    monkeypatch.setenv("TENURE_DATABASE", sqlite_url)
    monkeypatch.delenv("TENURE_CONFIG", raising=False)
    with Tenure(sqlite_url) as made:
        yield made
        assert made.find() == made.queues.list() == []


def refused(*arguments: str, stdin: bytes | None = None) -> str:
    """What a command says that must refuse what it was given."""
    result = run_cli(*arguments, stdin=stdin)
    assert result.exit_code == 2, (arguments, result.output)
    assert result.stdout == ""
    return result.stderr


def verdict(app: Tenure, type: str, payload: Any = None, **options: Any) -> str:
    """What Python says to the same."""
    with pytest.raises(InvalidInput) as caught:
        app.enqueue(type, payload, **options)
    return visible(" ".join(str(caught.value).split()))


def test_payloads_are_refused_where_and_why_parse_refuses_them(app: Tenure) -> None:
    for data, path, reason in REFUSED_JSON:
        said = refused("enqueue", "email", "-", stdin=data)

        assert said.startswith(f"Error: $.payload{visible(path[1:])}: "), data[:80]
        assert reason in said, data[:80]


def test_an_argument_is_held_to_the_same_rules_as_standard_input(app: Tenure) -> None:
    for data, _, reason in REFUSED_JSON:
        # As Python hands over bytes that the shell gave and that are no text.
        argument = data.decode("utf-8", "surrogateescape")
        if len(data) < 100_000 and not argument.startswith(("-", "+")) and argument:
            assert reason.split(" at byte ")[0] in refused("enqueue", "email", argument)


@pytest.mark.parametrize("payload", ["null", "[]", "1", '"{}"', "true", "[{}]"])
def test_a_payload_is_an_object(app: Tenure, payload: str) -> None:
    assert "a payload is a JSON object" in refused("enqueue", "email", payload)


def test_a_payload_has_a_largest_size(app: Tenure) -> None:
    inner = MAX_PAYLOAD_BYTES - len('{"a":""}') + 1
    data = b'{"a":"' + b"x" * inner + b'"}'

    said = refused("enqueue", "email", "-", stdin=data)

    assert f"the limit is {MAX_PAYLOAD_BYTES} bytes" in said
    assert f"the limit is {MAX_PAYLOAD_BYTES} bytes" in verdict(app, "email", {"a": "x" * inner})


def test_names_are_strict(app: Tenure, subtests: pytest.Subtests) -> None:
    for name in ["", "a\nb", "a\x1b[31m", "x" * 129, *EVERY_NAME_BUT]:
        with subtests.test(f"{name!a:.60}"):
            assert verdict(app, name) in refused("enqueue", "--", name)
            assert verdict(app, "email", queue=name) in refused(
                "enqueue", "email", f"--queue={name}"
            )
            refused("queues", "pause", "--", name)


OPTIONS: list[tuple[str, str, Any]] = [
    ("priority", "32768", 32_768),
    ("priority", "-32768", -32_768),
    ("priority", str(2**70), 2**70),
    ("max-retries", "-1", -1),
    ("max-retries", "1001", 1_001),
    ("delay", "-1", "-1"),
    ("delay", "1x", "1x"),
    ("delay", "nan", "nan"),
    ("delay", "11000d", "11000d"),
    ("delay", "", ""),
    ("timeout", "0", "0"),
    ("timeout", "-5s", "-5s"),
    ("timeout", "1h 30m", "1h 30m"),
    ("backoff", "soon", "soon"),
    ("backoff", '{"base": 1, "wait": 2}', {"base": 1, "wait": 2}),
    ("backoff", '{"base": -1}', {"base": -1}),
    ("backoff", '{"factor": "2"}', {"factor": "2"}),
    ("backoff", '{"factor": 0.5}', {"factor": 0.5}),
    ("backoff", "10s,long", ["10s", "long"]),
    ("backoff", "1," * 20 + "1", ["1"] * 21),
    ("key", "", ""),
    ("key", "two words", "two words"),
    ("key", "ключ", "ключ"),
    ("key", "x" * 256, "x" * 256),
]


def test_options_are_refused_as_in_python(app: Tenure, subtests: pytest.Subtests) -> None:
    for option, given, value in OPTIONS:
        with subtests.test(f"{option} {given:.60}"):
            name = "idempotency_key" if option == "key" else option.replace("-", "_")

            assert verdict(app, "email", **{name: value}) in refused(
                "enqueue", "email", f"--{option}={given}"
            )


@pytest.mark.parametrize(
    ("option", "given", "reason"),
    [
        ("priority", "1.5", "not a valid integer"),
        ("max-retries", "three", "not a valid integer"),
        ("max-retries", "9" * 5_000, "not a valid integer"),
        ("needs", "9" * 5_000, "$.needs: "),
        ("run-at", "tomorrow", "--run-at: not a time"),
        ("run-at", "2026-01-31", "$.run_at: run_at needs a time with its zone"),
        ("run-at", "2026-01-31T12:00:00", "$.run_at: run_at needs a time with its zone"),
        ("run-at", "2026-02-30T12:00:00Z", "--run-at: not a time"),
        ("backoff", '{"base": 1, "base": 2}', "$.backoff: the key 'base' is given twice"),
        ("backoff", '{"base": ', "$.backoff: not valid JSON"),
        ("backoff", '{"base": NaN}', "$.backoff.base: NaN"),
    ],
)
def test_options_that_cannot_be_read(app: Tenure, option: str, given: str, reason: str) -> None:
    assert reason in refused("enqueue", "email", f"--{option}={given}")


def test_a_delay_and_a_time_exclude_each_other(app: Tenure) -> None:
    said = refused("enqueue", "email", "--delay=5s", "--run-at=2026-01-31T12:00:00Z")

    assert "$.run_at: give delay or run_at, not both" in said


@pytest.mark.parametrize(
    "arguments",
    [
        ["jobs", "list", "--status", "done"],
        ["jobs", "list", "--limit", "0"],
        ["jobs", "list", "--limit", "501"],
        ["jobs", "list", "--before", "17"],
        ["jobs", "retry", "0190163d-8694-739b-aea5-966c26f8ad90", "--more", "0"],
    ],
)
def test_questions_that_make_no_sense(app: Tenure, arguments: list[str]) -> None:
    refused(*arguments)


@pytest.mark.parametrize("command", [["list"], ["retry", "--dry-run"], ["cancel", "--yes"]])
@pytest.mark.parametrize(
    ("option", "given"),
    [
        ("--created-after", "soon"),
        ("--created-after", "2026"),
        ("--created-before", "2h30"),
        ("--created-before", "2026-01-31T12:00:00"),
        ("--status", "done"),
        ("--type", "a b"),
        ("--error", ""),
    ],
)
def test_an_option_that_is_wrong_is_named_as_it_was_given(
    app: Tenure, command: list[str], option: str, given: str
) -> None:
    assert f"Error: {option}: " in refused("jobs", *command, option, given)


def test_what_is_accepted_comes_back_unchanged(database_url: str) -> None:
    payload = {
        "text": 'grüße \u202e \x1b[31m "quoted" \\u0000',
        "": [None, True, -0.0, 2**63 - 1, -(2**63), 0.1, 1e300],
        "é": {"e\u0301": "\U0001f600"},
    }
    for data in (json.dumps(payload), json.dumps(payload, ensure_ascii=False)):
        result = run_cli("enqueue", "email", "-", "--database", database_url, stdin=data)

        shown = cli_json("jobs", "show", result.stdout.strip(), "--database", database_url)
        assert shown["job"]["payload"] == payload
        assert list(shown["job"]["payload"]) == list(payload)


def test_a_command_that_is_guessed_leads_to_one_that_there_is(app: Tenure) -> None:
    said = refused("schedules", "update", "nightly")
    assert "'update'. `cli schedules` has list, show, preview, create, edit," in said
    assert "Perhaps `cli jobs retry`, `cli workflows retry`?" in refused("retry", "x")
    assert "Perhaps" not in refused("reticulate")
    assert " has " not in refused("schedules", "--update")
