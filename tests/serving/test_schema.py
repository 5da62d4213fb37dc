"""schemathesis over the OpenAPI document: no 5xx, and every answer is what the document says."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance",
    "response_schema_conformance", "negative_data_rejection", "unsupported_method", "missing_required_header",
)  # fmt: skip


def check_document(url: str, *options: str) -> None:
    """Sends requests to the endpoints of a server's document."""
    program = Path(sysconfig.get_path("scripts")) / "schemathesis"
    command = [str(program)] if program.exists() else [sys.executable, "-m", "schemathesis.cli"]
    command += ["run", f"{url}/openapi.json", "--checks", ",".join(CHECKS), "--max-examples", "25", "--seed", "1"]
    command += ["--generation-database", "none", "--no-color", "--request-timeout", "60"]
    command += ["--phases", "examples,coverage,fuzzing", *options]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment)
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.mark.slow
def test_answers_are_those_of_the_document(url: str):
    check_document(url)
