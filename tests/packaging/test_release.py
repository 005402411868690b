"""What a release publishes, as tools/release.py builds and checks it, and the workflows."""

from __future__ import annotations

import re
import tarfile
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools.release import ROOT, build, contents, main, objections, rebuilt, version

UNRELEASED = "# Changelog\n\n## 0.2.0 (unreleased)\n\n## 0.1.0 (2026-12-01)\n"
RELEASED = UNRELEASED.replace("unreleased", "2027-01-31")


@pytest.mark.parametrize(
    ("tag", "changelog", "expected"),
    [
        ("", UNRELEASED, ""),
        ("v0.2.0", RELEASED, ""),
        ("v0.2.0", UNRELEASED, "no date"),
        ("v0.1.0", RELEASED, "the tag is v0.1.0"),
        ("0.2.0", RELEASED, "the tag is 0.2.0"),
        ("", UNRELEASED.replace("0.2.0", "0.3.0"), "begins with 0.3.0"),
        ("", "# Changelog\n", "begins with None"),
    ],
)
def test_a_release_needs_its_version_its_tag_and_a_date(
    tag: str, changelog: str, expected: str
) -> None:
    found = " ".join(objections("0.2.0", tag, changelog))
    assert expected in found
    assert bool(found) == bool(expected)


def test_the_version_of_now_could_be_built() -> None:
    assert objections(version(), "", (ROOT / "CHANGELOG.md").read_text("utf-8")) == []


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    sdist, wheel = build(ROOT, tmp_path_factory.mktemp("dist"), "sdist", "wheel")
    return (sdist, wheel) if wheel.suffix == ".whl" else (wheel, sdist)


def test_packagers_make_the_same_wheel_from_the_source(
    built: tuple[Path, Path], tmp_path: Path
) -> None:
    sdist, wheel = built
    assert contents(rebuilt(sdist, tmp_path)) == contents(wheel)


def test_the_source_has_what_its_pages_name(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"deploy/compose.yaml", "docs/index.md", "CHANGELOG.md", "LICENSE"} <= names
    assert not [name for name in names if name.endswith((".pyc", ".db"))]


@pytest.mark.slow
def test_a_try_builds_installs_and_runs_jobs(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "dist")]) == 0
    assert "verify found no violation" in capfd.readouterr().out
    made = sorted(path.name for path in (tmp_path / "dist").iterdir())
    assert made == [f"tenure-{version()}-py3-none-any.whl", f"tenure-{version()}.tar.gz"]


def test_a_wrong_tag_builds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RELEASE_TAG", "v99.0.0")
    assert main([str(tmp_path / "dist")]) == 1
    assert "the tag is v99.0.0" in capsys.readouterr().err
    assert not (tmp_path / "dist").exists()


# --- the workflows


def workflow(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(
        (ROOT / ".github" / "workflows" / name).read_text("utf-8")
    )
    return loaded


RELEASE = workflow("release.yml")
JOBS = RELEASE["jobs"]


def test_the_job_that_publishes_runs_no_code_of_the_project() -> None:
    assert RELEASE["permissions"] == {}
    assert JOBS["build"]["permissions"] == {"contents": "read"}
    publish = JOBS["publish"]
    assert publish["permissions"] == {"id-token": "write"}
    assert publish["if"] == "github.event_name == 'push' && github.ref_type == 'tag'"
    assert publish["needs"] == "build"
    assert [step["uses"].split("@")[0] for step in publish["steps"]] == [
        "actions/download-artifact",
        "pypa/gh-action-pypi-publish",
    ]
    assert publish["steps"][-1]["with"]["attestations"] is True


@pytest.mark.parametrize(("name", "count"), [("release.yml", 5), ("ci.yml", 4)])
def test_actions_are_pinned_by_commit(name: str, count: int) -> None:
    jobs = workflow(name)["jobs"].values()
    used = [step["uses"] for job in jobs for step in job["steps"] if "uses" in step]
    assert len(used) == count
    assert [one for one in used if not re.search(r"@[0-9a-f]{40}$", one)] == []


def test_the_build_gets_the_tag_by_the_environment_and_make_knows_the_target() -> None:
    (run,) = (step for step in JOBS["build"]["steps"] if "run" in step)
    assert run["run"] == "make dist"  # a tag in the text of a script would be run by the shell
    assert set(run["env"]) == {"RELEASE_TAG"}
    assert re.search(r"^dist: dev ", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)


def test_every_push_runs_what_a_change_has_to_pass_on_every_python() -> None:
    """It runs the same commands as people do, and may write nothing."""
    ci = workflow("ci.yml")
    assert ci["permissions"] == {}
    assert {"push", "pull_request", "schedule"} <= set(ci[True])  # YAML reads `on` as true
    assert {job: jobs["permissions"] for job, jobs in ci["jobs"].items()} == {
        "test": {"contents": "read"},
        "dist": {"contents": "read"},
    }
    runs = [s["run"] for job in ci["jobs"].values() for s in job["steps"] if "run" in s]
    assert runs == [".ci/run", "make dist"]
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"][
        "classifiers"
    ]
    pythons = [re.search(r":: (3\.\d+)$", one) for one in classifiers]
    assert ci["jobs"]["test"]["strategy"]["matrix"]["python"] == [one[1] for one in pythons if one]
