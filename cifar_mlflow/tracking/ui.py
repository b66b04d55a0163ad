"""`make ui`: start MLflow's UI, and open it at the newest trainings in the mode for trained models."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import webbrowser

import click
import mlflow
import requests

from cifar_mlflow.tracking.store import TRAINING_MODE, store_uri, trainings_page, ui_command

HOST = "127.0.0.1"
POLL_SECONDS = 0.2


@click.command
@click.option(
    "--port",
    type=click.IntRange(1, 65_535),
    default=5000,
    show_default=True,
    help="Port of the UI on this machine.",
)
def main(port: int) -> None:
    """Serve the runs of MLFLOW_TRACKING_URI, by default those of this folder, until Ctrl-C.

    If a tracking server has the runs, only open its page.
    """
    if (server_of_runs := store_uri()).startswith("http"):
        _show(server_of_runs.rstrip("/"))
        return
    _check_free(port)
    uri = mlflow.get_tracking_uri()
    # MLflow's UI ignores MLFLOW_TRACKING_URI. Its own variables hide a password, which options would not.
    # The warnings are about MLflow's code.
    environment = {
        "MLFLOW_BACKEND_STORE_URI": uri,
        "MLFLOW_REGISTRY_STORE_URI": uri,
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # jobs of the GenAI mode, in six processes
        "PYTHONWARNINGS": "ignore",
        **os.environ,
    }
    command = [sys.executable, "-m", "mlflow", "ui", "--host", HOST, "--port", str(port)]
    # One process is enough for one person; MLflow's default is four.
    options = ["--workers", "1", "--uvicorn-opts", "--log-level warning"]
    click.echo("Starting MLflow's UI, which takes some seconds. Ctrl-C stops it.", err=True)
    # In a session of its own, since MLflow prints tracebacks on Ctrl-C; so it must be stopped in any case.
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.default_int_handler)
    server = subprocess.Popen([*command, *options], env=environment, start_new_session=True)
    try:
        while server.poll() is None:
            with contextlib.suppress(requests.RequestException):
                if requests.get(f"http://{HOST}:{port}/health", timeout=5).ok:
                    break
            time.sleep(POLL_SECONDS)
        if server.poll() is None:
            _show(f"http://{HOST}:{port}")
        sys.exit(server.wait())
    except KeyboardInterrupt:
        pass
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait()


def _check_free(port: int) -> None:
    """Fail if a server has the port: its page would be shown for ours."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as uvicorn does
        try:
            probe.bind((HOST, port))
        except OSError as error:
            command = ui_command()
            option = "PORT=5001" if command == "make ui" else "--port 5001"
            raise click.ClickException(
                f"cannot listen on {HOST}:{port}: {error.strerror}; choose another port: {command} {option}"
            ) from error


def _show(server: str) -> None:
    address = f"{server}/#/{trainings_page()}?{TRAINING_MODE}"
    click.echo(f"\nRuns and models: {address}\n", err=True)
    if sys.platform != "linux" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        webbrowser.open(address)


if __name__ == "__main__":
    main()
