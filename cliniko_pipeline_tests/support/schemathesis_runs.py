"""Runs of schemathesis, which sends requests and compares all responses with the OpenAPI description."""

import subprocess
import sysconfig
from pathlib import Path

SCRIPT = Path(sysconfig.get_path("scripts")) / "schemathesis"
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,missing_required_header,unsupported_method,allow_header_conformance,ignored_auth"
)
CHECKS_WITH_TOKEN = f"{CHECKS},negative_data_rejection"


def assert_answers_conform(url: str, folder: Path, token: str | None, *options: str) -> None:
    """Run schemathesis against the service, with the token if there is one. Fail with its report."""
    command = [SCRIPT, "run", f"{url}/openapi.json", "--continue-on-failure", "--request-timeout=60", "--seed=1"]
    command += ["--checks", CHECKS if token is None else CHECKS_WITH_TOKEN]
    if token is not None:
        command += ["--header", f"Authorization: Bearer {token}"]
    done = subprocess.run([*command, *options], cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
