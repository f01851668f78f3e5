"""Tests of the manifests and of the values for Dagster's Helm chart, against the schemas of Kubernetes."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from cliniko_pipeline_tests.support import deploy_files as files

COMPONENT = "app.kubernetes.io/component"
VERSION = kubernetes_validate.latest_version()
OBJECTS = files.kubernetes_objects("workers")
PODS = files.pods()


def objects(kind: str) -> dict[str, dict[str, Any]]:
    return {each["metadata"]["name"]: each for each in OBJECTS if each["kind"] == kind}


def probes(container: dict[str, Any]) -> dict[str, Any]:
    return {name: probe for name, probe in container.items() if name.endswith("Probe")}


@pytest.mark.parametrize("each", OBJECTS, ids=lambda each: f"{each['kind']}-{each['metadata']['name']}")
def test_manifests_match_the_schemas_of_kubernetes(each: dict[str, Any]) -> None:
    kubernetes_validate.validate(each, VERSION, strict=True)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="without kubectl")
@pytest.mark.parametrize("components", [[], ["workers"]])
def test_kubectl_renders_the_same_objects(components: list[str], tmp_path: Path) -> None:
    folder = shutil.copytree(files.KUBERNETES, tmp_path / "kubernetes")
    with (folder / "kustomization.yaml").open("a", encoding="utf-8") as file:
        file.write(f"components: {json.dumps(components)}\n")
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=True)
    rendered = {(each["kind"], each["metadata"]["name"]): each for each in yaml.safe_load_all(done.stdout)}
    (settings,) = [name for kind, name in rendered if kind == "ConfigMap"]
    values = rendered.pop(("ConfigMap", settings))["data"]
    assert values == files.environment_file(files.KUBERNETES / "settings.env")
    ours = {(each["kind"], each["metadata"]["name"]): each for each in files.kubernetes_objects(*components)}
    assert rendered.keys() == ours.keys()
    for name, each in ours.items():
        labels = {**each["metadata"]["labels"], "app.kubernetes.io/part-of": "cliniko-pipeline"}
        assert rendered[name]["metadata"]["labels"] == labels
        text = json.dumps(_sorted(rendered[name]["spec"])).replace(settings, "settings")
        image = "registry.example.org/cliniko-pipeline:0.1.0"
        assert text.replace(image, "cliniko-pipeline") == json.dumps(_sorted(each["spec"]))


def _sorted(value: Any) -> Any:
    """Return the value without the order of keys and of named items, which kubectl changes."""
    if isinstance(value, dict):
        return {key: _sorted(each) for key, each in sorted(value.items())}
    if isinstance(value, list):
        return sorted(map(_sorted, value), key=lambda each: each.get("name", "") if isinstance(each, dict) else "")
    return value


def test_only_one_daemon_and_one_code_server_run() -> None:
    for name in ("daemon", "code-server"):
        specification = objects("Deployment")[name]["spec"]
        assert (specification["replicas"], specification["strategy"]) == (1, {"type": "Recreate"})


@pytest.mark.parametrize("name", PODS)
def test_pods_have_no_rights_beyond_what_they_need(name: str) -> None:
    pod = PODS[name]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert not pod["automountServiceAccountToken"]
    assert not pod["enableServiceLinks"]
    security = container["securityContext"]
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert (security["readOnlyRootFilesystem"], security["allowPrivilegeEscalation"]) == (True, False)
    assert {"cpu", "memory"} <= set(container["resources"]["requests"])
    assert "memory" in container["resources"]["limits"]


def test_pods_run_as_the_user_of_the_image() -> None:
    (user,) = [value for instruction, value in files.dockerfile() if instruction == "USER"]
    contexts = [pod["securityContext"] for pod in PODS.values()]
    contexts += [pod["securityContext"] for pod in helm_pods().values()]
    assert {f"{each['runAsUser']}:{each['runAsGroup']}" for each in contexts} == {user}


def test_secrets_come_from_the_secret() -> None:
    for pod in PODS.values():
        (container,) = pod["containers"]
        assert {"secretRef": {"name": "cliniko-pipeline"}} in container["envFrom"]
        assert {each["name"] for each in container["env"] if "value" in each} <= {"DAGSTER_HOME"}
    settings = files.environment_file(files.KUBERNETES / "settings.env")
    assert not {"DATABASE_URL", "CREDENTIALS_ENCRYPTION_KEY", "CLINIKO_ALERT_URLS"} & set(settings)


def test_services_have_probes_of_their_own_ports() -> None:
    """A worker has no port. If it fails, its process ends, and Kubernetes starts another."""
    for name in objects("Deployment").keys() - {"worker"}:
        (container,) = PODS[name]["containers"]
        ports = {each for port in container.get("ports", []) for each in port.values()}
        assert {"startupProbe", "livenessProbe"} <= set(probes(container))
        for probe in probes(container).values():
            action = probe.get("httpGet") or probe.get("grpc")
            assert "exec" in probe if action is None else action["port"] in ports


def test_addresses_lead_to_the_ports_of_containers() -> None:
    for name, service in objects("Service").items():
        assert service["spec"]["selector"] == {COMPONENT: name}
        assert objects("Deployment")[name]["spec"]["template"]["metadata"]["labels"] == {COMPONENT: name}
        (port,), (container,) = service["spec"]["ports"], PODS[name]["containers"]
        assert container["ports"] == [{"name": port["targetPort"], "containerPort": port["port"]}]
        assert str(port["port"]) in container["command"]
    settings = files.environment_file(files.KUBERNETES / "settings.env")
    assert (
        settings["API_DAGSTER_URL"] == f"http://webserver:{objects('Service')['webserver']['spec']['ports'][0]['port']}"
    )


def test_code_server_and_webserver_are_closed_to_other_pods() -> None:
    policies = objects("NetworkPolicy")
    allowed = {name: json.dumps(policy["spec"]["ingress"]) for name, policy in policies.items()}
    assert {name: policy["spec"]["podSelector"]["matchLabels"][COMPONENT] for name, policy in policies.items()} == {
        "code-server": "code-server",
        "webserver": "webserver",
    }
    assert ["api" in allowed["code-server"], "daemon" in allowed["code-server"]] == [False, True]
    assert "api" in allowed["webserver"]


def helm_pods() -> dict[str, dict[str, Any]]:
    """Return a pod for each part of the values, with the fields that Dagster's chart passes on unchanged."""
    values = files.helm_values()
    (code_server,) = values["dagster-user-deployments"]["deployments"]
    parts = {"webserver": values["dagsterWebserver"], "daemon": values["dagsterDaemon"], "code-server": code_server}
    return {name: _helm_pod(part) for name, part in parts.items()}


def _helm_pod(part: dict[str, Any]) -> dict[str, Any]:
    container = {
        "name": "dagster",
        "image": f"{part['image']['repository']}:{part['image']['tag']}",
        "imagePullPolicy": part["image"]["pullPolicy"],
        "envFrom": [{"secretRef": each} for each in part["envSecrets"]],
        **{name: part[name] for name in ("env", "securityContext", "resources", "volumeMounts")},
        **probes(part),
    }
    return {"containers": [container], "securityContext": part["podSecurityContext"], "volumes": part["volumes"]}


@pytest.mark.parametrize("name", ["webserver", "daemon", "code-server"])
def test_helm_values_match_the_schemas_of_kubernetes(name: str) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": helm_pods()[name]}
    kubernetes_validate.validate(pod, VERSION, strict=True)


def test_helm_values_agree_with_the_manifests() -> None:
    for name, pod in helm_pods().items():
        (ours,), (theirs,) = PODS[name]["containers"], pod["containers"]
        assert theirs["resources"] == ours["resources"]
        assert theirs["securityContext"] == ours["securityContext"]
        assert pod["securityContext"] == PODS[name]["securityContext"]
        assert {each["name"]: each.get("valueFrom") for each in theirs["env"]}.items() >= {
            each["name"]: each["valueFrom"] for each in ours["env"] if "valueFrom" in each
        }.items()
    (server,) = files.helm_values()["dagsterWebserver"]["workspace"]["servers"]
    (location,) = yaml.safe_load((files.DOCKER / "workspace.yaml").read_text(encoding="utf-8"))["load_from"]
    assert {"host": server["host"], "port": server["port"], "location_name": server["name"]} == location["grpc_server"]


def test_all_services_but_the_migration_use_the_workers_home() -> None:
    """The daemon sends a run to the workers only if its dagster.yaml says so."""
    (target,) = [
        value.split()[-1] for instruction, value in files.dockerfile() if "deploy/celery/dagster.yaml" in value
    ]
    homes = {
        name: [each["value"] for each in pod["containers"][0]["env"] if each["name"] == "DAGSTER_HOME"]
        for name, pod in PODS.items()
    }
    assert homes.pop("migration") == []
    assert set(map(tuple, homes.values())) == {(target.rstrip("/"),)}
