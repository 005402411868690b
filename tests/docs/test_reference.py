"""The reference is complete and true: everything public is in it, as the code has it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path

import click
import msgspec
import pytest

import tenure
from tenure import errors, settings
from tenure.cli import cli
from tenure.cli.command import exit_code
from tenure.cli.jobs import OUTCOMES, TIME_OVER
from tenure.http import openapi
from tenure.http.routes import ROUTES
from tenure.lifecycle import FIRST_EVENT, MAX_RETURNS, TRANSITIONS, Status
from tenure.rules import explain, queues
from tenure.rules.jobs import MAX_JOBS_AT_ONCE, MAX_PRIORITY, MAX_RETRIES
from tenure.rules.reports import Answer, Outcome
from tenure.rules.search import MAX_LISTED
from tenure.rules.stats import PartitionState, QueueState, TypeState, WorkerState
from tenure.rules.tokens import Scope
from tenure.values import payload
from tenure.values.names import MAX_KEY_LENGTH, MAX_NAME_LENGTH
from tenure.webhooks import deliveries
from tenure.wire import problems, reports, requests, responses
from tenure.wire.reports import MAX_LEASED
from tests.docs.monitoring import metrics_with_labels
from tests.docs.pages import DOCS, Page, reference, table_rows

SOURCES = Path(tenure.__file__).parent
HTTP = Page(DOCS / "reference" / "http.md")
SETTINGS = Page(DOCS / "reference" / "settings.md")
ERRORS = Page(DOCS / "reference" / "errors.md")
LIMITS = Page(DOCS / "reference" / "limits.md")
CLI = Page(DOCS / "reference" / "cli.md")
PYTHON = Page(DOCS / "reference" / "python.md")


def bare(cell: str) -> str:
    """A cell of a table without its marks of code and emphasis."""
    return re.sub(r"[`*]", "", cell).strip()


def in_code(text: str) -> set[str]:
    """What stands in backticks."""
    return set(re.findall(r"`([^`\n]+)`", text))


# --- the command line -----------------------------------------------------------------------------


def commands(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def test_every_command_has_a_section_with_its_options_and_no_other_has() -> None:
    known = dict(commands(cli, "tenure"))
    headings = [bare(heading) for heading in CLI.headings if bare(heading).startswith("tenure ")]
    sections = {name: next(h for h in headings if f"{h} ".startswith(f"{name} ")) for name in known}

    assert len(headings) == len(known)
    for name, command in known.items():
        section = CLI.section(f"`{sections[name]}`")
        named = {option.split()[0] for option in in_code(section) if option.startswith("--")}
        options = {o for p in command.params for o in p.opts if o.startswith("--")}
        assert options - {"--database"} == named, name


def test_the_exit_codes_are_those_of_the_errors() -> None:
    listed = {int(row[0]) for row in table_rows(CLI.section("Exit codes"))}
    raised = {exit_code(made(error)) for error in error_tree()}
    assert listed == {0, TIME_OVER, 130, *OUTCOMES.values()} | raised


# --- HTTP -----------------------------------------------------------------------------------------


def routes_on_the_page() -> dict[tuple[str, str], tuple[set[int], set[int]]]:
    """Method and path -> statuses of answers and of refusals, from the tables of the page."""
    found = {}
    for row in table_rows(HTTP.text):
        if match := re.fullmatch(r"`([A-Z]+) (/\S*)`", row[0]):
            found[match[1], match[2]] = (statuses(row[2]), statuses(row[3]))
    return found


def statuses(cell: str) -> set[int]:
    return {int(number) for number in re.findall(r"\b[2-5]\d\d\b", re.sub(r"`[^`]*`", "", cell))}


def test_every_route_stands_with_its_statuses_and_no_other_does() -> None:
    assert routes_on_the_page() == {
        (route.method, route.path): (set(route.answers), set(route.refusals)) for route in ROUTES
    }


def test_what_the_page_says_of_all_calls_completes_the_openapi_description() -> None:
    always, from_other_sites, with_body, with_token = (
        statuses(row[1]) for row in table_rows(HTTP.section("In general"))
    )
    described = msgspec.json.decode(openapi.document(ROUTES, secured=True))["paths"]
    for route in ROUTES:
        answers, refusals = routes_on_the_page()[route.method, route.path]
        expected = answers | refusals | always
        is_link = (route.method, route.path) == ("GET", "/signals/{token}")
        expected |= set() if is_link else from_other_sites
        expected |= with_body if route.body is not None else set()
        expected |= with_token if route.scopes else set()
        operation = described[route.path][route.method.lower()]
        assert {int(status) for status in operation["responses"]} == expected, route.path


def test_the_scope_of_each_call_is_the_one_that_the_page_says() -> None:
    named = {"GET /health": set(), "GET /signals/{token}": set(), "POST /signals/{token}": set()}
    named |= {"GET /ready": set(Scope), "GET /openapi.json": set(Scope)}
    for row in table_rows(HTTP.section("Workers")):
        named[bare(row[0])] = {"work"}
    for scope, calls in re.findall(r"`(enqueue|read)` for ([^;.]*)", HTTP.section("In general")):
        for call in re.findall(r"`([A-Z]+ /\S+)`", calls):
            named[call] = {scope}
    for route in ROUTES:
        scopes = named.get(
            f"{route.method} {route.path}", {"read" if route.method == "GET" else "admin"}
        )
        assert set(route.scopes) == scopes, (route.method, route.path)


def test_every_field_and_parameter_is_named() -> None:
    named = {word for span in in_code(HTTP.text) for word in re.findall(r"\w+", span)}
    shapes = (
        *(
            requests.EnqueueRequest,
            requests.Backoff,
            responses.JobBody,
            responses.EventBody,
            requests.RetryRequest,
        ),
        *(reports.LeaseRequest, responses.LeaseBody),
        *(reports.HeartbeatRequest, reports.ReportEntry, responses.VerdictBody),
        *(
            responses.HeldBody,
            responses.StatsBody,
            requests.LimitRequest,
            TypeState,
            requests.PartitionSettings,
        ),
        *(route.query for route in ROUTES if route.query is not None),
    )
    wanted = {name for shape in shapes for name in shape.__struct_encode_fields__}
    wanted |= {
        name
        for shape in (QueueState, PartitionState, WorkerState, explain.Explanation)
        for name in shape.__struct_fields__
    }
    assert wanted <= named, sorted(wanted - named)


def test_the_fields_of_a_new_job_and_of_a_lease_request_stand_in_their_tables() -> None:
    new = {bare(row[0]) for row in table_rows(HTTP.section("A new job"))}
    lease = {name for row in table_rows(HTTP.section("Workers")) for name in in_code(row[0])}
    assert new == set(requests.EnqueueRequest.__struct_fields__)
    assert set(reports.LeaseRequest.__struct_fields__) <= lease


def test_a_report_is_described_where_workers_look() -> None:
    """`suspended` and `wait` were elsewhere on the page only, with another meaning."""
    workers = {
        word for span in in_code(HTTP.section("Workers")) for word in re.findall(r"\w+", span)
    }
    fields = {*reports.ReportEntry.__struct_fields__, *reports.WaitForm.__struct_fields__}
    assert fields | set(Outcome) <= workers


def test_every_metric_stands_with_its_labels() -> None:
    rows = table_rows(HTTP.section("Metrics"))
    assert {bare(row[0]): in_code(row[1]) for row in rows} == metrics_with_labels()


def test_every_reason_is_explained() -> None:
    returned = {*queues.OF_QUEUE, *queues.OF_PARTITION}
    for module in ("explain.py", "queues.py"):
        for node in ast.walk(ast.parse((SOURCES / "rules" / module).read_text("utf-8"))):
            match node:
                case (
                    ast.Return(value=ast.Tuple([ast.Constant(str(reason)), _]))
                    | ast.Assign(value=ast.Tuple([ast.Constant(str(reason)), _]))
                ):
                    returned.add(reason)
    explained = {name for row in table_rows(HTTP.section("Reasons")) for name in in_code(row[0])}
    assert explained == returned
    assert explain.Explanation.__doc__


@pytest.mark.parametrize("values", [Answer, Outcome, Status])
def test_every_value_of_an_enumeration_is_named(values: type[Status]) -> None:
    assert set(values) <= in_code(HTTP.text)


def test_every_event_is_named_where_moves_are_described() -> None:
    events = {FIRST_EVENT, *(transition.event for transition in TRANSITIONS)}
    (sentence,) = re.findall(r"`event` is one of ([^.]+)\.", HTTP.text)
    assert in_code(sentence) == events
    assert events <= set(re.findall(r"\w+", (DOCS / "reference" / "lifecycle.md").read_text()))


# --- settings -------------------------------------------------------------------------------------


def setting_rows() -> dict[str, list[str]]:
    return {bare(row[0]): row for row in table_rows(SETTINGS.text)}


def test_every_setting_stands_with_its_variable_and_flag_and_no_other_does() -> None:
    assert list(setting_rows()) == list(settings._READERS)
    own = {field.name for field in fields(settings.Settings)}
    assert own <= setting_rows().keys()
    flags = {
        parameter.name: in_dashes(parameter)
        for name in ("serve", "worker")
        for parameter in cli.commands[name].params
    }
    for name, row in setting_rows().items():
        assert in_code(row[2]) == set(settings._variables(name)), name
        assert in_code(row[3]) == flags.get(name, {"--database"} & {f"--{name}"}), name


def in_dashes(parameter: click.Parameter) -> set[str]:
    return {option for option in parameter.opts if option.startswith("--")}


def test_the_defaults_are_those_of_the_code() -> None:
    words = {"none": ((), None), "all": (None,), "7 days": (604800.0,), "30 days": (2592000.0,)}
    words |= {"false": (False,)}
    for field in fields(settings.Settings):
        assert field.default is not MISSING, field.name
        shown = bare(setting_rows()[field.name][1])
        assert field.default in words.get(shown, (shown,)) or shown == f"{field.default:g}", shown


def test_the_waits_of_a_delivery_are_those_of_the_code() -> None:
    page = " ".join((DOCS / "how-to" / "webhooks.md").read_text().split())
    policy = deliveries.BACKOFF
    assert (deliveries.MAX_RETRIES, policy.base, policy.factor, policy.cap) == (10, 5, 3, 3_600)
    assert "ten attempts: the first retry comes after about 5 seconds" in page
    assert "each later wait is three times as long, an hour at most" in page
    waits = [min(policy.base * policy.factor**n, policy.cap) for n in range(9)]
    assert round(sum(waits) / 3_600, 1) == 3.5
    assert "gives up after about three and a half hours" in page


def test_a_setting_can_be_given_in_every_way_that_the_page_names(tmp_path: Path) -> None:
    (block,) = (block for block in SETTINGS.blocks if block.language == "toml")
    file = tmp_path / "tenure.toml"
    file.write_text(block.text, "utf-8")

    assert settings.load({"config": str(file)}, {}).concurrency == 64
    assert settings.load({}, {"TENURE_CONFIG": str(file)}).lease_seconds == 20
    assert settings.load({}, {"TENURE_QUEUES": "mail,web"}).queues == ("mail", "web")


# --- errors ---------------------------------------------------------------------------------------


def error_tree() -> list[type[errors.TenureError]]:
    raised = (tenure.RateLimited, tenure.RetryAfter, tenure.Snooze)
    named = {**vars(errors), **{one.__name__: one for one in raised}}
    values = (value for value in named.values() if isinstance(value, type))
    return [value for value in values if issubclass(value, errors.TenureError)]


def made(error: type[errors.TenureError]) -> errors.TenureError:
    """An error of a class, without what its constructor asks for."""
    return error.__new__(error)


def test_every_error_stands_with_its_code_its_status_and_its_exit_code() -> None:
    rows = table_rows(ERRORS.text.partition("Problems that HTTP itself has")[0])
    listed = {bare(row[0]): [bare(cell) for cell in row[1:4]] for row in rows}
    status_of = {kind.error: str(kind.status) for kind in problems.KINDS}
    own_codes = {errors.InvalidInput: "invalid_input", errors.PayloadTooLarge: "payload_too_large"}
    assert listed == {
        error.__name__: [
            own_codes.get(error, error.code),
            status_of.get(error, "-"),
            str(exit_code(made(error))),
        ]
        for error in error_tree()
    }


def test_the_errors_that_are_public_are_told_from_the_others() -> None:
    rows = table_rows(ERRORS.text.partition("Problems that HTTP itself has")[0])
    public = {bare(row[0]) for row in rows if not row[0].endswith("*")}
    assert public == {error.__name__ for error in error_tree()} & set(tenure.__all__)


def refusals() -> dict[str, int]:
    """Code -> status of every problem made by hand, read off the source."""
    found = {}
    texts = (file.read_text("utf-8") for file in SOURCES.rglob("*.py"))
    for text in texts:
        for node in ast.walk(ast.parse(text)) if "Refusal" in text else ():
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            constants = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
            by_hand = node.func.id == "Refusal" and len(constants) >= 2
            if by_hand and isinstance(constants[0], int):
                found[str(constants[1])] = constants[0]
    return found


def test_every_problem_of_http_itself_stands_with_its_status() -> None:
    rows = table_rows(ERRORS.text.partition("Problems that HTTP itself has")[2])
    made = refusals()
    assert {bare(row[0]): int(row[1]) for row in rows} == made
    assert {"shutting_down", "not_found", "internal_error"} <= made.keys()


def test_every_member_of_a_problem_is_named() -> None:
    assert set(problems.ProblemBody.__struct_fields__) <= in_code(ERRORS.text)


# --- the rest -------------------------------------------------------------------------------------


def test_every_public_name_is_in_the_reference() -> None:
    assert set(tenure.__all__) <= set(re.findall(r"\w+", PYTHON.text))


def test_the_limits_are_those_of_the_code() -> None:
    text = LIMITS.text.replace(",", "")
    for number in (
        *(payload.MIN_INTEGER, payload.MAX_INTEGER, payload.MAX_DEPTH),
        *(MAX_NAME_LENGTH, MAX_KEY_LENGTH),
        *(MAX_PRIORITY, MAX_RETRIES, MAX_JOBS_AT_ONCE, MAX_LEASED, MAX_LISTED, MAX_RETURNS),
    ):
        assert re.search(rf"(?<![\d-]){number}(?!\d)", text), number
    assert payload.MAX_PAYLOAD_BYTES == 1024**2
    assert "at most 1 MiB" in text


def test_every_fake_type_is_in_the_reference() -> None:
    types = re.findall(r'"(fake\.\w+)":', (SOURCES / "demo.py").read_text("utf-8"))
    assert types
    assert all(f"`{type}`" in reference() for type in types)
