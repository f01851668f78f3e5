"""Tests of the layout of the project against its own rules."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "cliniko_pipeline"
MODULES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((ROOT / "cliniko_pipeline_tests").rglob("*.py"))
NAMES_THAT_SAY_NOTHING = {"utils", "helpers", "common", "base", "misc", "util", "helper"}

# Modules outside settings/ that use the environment, and the reason.
MAY_TOUCH_THE_ENVIRONMENT = {
    "cli/services/demo.py": "hides the operator's own settings from itself and its processes",
    "cli/services/ui.py": "hands the environment to Dagster's processes",
    "orchestration/instance/home.py": "sets Dagster's home for this process",
}

# Each pattern has two parts, so that this file does not match the patterns.
FORBIDDEN = [
    re.compile("/" + r"(home|Users)/(?!<)\w+"),
    re.compile("/" + r"root/"),
    re.compile("/" + r"work/"),
    re.compile(r"\.\./" + "shared"),
    re.compile("pypi" + r"\.(org|python)|files\." + "pythonhosted|registry\\." + "npmjs"),
]


def test_modules_have_telling_names() -> None:
    paths = [path.relative_to(ROOT) for path in MODULES + TESTS]
    assert [path for path in paths if {path.stem, *path.parent.parts} & NAMES_THAT_SAY_NOTHING] == []


def test_test_files_have_at_most_400_lines() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in TESTS}
    assert {path: length for path, length in lengths.items() if length > 400 and "/support/" not in path} == {}


def test_test_names_have_at_most_70_characters() -> None:
    names = {
        node.name
        for path in TESTS
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
    assert [name for name in names if len(name) > 70] == []


def test_only_settings_read_the_environment() -> None:
    found = {
        str(module.relative_to(PACKAGE))
        for module in MODULES
        if _touches_the_environment(ast.parse(module.read_text(encoding="utf-8")))
    }
    assert found - {"settings/loading.py"} == set(MAY_TOUCH_THE_ENVIRONMENT)


def test_no_file_names_this_machine_or_a_package_registry() -> None:
    found: list[str] = []
    for path in _tracked_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), start=1):
            if any(pattern.search(line) for pattern in FORBIDDEN):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert found == []


def test_constraints_hold_only_names_and_versions() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert len(pins) > 50
    assert [line for line in pins if not re.fullmatch(r"[A-Za-z0-9._-]+(\[[a-z,]+\])?==[A-Za-z0-9.+!]+", line)] == []


def _touches_the_environment(module: ast.Module) -> bool:
    names = {"environ", "environb", "getenv", "putenv"}
    return any(
        (isinstance(node, ast.Attribute) and node.attr in names and isinstance(node.value, ast.Name))
        or (isinstance(node, ast.ImportFrom) and node.module == "os" and names & {each.name for each in node.names})
        for node in ast.walk(module)
    )


def _tracked_files() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    return [path for name in done.stdout.decode().split("\0") if name and (path := ROOT / name).is_file()]
