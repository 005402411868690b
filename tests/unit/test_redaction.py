"""Redaction: what is hidden in payloads and in texts about jobs, and what it costs."""

from __future__ import annotations

import base64
import html
import json
import pprint
import re
import time
import urllib.parse
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenure.handlers.results import describe_exception
from tenure.lifecycle import Job
from tenure.values.redaction import MARK, MAX_CUTS, MAX_VALUES, Redaction
from tenure.values.text import CUT

SECRET = "sk_live_" + "abcdefgh" * 8
PEM = "-----BEGIN KEY-----\nMIIE+canary/w==\n-----END KEY-----\n"


def stored_job(payload: str, error: str, result: str | None = None) -> Job:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    return Job(
        id="0190163d-8694-739b-aea5-966c26f8ad90",
        type="mail",
        payload_json=payload,
        result_json=result,
        last_error=error,
        run_at=now,
        created_at=now,
    )


def text_shown(password: object, text: str) -> str:
    """A text about a job that has this password in its payload."""
    return Redaction(["password"]).hider(json.dumps({"password": password}))(text)


def test_what_is_not_named_is_not_touched() -> None:
    assert not Redaction()
    payload = '{"b":[1.5,{"a":[{"c":"deep"}],"é":9007199254740993}],"aa":null}'
    job = stored_job(payload, "deeper")
    hidden = Redaction(["A"]).job(job)
    assert hidden.payload_json == payload.replace('[{"c":"deep"}]', json.dumps(MARK))
    assert hidden.last_error == f"{MARK}er"
    assert Redaction().job(job) is job


@pytest.mark.parametrize(
    "value",
    [
        'hun"ter22',
        "hun\\ter22",
        "pässword22",
        "hun'ter22",
        "hu'nt\"er22",
        "tab\tter22",
        "\u2028ter22",
    ],
)
@pytest.mark.parametrize(
    "spelled",
    [str, repr, json.dumps, lambda value: json.dumps(value, ensure_ascii=False)],
    ids=["plain", "repr", "json", "json in utf-8"],
)
def test_a_value_is_hidden_however_it_is_quoted(value: str, spelled: Callable[[str], str]) -> None:
    for login in (value, {"user": [value]}, {"deep": {value: 1}}):
        shown = text_shown(login, f"ValueError: refused {spelled(value)} today")
        assert MARK in shown
        assert "ter22" not in shown
        assert "word22" not in shown
        assert (shown[:20], shown[-6:]) == ("ValueError: refused ", " today")


LONG = ["hun-ter22&Canary", "pässwört 'x' 22-Canary", "4111-1111-Canary", "a>b?c~d\\eCanary%20"]


def on_lines(value: str) -> str:
    return "\n    ".join(value[at : at + 5] for at in range(0, len(value), 5))


@pytest.mark.parametrize(
    "spelled",
    [
        str.upper,
        str.title,
        ascii,
        urllib.parse.quote,
        urllib.parse.quote_plus,
        lambda value: urllib.parse.quote(value, safe="!$&'()*+,;=:@"),
        lambda value: urllib.parse.quote(urllib.parse.quote(value)).lower(),
        lambda value: repr(value.encode()),
        lambda value: value.encode().hex(),
        lambda value: json.dumps({"body": json.dumps({"login": [value]})}),
        lambda value: repr(json.dumps(value).encode()),
        lambda value: html.escape(f"<b>{value}</b>"),
        on_lines,
        lambda value: pprint.pformat([value * 3], width=20),
        lambda value: value.replace("-", " "),
    ],
)
@pytest.mark.parametrize("value", LONG)
def test_a_longer_value_is_hidden_however_it_is_spelled(
    value: str, spelled: Callable[[str], str]
) -> None:
    shown = text_shown(value, f"ValueError: refused {spelled(value)}; today")
    assert MARK in shown
    for part in ("canary", "ter2", "ssw", "rt", "111", "c~d", "43616e"):
        assert part not in shown.lower()
    assert (shown[:20], shown[-7:]) == ("ValueError: refused ", "; today")


@pytest.mark.parametrize(
    "encoded", [base64.b64encode, base64.urlsafe_b64encode, base64.encodebytes]
)
@pytest.mark.parametrize("before", ["", "u:", "us:", "x" * 49])
@pytest.mark.parametrize("value", LONG)
def test_a_longer_value_is_hidden_in_base64(
    value: str, before: str, encoded: Callable[[bytes], bytes]
) -> None:
    written = encoded(f"{before}{value}, {value}".encode()).decode()
    shown = text_shown(value, f"ValueError: refused {written}; today")
    left = shown.translate({ord("-"): "+", ord("_"): "/"})
    for run in re.findall(r"[A-Za-z0-9+/]+", left.replace("\n", "")):
        for at in range(4):
            decoded = base64.b64decode(run[at : at + (len(run) - at) // 4 * 4])
            assert value.encode()[1:5] not in decoded
            assert value.encode()[-5:-1] not in decoded
    assert (shown[:20], shown[-7:]) == ("ValueError: refused ", "; today")


def test_a_shorter_value_is_hidden_quoted_and_in_any_case() -> None:
    for written in ("PÄ&ß7", "p%C3%A4&%c3%9f7", "p\\xe4&\\xdf7", "p&auml;&amp;&szlig;7"):
        assert text_shown("pä&ß7", f"E: {written}!") == f"E: {MARK}!"


@pytest.mark.parametrize("number", [4711, -4711, 1e22, 100000.5])
def test_a_number_is_hidden(number: float) -> None:
    assert text_shown({"pin": number}, f"KeyError: {number!r}") == f"KeyError: {MARK}"


def test_each_line_of_a_value_is_hidden() -> None:
    """Lists, logs and explanations show the first line of an error."""
    assert text_shown(PEM, f"bad key {PEM}".partition("\n")[0]) == f"bad key {MARK}"
    assert "canary" not in text_shown(PEM, "line 2: MIIE+canary/w==")
    assert text_shown("  hunter22 \n", "no login as hunter22") == f"no login as {MARK}"


@pytest.mark.parametrize("given", [None, True, "abc", 17, ["ab", {"c": 123}]])
def test_short_values_are_in_any_text(given: object) -> None:
    assert text_shown(given, "abc 123 True None 17") == "abc 123 True None 17"


def test_values_that_overlap_are_hidden_together() -> None:
    assert text_shown(["abcdef", "defghi"], "E: abcdefghi, defg") == f"E: {MARK}, defg"


@pytest.mark.parametrize(
    "spelled", [str, lambda value: json.dumps(value)[1:-1]], ids=["plain", "json"]
)
@pytest.mark.parametrize(
    "secret",
    [SECRET, "é" + SECRET, PEM * 40, "hunter22" * 3000],
    ids=["key", "utf-8", "pem", "long"],
)
def test_nothing_of_a_value_is_left_beside_the_cut_of_an_error(
    secret: str, spelled: Callable[[str], str]
) -> None:
    for padding in range(2_600, 2_760) if len(secret) < 100 else (0, 50, 2_700):
        exc = ValueError("y" * padding + spelled(secret) + "z" * 6_000)
        exc.add_note("y" * (3_900 - padding) + spelled(secret) + "z" * 6_000)
        error = describe_exception(exc)
        shown = text_shown(secret, error)
        parts = [spelled(secret)[at : at + 4] for at in range(0, min(len(secret), 500) - 3, 4)]
        assert not [part for part in parts if part in shown.replace(MARK, "")], padding
        assert shown.startswith("ValueError: ")


def test_a_cut_hides_little_else() -> None:
    text = f"the login {CUT.format(5)} was refused"
    assert text_shown(SECRET, text) == text
    assert text_shown("was it?", text) == text, "too short to reach so far"


def test_beyond_so_many_values_the_whole_error_is_hidden() -> None:
    few = [f"value{number}" for number in range(MAX_VALUES)]
    assert text_shown(few, "value7, other") == f"{MARK}, other"
    assert text_shown([*few, "one more"], "other") == MARK
    assert text_shown("value7", "other" + CUT.format(1) * (MAX_CUTS + 1)) == MARK


def test_a_payload_that_is_no_json_is_hidden_whole() -> None:
    job = stored_job('{"password": hunter22', 'not {"password": hunter22')
    shown = Redaction(["password"]).job(job)
    assert (shown.payload_json, shown.last_error) == (json.dumps(MARK), f"not {MARK}")


@pytest.mark.parametrize(
    "hidden",
    [
        list(range(1_000, 151_000)),
        ["xyzab"] * 120_000,
        "xyzab\n" * 160_000,
        "".join(map(chr, range(0x4E00, 0x4E00 + 20_000))) * 15,
        ["a" * at + "b" + "a" * at for at in range(2, 35)],
    ],
    ids=["numbers", "one text", "lines", "wide", "alike"],
)
def test_the_cost_is_linear(hidden: object) -> None:
    """It was 1.8 s for one look at a job, and 17 s for a list of ten."""
    document = json.dumps({"password": hidden})
    error = ("zq" + "a" * 1_500) * 10
    began = time.process_time()
    shown = Redaction(["password"]).hider(document)
    for _ in range(5):  # attempts
        shown(error)
    assert time.process_time() - began < 0.5


def test_a_job_is_shown_with_its_result() -> None:
    job = stored_job('{"x":1}', "E: hunter22", result='{"PASSWORD":"hunter22"}')
    shown = Redaction(["password"]).job(job)
    assert (shown.result_json, shown.last_error) == (f'{{"PASSWORD":"{MARK}"}}', f"E: {MARK}")


@given(
    st.text(st.sampled_from("aBé\\%&;\"'\n xu014f#-İΣς\x00\U0001f600"), min_size=4, max_size=14),
    st.text(st.sampled_from("aB\\%&;4f x\n"), max_size=9),
    st.booleans(),
)
@settings(deadline=None)
def test_whatever_escapes_a_value_has_itself_it_is_hidden(
    value: str, around: str, is_cut: bool
) -> None:
    cut = CUT.format(7) if is_cut else ""
    assert value not in text_shown(value, f"{around}{cut}{around}{value}{around}{cut}{around}")
    for quote in (repr, ascii, json.dumps, lambda one: json.dumps(one, ensure_ascii=False)):
        quoted = quote(value)
        assert quoted[1:-1] not in text_shown(value, f"E: {quoted}.")
