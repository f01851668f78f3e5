"""Tests of the documents against the paths, links, commands, `make` targets and tests that they mention."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from cliniko_pipeline.cli.main import COMMANDS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "cliniko_pipeline"
TESTS = ROOT / "cliniko_pipeline_tests"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
GENERATED = {"errors.md", "configuration.md"}
TABLES = {"field-trials.md", "CHANGELOG.md"}
MAX_LINES = 150
MAX_LENGTH = 100

CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\((?!\w+:)([^)\s#]*)(?:#([^)\s]+))?\)")
FENCE = re.compile(r"^ *```.*?^ *```$", re.DOTALL | re.MULTILINE)
PATH = re.compile(r"[\w.-]+(?:/[\w.{},-]+)*(?:\.(?:py|sql|md|toml|yaml|js|html|css)|/)")
MAKE = re.compile(r"\bmake (?:[A-Z_]+=\S+ )?([a-z][a-z-]*)")

# Files that the reader or the pipeline creates.
ELSEWHERE = (".cliniko/", ".mjs")


@pytest.fixture(params=DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def document(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_documents_are_short_and_wrapped(document: Path) -> None:
    if document.name in GENERATED:
        return
    text = FENCE.sub("", document.read_text(encoding="utf-8"))
    if document.name not in TABLES:
        assert len(document.read_text(encoding="utf-8").splitlines()) < MAX_LINES
    lines = [line for line in text.splitlines() if not line.startswith(("|", "!["))]
    assert [line for line in lines if len(line) > MAX_LENGTH] == []


def test_paths_in_documents_exist(document: Path) -> None:
    text = FENCE.sub("", document.read_text(encoding="utf-8"))
    named = {match for match in CODE.findall(text) if PATH.fullmatch(match) and not match.startswith(ELSEWHERE)}
    assert [name for name in named if not _exists(name)] == []


def test_links_in_documents_lead_somewhere(document: Path) -> None:
    broken: list[str] = []
    text = CODE.sub("", document.read_text(encoding="utf-8"))
    for target, anchor in LINK.findall(text):
        path = (document.parent / target).resolve() if target else document
        if not path.exists() or (anchor and anchor not in _anchors(path)):
            broken.append(f"{target}#{anchor}")
    assert broken == []


def test_commands_and_make_targets_in_documents_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    code = "\n".join([*CODE.findall(text), *FENCE.findall(text)])
    assert set(MAKE.findall(code)) - targets == set()
    commands = set(re.findall(r"cliniko-pipeline ([a-z][a-z-]*)", code))
    assert commands - set(COMMANDS) == set()


def test_tests_in_documents_exist(document: Path) -> None:
    named = re.findall(r"(?<![\w/])test_\w+(?![\w.])", document.read_text(encoding="utf-8"))
    assert set(named) - _test_names() - {"test_name", "test_"} == set()


@cache
def _test_names() -> set[str]:
    return {
        node.name
        for path in TESTS.rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }


def _exists(name: str) -> bool:
    """Return whether a file or folder of the project ends with this path."""
    return (ROOT / name).exists() or any(next(root.rglob(name), None) for root in (PACKAGE, TESTS, ROOT / "deploy"))


def _anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
