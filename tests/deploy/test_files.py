"""The files in `deploy` fit Tenure: commands, ports, variables, times, rights."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest

from tenure import settings
from tenure.cli import cli
from tenure.values.durations import seconds
from tests.deploy.plans import (
    ROOT,
    UNITS,
    Program,
    compose,
    dockerfile,
    instructions,
    manifests,
    programs,
    unit,
)

PROGRAMS = list(programs())
VARIABLES = {v for name in settings._READERS for v in settings._variables(name)} | {"PGPASSWORD"}


def parsed(command: tuple[str, ...]) -> click.Context:
    """A command line as the program reads it; one that it does not accept is an error."""
    assert command[0] == "tenure"
    name, *rest = command[1:]
    return cli.commands[name].make_context(name, list(rest))


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.where)
def test_the_program_accepts_each_command_and_variable(program: Program) -> None:
    parsed(program.command)
    assert set(program.environ) <= VARIABLES
    for name, value in program.environ.items():
        if re.search("TOKEN|PASSWORD", name):
            assert value is None, "no file has a secret"


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.where)
def test_running_jobs_get_their_time_before_it_is_killed(program: Program) -> None:
    given = parsed(program.command).params.get("grace_seconds")
    grace = seconds(given, "grace") if given else settings.Settings().grace_seconds
    if program.stop_seconds is not None and program.command[1] in ("serve", "worker"):
        assert program.stop_seconds >= grace + 10


def test_a_command_that_does_not_exist_is_found() -> None:
    with pytest.raises(click.UsageError):
        parsed(("tenure", "worker", "--healthy", "8081"))


# --- the image

COPIED = [rest.split() for name, rest in dockerfile() if name == "COPY" and "--from" not in rest]


def test_the_image_has_pinned_parts_and_no_rights() -> None:
    lines = dockerfile()
    stages = [rest for name, rest in lines if name == "FROM"]
    assert all(re.match(r"python:3\.\d+-slim-\w+( AS \w+)?$", stage) for stage in stages), stages
    last = lines[[name for name, _ in lines].index("FROM", 1) :]
    assert "CMD" in {name for name, _ in last}
    assert "HEALTHCHECK" not in {name for name, _ in last}, "images of workers would inherit it"
    assert [rest for name, rest in last if name == "USER"] == ["10001:10001"]
    assert not [rest for name, rest in last if name in ("RUN", "ADD")]
    installs = [rest for name, rest in lines if name == "RUN"]
    assert "--require-hashes" in installs[0]
    assert all(
        "--no-index" in part or "--require-hashes" in part or "venv" in part
        for rest in installs
        for part in rest.split("&&")
    )


def test_what_the_image_copies_is_there_and_in_the_context() -> None:
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    context = {line.removeprefix("!") for line in lines if line.startswith("!")}
    named = {source for *sources, _ in COPIED for source in sources}
    assert named == context
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_instructions_are_read() -> None:
    assert instructions("# no\nFROM a AS b\nRUN c \\\n    && d\n") == [
        ("FROM", "a AS b"),
        ("RUN", "c && d"),
    ]


# --- compose


def test_services_wait_for_what_they_need_and_say_how_they_are() -> None:
    services = compose()["services"]
    for name, service in services.items():
        for other, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert "test" in services[other]["healthcheck"], name
            else:
                assert services[other]["restart"] != "unless-stopped", "it would never be through"
        assert "healthcheck" in service
        assert "privileged" not in service
    assert services["server"]["ports"] == ["127.0.0.1:8080:8080"]
    assert probed(services["worker"]["healthcheck"]["test"]) == "8081"
    assert services["worker"]["command"][-1] == "8081"


def probed(test: list[str]) -> str:
    """The port that a health check asks."""
    port, path = test[-2:]
    assert test[-3] == "/opt/tenure/probe.py"
    assert path in ("/health", "/ready")
    return port


# --- Kubernetes


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [one for one in manifests() if one["kind"] == kind]


@pytest.mark.parametrize(
    "pod",
    [one["spec"]["template"]["spec"] for one in of_kind("Deployment") + of_kind("Job")],
    ids=lambda pod: pod["containers"][0]["name"],
)
def test_a_pod_has_no_rights_that_it_does_not_need(pod: dict[str, Any]) -> None:
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False, "a service named tenure would set TENURE_PORT"
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"requests", "limits"} == set(container["resources"])
    assert not container["image"].endswith(":latest")
    assert ":" in container["image"]


def test_what_killed_handlers_leave_is_reaped() -> None:
    """A worker that was the first process of its container kept a zombie for each."""
    assert compose()["services"]["worker"]["init"] is True
    (pod,) = (
        one["spec"]["template"]["spec"]
        for one in of_kind("Deployment")
        if one["metadata"]["name"] == "tenure-worker"
    )
    assert pod["shareProcessNamespace"] is True


def test_probes_ask_where_the_program_answers() -> None:
    for one in of_kind("Deployment"):
        (container,) = one["spec"]["template"]["spec"]["containers"]
        (port,) = container["ports"]
        given = parsed(tuple(container["command"])).params
        assert port["containerPort"] == (
            int(given["port"]) if "port" in given else given["health"][1]
        )
        for probe in ("livenessProbe", "readinessProbe"):
            asked = container[probe]
            if "exec" in asked:
                assert probed(asked["exec"]["command"]) == str(port["containerPort"])
            else:
                assert asked["httpGet"]["port"] == port["name"]
                assert asked["httpGet"]["path"] in ("/live", "/ready")
            assert asked["timeoutSeconds"] > 4, "probe.py waits 4 seconds itself"


def test_services_and_budgets_choose_the_pods_of_a_deployment() -> None:
    labels = [one["spec"]["template"]["metadata"]["labels"] for one in of_kind("Deployment")]
    for one in of_kind("Deployment"):
        assert one["spec"]["selector"]["matchLabels"] in labels
    chosen = [one["spec"]["selector"]["matchLabels"] for one in of_kind("PodDisruptionBudget")]
    assert chosen == labels
    assert [one["spec"]["selector"] for one in of_kind("Service")] == labels[:1]


# --- systemd


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_systemd_accepts_a_unit_and_finds_it_hardened(path: Path, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze: on Debian `apt-get install systemd`")
    service = unit(path)["Service"]
    assert service["Type"] == "exec"
    assert service["KillMode"] == "mixed", "the worker decides when its child processes end"
    program = tmp_path / "tenure"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    copy = tmp_path / path.name.replace("@", "@1")
    copy.write_text(path.read_text("utf-8").replace("/srv/shop/.venv/bin/tenure", str(program)))
    for verb in (["verify", "--man=no"], ["security", "--offline=true", "--threshold=25"]):
        done = subprocess.run(
            ["systemd-analyze", *verb, str(copy)], check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert path.name.partition(".")[0] not in done.stderr, done.stderr
