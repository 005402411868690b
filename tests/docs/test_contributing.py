"""The pages for contributors name every room of the package and every suite of tests."""

from __future__ import annotations

import re

from tests.docs.pages import ROOT, Page, table_rows

CONTRIBUTING = Page(ROOT / "CONTRIBUTING.md")
TESTS = Page(ROOT / "tests" / "README.md")


def rooms() -> set[str]:
    """The packages and modules of src/tenure, as the table writes them."""
    source = ROOT / "src" / "tenure"
    packages = {f"{path.parent.name}/" for path in source.glob("*/__init__.py")}
    return packages | {path.name for path in source.glob("*.py") if path.name[0] != "_"}


def test_every_room_has_tests_to_run() -> None:
    named: set[str] = set()
    for changed, run in table_rows(CONTRIBUTING.section("Which tests to run")):
        named |= set(re.findall(r"`([^`]+)`", changed))
        for path in re.findall(r"\btests/[\w/.]*", run):
            assert (ROOT / path).exists(), path
    assert rooms() <= named
    for name in named - {"docs/", "bench/", "deploy/", "examples/"}:
        assert (ROOT / "src" / "tenure" / name).exists(), name


def test_every_suite_is_described() -> None:
    suites = {path.parent for path in (ROOT / "tests").glob("*/test_*.py")}
    described = {
        re.findall(r"\[(\w+)\]", row[0])[0] for row in table_rows(TESTS.section("The suites"))
    }
    assert described == {suite.name for suite in suites}


def test_every_file_of_the_contract_is_a_topic() -> None:
    topics = table_rows(TESTS.section("What a third store has to pass"))
    files = {re.findall(r"\[(\w+\.py)\]", row[1])[0] for row in topics}
    assert files == {path.name for path in (ROOT / "tests" / "contract").glob("test_*.py")}


def imported_from_tests() -> list[tuple[str, str]]:
    """Each file of the tests, with each module of the tests that it imports from."""
    found = []
    for file in (ROOT / "tests").rglob("*.py"):
        text = file.read_text("utf-8")
        for package, names in re.findall(
            r"^\s*from tests\.?([\w.]*) import ([^(\n]+|\()", text, re.MULTILINE
        ):
            modules = [package] if package.count(".") or names == "(" else []
            modules = modules or [f"{package}.{name.strip()}" for name in names.split(",")]
            found += [(file.relative_to(ROOT / "tests").as_posix(), module) for module in modules]
    return found


def test_a_suite_imports_from_itself_and_from_support() -> None:
    found = imported_from_tests()
    assert len(found) > 300
    for file, module in found:
        suite = module.split(".")[0]
        assert suite in (file.split("/")[0], "support", "conftest"), f"{file} imports from {module}"
        assert ".test_" not in module, f"{file} imports from {module}"
