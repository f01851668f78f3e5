import os
import re
import signal
import subprocess
import sys

import httpx
import pytest
from click.testing import CliRunner

from cliniko_pipeline.cli.services import sandbox as command
from cliniko_pipeline.sandbox.accounts.demo import SURF_REHAB_KEY
from cliniko_pipeline_tests.support.sandboxes import USER_AGENT


@pytest.mark.parametrize("ending", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_sandbox_command_serves_until_a_signal(ending):
    program = "from cliniko_pipeline.cli.services.sandbox import sandbox; sandbox()"
    arguments = [sys.executable, "-W", "error::ResourceWarning", "-c", program]
    arguments += ["--port", "0", "--anchor", "2026-01-31T09:00:00+01:00", "--requests-per-minute", "1"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as running:
        try:
            lines = [running.stdout.readline() for _ in range(10)]
            (url,) = re.findall(r"http://127\.0\.0\.1:\d+/au4/v1", "".join(lines))
            headers = {"Accept": "application/json", "User-Agent": USER_AGENT}
            answers = [
                httpx.get(f"{url}/patients", auth=(SURF_REHAB_KEY, ""), headers=headers, timeout=60) for _ in range(2)
            ]
        finally:
            running.send_signal(ending)
            output, errors = running.communicate(timeout=60)
    assert [one.status_code for one in answers] == [200, 429]
    assert SURF_REHAB_KEY in "".join(lines)
    assert (running.returncode, output, errors) == (0, "Ended after 2 requests.\n", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "0.0.0.0"], "--allow-remote"),
        (["--anchor", "2026-01-31T09:00:00"], "is not an instant"),
        (["--reset-rate", "0.7", "--html-rate", "0.7"], "lower some"),
        (["--server-error-rate", "2"], "range"),
    ],
)
def test_unusable_option_is_refused_with_advice(arguments, words, monkeypatch):
    monkeypatch.setattr(command, "demo_organizations", lambda _anchor: ())
    result = CliRunner().invoke(command.sandbox, arguments)
    assert result.exit_code != 0
    assert words in result.output
