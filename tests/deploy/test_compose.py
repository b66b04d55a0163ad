"""compose.yaml hangs together: there is no engine here to find out by starting it."""

import re
import socket
import subprocess
import uuid
from pathlib import Path
from typing import Any

import click
import pytest
import sqlalchemy
from mlflow.cli import cli as mlflow_cli

from tests.deploy.files import DEPLOY, read_yaml
from tests.end_to_end import postgres

COMPOSE = read_yaml("compose.yaml")
SERVICES: dict[str, Any] = COMPOSE["services"]
each_service = pytest.mark.parametrize("name", SERVICES)


def ports_of(name: str) -> set[str]:
    """The ports that a service listens on, as far as it publishes them."""
    return {port.rsplit(":", 1)[1] for port in SERVICES[name].get("ports", [])}


@each_service
def test_an_image_is_pinned_to_a_version(name: str) -> None:
    _, tag = SERVICES[name]["image"].rsplit(":", 1)
    assert re.match(r"v?\d+\.\d+", tag)


@each_service
def test_it_is_reached_from_this_machine_only(name: str) -> None:
    for port in SERVICES[name].get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port)


@each_service
def test_it_has_limits_and_no_way_to_more_rights(name: str) -> None:
    assert SERVICES[name]["deploy"]["resources"]["limits"].keys() >= {"cpus", "memory"}
    assert "no-new-privileges:true" in SERVICES[name]["security_opt"]
    assert not SERVICES[name].get("privileged")


@each_service
def test_what_it_waits_for_is_there_and_says_when_it_is_ready(name: str) -> None:
    for other, how in SERVICES[name].get("depends_on", {}).items():
        checked = (
            "healthcheck" in SERVICES[other] or "build" in SERVICES[other]
        )  # ours has it in the Dockerfile
        assert how["condition"] == "service_started" or checked


@each_service
def test_its_networks_and_volumes_are_declared_and_its_files_exist(name: str) -> None:
    assert set(SERVICES[name]["networks"]) <= COMPOSE["networks"].keys()
    for mount in SERVICES[name].get("volumes", []):
        source = mount.split(":")[0]
        if source.startswith("."):
            assert (DEPLOY / source).exists()
            assert mount.endswith(":ro")
        else:
            assert source in COMPOSE["volumes"]


def test_the_only_secrets_are_those_of_the_example() -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    asked = set(re.findall(r"\$\{(\w+):\?", text))
    assert asked == set(re.findall(r"^(\w+)=$", (DEPLOY / ".env.example").read_text(), re.MULTILINE))
    assert set(re.findall(r"\$\{(\w+)", text)) == asked  # none has a default
    assert ".env" in (DEPLOY / ".gitignore").read_text().splitlines()


def test_what_the_parts_call_each_other_is_what_they_are_called() -> None:
    settings = [value for service in SERVICES.values() for value in service.get("environment", {}).values()]
    source = read_yaml("grafana/provisioning/datasources/prometheus.yml")["datasources"][0]
    jobs = read_yaml("prometheus.yml")["scrape_configs"]
    targets = [f"//{target}" for job in jobs for target in job["static_configs"][0]["targets"]]
    addresses = re.findall(r"[@/]([a-z]+):(\d+)", " ".join([*settings, source["url"], *targets]))
    assert {name for name, _ in addresses} == {"postgres", "mlflow", "service", "prometheus"}
    for name, port in addresses:
        assert port in (ports_of(name) or {"5432"})


def test_mlflow_knows_the_options_and_accepts_the_name_by_which_it_is_called() -> None:
    command = SERVICES["mlflow"]["command"]
    assert command[0] == "mlflow"
    assert isinstance(mlflow_cli, click.Group)
    context = mlflow_cli.commands[command[1]].make_context(command[1], command[2:])
    assert str(context.params["port"]) in ports_of("mlflow")
    called = SERVICES["service"]["environment"]["MLFLOW_TRACKING_URI"].removeprefix("http://")
    assert called in context.params["allowed_hosts"].split(",")


@pytest.mark.slow
@pytest.mark.skipif(postgres.missing() is not None, reason=str(postgres.missing()))
def test_the_user_of_the_request_log_reaches_its_own_database_only(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = postgres.Postgres(port)
    try:
        admin = sqlalchemy.create_engine(server.url, isolation_level="AUTOCOMMIT")
        with admin.connect() as connection:
            connection.execute(sqlalchemy.text("CREATE ROLE mlflow SUPERUSER LOGIN"))
            connection.execute(sqlalchemy.text("CREATE DATABASE mlflow OWNER mlflow"))
        where = {"PGHOST": "127.0.0.1", "PGPORT": str(server.port), "REQUESTS_DB_PASSWORD": uuid.uuid4().hex}
        who = {"POSTGRES_USER": "mlflow", "POSTGRES_DB": "mlflow", "PATH": f"{postgres_bin()}:/usr/bin:/bin"}
        subprocess.run(["/bin/sh", DEPLOY / "postgres-init.sh"], env=where | who, check=True, timeout=60)
        as_requests = f"postgresql+psycopg://requests@127.0.0.1:{server.port}"
        with sqlalchemy.create_engine(
            f"{as_requests}/requests", poolclass=sqlalchemy.NullPool
        ).begin() as connection:
            connection.execute(sqlalchemy.text("CREATE TABLE answers (id text)"))
        with pytest.raises(sqlalchemy.exc.OperationalError, match="permission denied"):
            sqlalchemy.create_engine(f"{as_requests}/mlflow", poolclass=sqlalchemy.NullPool).connect()
        with admin.connect() as connection:
            query = "SELECT rolpassword IS NOT NULL FROM pg_authid WHERE rolname = 'requests'"
            assert connection.execute(sqlalchemy.text(query)).scalar()
        admin.dispose()
    finally:
        server.remove()


def postgres_bin() -> Path:
    return sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1]
