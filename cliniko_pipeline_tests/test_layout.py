"""How the project is laid out, held against its own rules."""

import ast
import re
import subprocess
import sysconfig
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "cliniko_pipeline"
MODULES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((ROOT / "cliniko_pipeline_tests").rglob("*.py"))
NAMES_THAT_SAY_NOTHING = {"utils", "helpers", "common", "base", "misc", "util", "helper"}

# Besides settings.py, who may touch the environment, and what for.
MAY_TOUCH_THE_ENVIRONMENT = {
    "cli/demo.py": "takes the operator's own settings away from itself and the processes it starts",
    "cli/ui.py": "hands the environment to Dagster's processes",
    "orchestration/instance.py": "tells Dagster, in this process, where its home is",
}

# In two parts each, so that this file does not hold what it looks for.
FORBIDDEN = [
    re.compile("/" + r"(home|Users)/(?!<)\w+"),
    re.compile("/" + r"root/"),
    re.compile("/" + r"work/"),
    re.compile(r"\.\./" + "shared"),
    re.compile("pypi" + r"\.(org|python)|files\." + "pythonhosted|registry\\." + "npmjs"),
]


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_says_what_it_is_for(module: Path) -> None:
    assert ast.get_docstring(ast.parse(module.read_text(encoding="utf-8")))


def test_no_module_has_a_name_that_says_nothing() -> None:
    paths = [path.relative_to(ROOT) for path in MODULES + TESTS]
    assert [path for path in paths if {path.stem, *path.parent.parts} & NAMES_THAT_SAY_NOTHING] == []


def test_imports_point_one_way() -> None:
    linter = Path(sysconfig.get_path("scripts")) / "lint-imports"
    done = subprocess.run([linter], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_only_the_settings_read_the_environment() -> None:
    found = {
        str(module.relative_to(PACKAGE))
        for module in MODULES
        if _touches_the_environment(ast.parse(module.read_text(encoding="utf-8")))
    }
    assert found - {"settings.py"} == set(MAY_TOUCH_THE_ENVIRONMENT)


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


def test_the_console_script_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["scripts"] == {"cliniko-pipeline": "cliniko_pipeline.cli.main:main"}


def test_the_constraints_hold_nothing_but_names_and_versions() -> None:
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
