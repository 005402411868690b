"""Names of job types and queues, idempotency keys, labels: strict where machines read them."""

from __future__ import annotations

import pathlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenure.errors import InvalidInput
from tenure.values.names import (
    MAX_KEY_LENGTH,
    MAX_LABEL_LENGTH,
    MAX_NAME_LENGTH,
    NAME_PATTERN,
    check_key,
    check_label,
    check_name,
)
from tests.support.payloads import HOSTILE_NAMES, Text, Word, refusal

BAD_EVERYWHERE: list[object] = [
    *("", "a\nb", "a\n", "\na", "a\0b", "a\x1b[31m", "a\tb", "a\rb", "\x7f", "a\u202eb", "\u200f"),
    *("a\u2028b", "\ud800", "x" * 10_000, None, 7, b"mail", ["mail"], True),
]


@pytest.mark.parametrize(
    "name", ["mail", "a", "_x", "7up", "a.b.c", "app.tasks:send-mail", "A_B:1"]
)
def test_names_that_are_fine(name: str) -> None:
    assert check_name(name, "job type", "$.type") == name


@pytest.mark.parametrize("name", BAD_EVERYWHERE + HOSTILE_NAMES)
def test_names_are_strict(name: object) -> None:
    error = refusal(lambda: check_name(name, "queue", "$.queue"))
    assert error.path == "$.queue"
    assert "queue" in error.message
    assert (str(MAX_NAME_LENGTH) in error.message) is isinstance(name, str)


@pytest.mark.parametrize("key", ["order-17", "!", "~", "a/b?c=<d>'\";--", "x" * MAX_KEY_LENGTH])
def test_keys_that_are_fine(key: str) -> None:
    assert check_key(key, "$.idempotency_key") == key


@pytest.mark.parametrize(
    "key", [*BAD_EVERYWHERE, "a b", " ", "é", "\x80", "x" * (MAX_KEY_LENGTH + 1)]
)
def test_keys_are_visible_ascii(key: object) -> None:
    error = refusal(lambda: check_key(key, "$.idempotency_key"))
    assert error.path == "$.idempotency_key"
    assert str(MAX_KEY_LENGTH) in error.message


@pytest.mark.parametrize(
    "label", ["host-7 (pid 12)", "Zürich", "東京", "<b>", "x" * MAX_LABEL_LENGTH]
)
def test_labels_that_are_fine(label: str) -> None:
    assert check_label(label, "worker", "$.worker") == label


@pytest.mark.parametrize("label", [*BAD_EVERYWHERE, " ", "   ", "x" * (MAX_LABEL_LENGTH + 1)])
def test_labels_are_one_printable_line(label: object) -> None:
    error = refusal(lambda: check_label(label, "worker", "$.worker"))
    assert error.path == "$.worker"
    assert "worker" in error.message


def test_length_boundaries_of_names() -> None:
    assert check_name("x" * MAX_NAME_LENGTH, "queue", "$") == "x" * MAX_NAME_LENGTH
    refusal(lambda: check_name("x" * (MAX_NAME_LENGTH + 1), "queue", "$"))


def test_subclasses_of_str_come_out_plain() -> None:
    assert type(check_name(Word.YES, "queue", "$")) is str
    assert type(check_key(Text("a"), "$")) is str
    assert type(check_label(Text("a"), "worker", "$")) is str


@given(st.text() | st.text("aZ09_.:-/ \n", max_size=20))
def test_accepted_names_are_safe_in_addresses_files_and_labels(name: str) -> None:
    try:
        check_name(name, "queue", "$")
    except InvalidInput:
        assert not re.fullmatch("[A-Za-z0-9_]{1,128}", name)
        return
    assert re.fullmatch(NAME_PATTERN, name)
    assert name.isascii()
    assert ".." not in name
    assert not re.search(r"[\s/\\%?#<>&\"']", name)
    assert name == pathlib.PurePosixPath(name).name
