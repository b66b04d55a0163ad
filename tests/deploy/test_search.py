"""The launchers of a search fit the schemas and the command line."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.files import DEPLOY, check_with
from tests.test_cli import command_of

FOLDER = DEPLOY / "search"
JOB: dict[str, Any] = yaml.safe_load((FOLDER / "kubernetes.yaml").read_text())
(NODE,) = JOB["spec"]["template"]["spec"]["containers"]


@pytest.mark.parametrize("version", ["1.32", "1.37"])
def test_the_job_fits_the_schemas(version: str) -> None:
    check_with(
        "kubernetes-validate",
        *("-k", version, "--strict", FOLDER / "kubernetes.yaml"),
        package="PyPI: kubernetes-validate",
    )


def test_every_node_runs_at_once_and_a_lost_one_is_replaced() -> None:
    assert JOB["spec"]["completions"] == JOB["spec"]["parallelism"]
    assert JOB["spec"]["backoffLimit"] >= JOB["spec"]["completions"]


def test_the_script_gets_all_variables_and_its_options_exist() -> None:
    script = (FOLDER / "node.sh").read_text()
    required = set(re.findall(r"\$\{(\w+):\?\}", script))
    image = dict(re.findall(r"(\w+)=(\S+)", (FOLDER / "Dockerfile").read_text()))
    assert required <= {variable["name"] for variable in NODE["env"]} | image.keys()
    options = {option for param in command_of("tune").params for option in param.opts}
    used = re.findall(r"--[a-z-]+", script.partition("exec ")[2]) + [
        option.partition("=")[0] for option in NODE["args"]
    ]
    assert len(used) >= 6
    assert set(used) <= options


def test_the_password_of_the_database_comes_from_a_secret() -> None:
    (password,) = [variable for variable in NODE["env"] if variable["name"] == "PGPASSWORD"]
    assert password.keys() == {"name", "valueFrom"}
    assert password["valueFrom"].keys() == {"secretKeyRef"}
    (storage,) = [variable["value"] for variable in NODE["env"] if variable["name"] == "STUDY_STORAGE"]
    assert re.fullmatch(r"postgresql\+psycopg://\w+@\w+/\w+", storage)


def test_the_image_contains_what_it_is_built_from() -> None:
    ignored = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
    copied = re.findall(r"^COPY (.+) \S+$", (FOLDER / "Dockerfile").read_text(), re.MULTILINE)
    assert {name for line in copied for name in line.split()} == {
        line.removeprefix("!") for line in ignored if line.startswith("!")
    }


@pytest.mark.parametrize(("answer", "code"), [("exit 0", 0), ("exit 7", 7), ("", 143)])
def test_the_slurm_job_waits_for_its_node_after_a_signal_and_has_its_exit_code(
    answer: str, code: int, tmp_path: Path
) -> None:
    """A stand-in for the node's command takes a moment to react to SIGTERM, and says when it has."""
    node = tmp_path / "deploy/search/node.sh"
    node.parent.mkdir(parents=True)
    on_signal = answer or "trap - TERM; kill -TERM $$"
    node.write_text(
        f"#!/bin/bash\ntrap 'sleep 0.2; echo stopped >> log; {on_signal}' TERM\n"
        'echo "$@" > log\nwhile :; do sleep 0.05; done\n'
    )
    node.chmod(0o755)
    script = ["bash", str(FOLDER / "slurm.sbatch"), "--model", "a name"]
    job = subprocess.Popen(script, cwd=tmp_path, env=os.environ | {"USER": "me"}, stderr=subprocess.DEVNULL)
    try:
        while not (tmp_path / "log").exists():
            time.sleep(0.01)
            assert job.poll() is None
        job.send_signal(signal.SIGTERM)
        assert job.wait(timeout=30) == code
    finally:
        job.kill()
        job.wait()
    assert (tmp_path / "log").read_text() == "--model a name\nstopped\n"
