"""The parts of compose.yaml fit each other, checked without a container engine."""

import re
import socket
import subprocess
import uuid
from pathlib import Path
from typing import Any

import click
import pytest
import sqlalchemy

from serving.config import ServeConfig
from tests.deploy.files import DEPLOY, read_yaml
from tests.deploy.proxy import PLACEHOLDERS
from tests.end_to_end import postgres

COMPOSE = read_yaml("compose.yaml")
SERVICES: dict[str, Any] = COMPOSE["services"]
each_service = pytest.mark.parametrize("name", SERVICES)


def ports_of(name: str) -> set[str]:
    """Return the ports that a service listens on, as far as the file tells."""
    published = {port.rsplit(":", 1)[1] for port in SERVICES[name].get("ports", [])}
    return published | set(re.findall(r"--port=(\d+)", " ".join(SERVICES[name].get("command", []))))


@each_service
def test_an_image_is_pinned_to_a_version(name: str) -> None:
    _, tag = SERVICES[name]["image"].rsplit(":", 1)
    assert re.match(r"v?\d+\.\d+", tag)


@each_service
def test_ports_are_published_only_to_this_machine(name: str) -> None:
    for port in SERVICES[name].get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port)


@each_service
def test_a_service_has_limits_and_cannot_gain_privileges(name: str) -> None:
    assert SERVICES[name]["deploy"]["resources"]["limits"].keys() >= {"cpus", "memory"}
    assert "no-new-privileges:true" in SERVICES[name]["security_opt"]
    assert not SERVICES[name].get("privileged")


@each_service
def test_a_service_that_others_wait_for_has_a_health_check(name: str) -> None:
    for other, dependency in SERVICES[name].get("depends_on", {}).items():
        # The check of our own image is in the Dockerfile.
        has_check = "healthcheck" in SERVICES[other] or "build" in SERVICES[other]
        assert dependency["condition"] == "service_started" or has_check


@each_service
def test_networks_and_volumes_are_declared_and_mounted_files_exist(name: str) -> None:
    assert set(SERVICES[name]["networks"]) <= COMPOSE["networks"].keys()
    for mount in SERVICES[name].get("volumes", []):
        source = mount.split(":")[0]
        if source.startswith("."):
            assert (DEPLOY / source).exists()
            assert mount.endswith(":ro")
        else:
            assert source in COMPOSE["volumes"]


def test_the_example_file_has_every_secret_and_no_other() -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    required = set(re.findall(r"\$\{(\w+):\?", text))
    assert required == set(re.findall(r"^(\w+)=$", (DEPLOY / ".env.example").read_text(), re.MULTILINE))
    assert set(re.findall(r"\$\{(\w+)", text)) == required  # none has a default
    assert ".env" in (DEPLOY / ".gitignore").read_text().splitlines()


def test_services_address_each_other_by_name_and_port() -> None:
    variables = [value for service in SERVICES.values() for value in service.get("environment", {}).values()]
    source = read_yaml("grafana/provisioning/datasources/prometheus.yml")["datasources"][0]
    jobs = read_yaml("prometheus.yml")["scrape_configs"]
    targets = [f"//{target}" for job in jobs for target in job["static_configs"][0]["targets"]]
    addresses = re.findall(r"(?:^|[@/ ])([a-z]+):(\d+)", " ".join([*variables, source["url"], *targets]))
    assert {name for name, _ in addresses} == {"postgres", "mlflow", "service", "prometheus"}
    for name, port in addresses:
        assert port in (ports_of(name) or {"5432"})


def test_mlflow_accepts_its_options_and_its_host_name() -> None:
    from mlflow.cli import cli as mlflow_cli  # slow to import

    command = SERVICES["mlflow"]["command"]
    assert command[0] == "mlflow"
    assert isinstance(mlflow_cli, click.Group)
    context = mlflow_cli.commands[command[1]].make_context(command[1], command[2:])
    assert str(context.params["port"]) in ports_of("mlflow")
    address = SERVICES["service"]["environment"]["MLFLOW_TRACKING_URI"].removeprefix("http://")
    assert address in context.params["allowed_hosts"].split(",")


def test_only_nginx_is_published_of_the_web_service() -> None:
    assert "ports" not in SERVICES["service"]
    assert SERVICES["proxy"]["networks"] == ["web"]
    assert [name for name in SERVICES if "web" in SERVICES[name]["networks"]] == ["service", "proxy"]


def test_nginx_gets_its_configuration() -> None:
    proxy = SERVICES["proxy"]
    variables = proxy["environment"]
    # The image finds the resolvers itself if the second variable is set.
    assert variables.keys() & PLACEHOLDERS == PLACEHOLDERS - {"NGINX_LOCAL_RESOLVERS"}
    assert variables["NGINX_ENTRYPOINT_LOCAL_RESOLVERS"]
    assert variables["LISTEN"] in ports_of("proxy")
    assert int(variables["MAX_BODY_MB"]) == ServeConfig().max_body_mb
    assert f"{variables['NGINX_ENVSUBST_OUTPUT_DIR']}/nginx.conf" in proxy["command"]
    assert proxy["volumes"] == ["./nginx.conf:/etc/nginx/templates/nginx.conf.template:ro"]


@pytest.mark.slow
@pytest.mark.skipif(postgres.missing() is not None, reason=str(postgres.missing()))
def test_the_database_user_of_the_request_log_can_use_no_other_database(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = postgres.Postgres(port)
    try:
        admin = sqlalchemy.create_engine(server.url, isolation_level="AUTOCOMMIT")
        with admin.connect() as connection:
            connection.execute(sqlalchemy.text("CREATE ROLE mlflow SUPERUSER LOGIN"))
            connection.execute(sqlalchemy.text("CREATE DATABASE mlflow OWNER mlflow"))
        server_variables = {
            "PGHOST": "127.0.0.1",
            "PGPORT": str(server.port),
            "REQUESTS_DB_PASSWORD": uuid.uuid4().hex,
        }
        user_variables = {
            "POSTGRES_USER": "mlflow",
            "POSTGRES_DB": "mlflow",
            "PATH": f"{postgres_bin()}:/usr/bin:/bin",
        }
        subprocess.run(
            ["/bin/sh", DEPLOY / "postgres-init.sh"],
            env=server_variables | user_variables,
            check=True,
            timeout=60,
        )
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
