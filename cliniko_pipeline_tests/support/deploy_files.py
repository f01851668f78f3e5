"""The files of deploy/, read in the way of Docker, Kubernetes and systemd."""

import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import yaml
from dockerfile_parse import DockerfileParser

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "deploy" / "docker"
KUBERNETES = ROOT / "deploy" / "kubernetes"
SYSTEMD = ROOT / "deploy" / "systemd"

REQUIRED = {"CREDENTIALS_ENCRYPTION_KEY": "key", "CLINIKO_CONTACT_EMAIL": "ops@clinic.example"}
"""Values for the variables that compose.yaml requires."""

_VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^{}]*))?\}")


def dockerfile() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile, without comments and line continuations."""
    parser = DockerfileParser(fileobj=BytesIO((DOCKER / "Dockerfile").read_bytes()))
    return [(line["instruction"], line["value"]) for line in parser.structure if line["instruction"] != "COMMENT"]


def default_command() -> list[str]:
    """Return the command that the image runs without another one."""
    return next(json.loads(value) for instruction, value in dockerfile() if instruction == "CMD")


def image_health_check() -> list[str]:
    """Return the command that checks the image's default service."""
    value = next(value for instruction, value in dockerfile() if instruction == "HEALTHCHECK")
    return json.loads(value.partition("CMD ")[2])


def image_variables() -> dict[str, str]:
    """Return the environment variables of the image. Other variables in their values are not replaced."""
    pairs = [shlex.split(value) for instruction, value in dockerfile() if instruction == "ENV"]
    return dict(pair.split("=", 1) for each in pairs for pair in each)


def compose_file(variables: Mapping[str, str]) -> dict[str, Any]:
    """Return compose.yaml with these variables. Raise KeyError if one is missing that the file requires."""

    def substituted(text: str) -> str:
        while found := _VARIABLE.search(text):
            name, operator, default = found.groups()
            value = variables.get(name) or (default if operator == "-" else "")
            if not value and operator != "-":
                raise KeyError(name)
            text = text[: found.start()] + value + text[found.end() :]
        return text

    (file,) = _documents(DOCKER / "compose.yaml")
    return with_texts(file, substituted)


def with_texts(value: Any, change: Callable[[str], str]) -> Any:
    """Return the value with each text in it changed, except the keys."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [with_texts(each, change) for each in value]
    if isinstance(value, dict):
        return {key: with_texts(each, change) for key, each in value.items()}
    return value


def kubernetes_objects(*components: str) -> list[dict[str, Any]]:
    """Return the objects of kustomization.yaml and of these components, with their patches.

    The ConfigMap that kustomization.yaml generates is left out.
    """
    folders = [*(KUBERNETES / name for name in components), KUBERNETES]
    kustomizations = [(folder, _documents(folder / "kustomization.yaml")[0]) for folder in folders]
    objects = [
        each for folder, file in kustomizations for name in file["resources"] for each in _documents(folder / name)
    ]
    for folder, file in kustomizations:
        for patch in file["patches"]:
            objects = [_patched(each, folder / patch["path"], patch["target"]["kind"]) for each in objects]
    return objects


def _patched(each: dict[str, Any], patch: Path, kind: str) -> dict[str, Any]:
    (change,) = _documents(patch)
    return _merged(each, {"spec": change["spec"]}) if each["kind"] == kind else each


def pods() -> dict[str, dict[str, Any]]:
    """Return the specification of each workload's pod, workers included, by the workload's name."""
    return {
        each["metadata"]["name"]: each["spec"]["template"]["spec"]
        for each in kubernetes_objects("workers")
        if each["kind"] in {"Deployment", "Job"}
    }


def helm_values() -> dict[str, Any]:
    """Return the values for Dagster's Helm chart, without the fragments that the file repeats."""
    (values,) = _documents(KUBERNETES / "helm-values.yaml")
    return {name: value for name, value in values.items() if not name.startswith("x-")}


def units() -> dict[str, list[tuple[str, str]]]:
    """Return the settings of each systemd service, including the ones that all services have in common."""
    common = list(_unit_settings(SYSTEMD / "cliniko-pipeline-.service.d" / "common.conf"))
    return {path.stem.rstrip("@"): [*_unit_settings(path), *common] for path in SYSTEMD.glob("*.service")}


def environment_file(path: Path) -> dict[str, str]:
    """Return the variables of a file with one NAME=value a line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def _documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def _unit_settings(path: Path) -> Iterator[tuple[str, str]]:
    for line in path.read_text(encoding="utf-8").splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            yield name, value


def _merged(value: Any, change: Any) -> Any:
    """Return the value with the change of a strategic merge patch. Lists of named items are merged by name."""
    if isinstance(value, dict) and isinstance(change, dict):
        return value | {key: _merged(value.get(key), each) for key, each in change.items()}
    if isinstance(value, list) and isinstance(change, list) and all("name" in each for each in [*value, *change]):
        named = {each["name"]: each for each in value}
        return list((named | {each["name"]: _merged(named.get(each["name"]), each) for each in change}).values())
    return change
