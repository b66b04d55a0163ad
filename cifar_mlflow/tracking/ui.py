"""`make ui`: start MLflow's UI, and open it at the experiments in the mode for trained models."""

import contextlib
import os
import subprocess
import sys
import time
import webbrowser

import click
import mlflow
import requests

from cifar_mlflow.tracking.store import TRAINING_MODE, page_address

POLL_SECONDS = 0.2


@click.command
@click.option("--port", default=5000, show_default=True, help="Port of the UI on this machine.")
def main(port: int) -> None:
    """Serve the runs of MLFLOW_TRACKING_URI, by default those of this folder, until Ctrl-C.

    If a tracking server has the runs, only open its page.
    """
    if address := page_address("experiments"):
        _show(address)
        return
    # MLflow's UI ignores MLFLOW_TRACKING_URI. Its own variable hides a password, which an option would not.
    environment = {"MLFLOW_BACKEND_STORE_URI": mlflow.get_tracking_uri(), **os.environ}
    server = subprocess.Popen([sys.executable, "-m", "mlflow", "ui", "--port", str(port)], env=environment)
    try:
        while server.poll() is None:
            with contextlib.suppress(requests.RequestException):
                if requests.get(f"http://127.0.0.1:{port}/health", timeout=5).ok:
                    break
            time.sleep(POLL_SECONDS)
        if server.poll() is None:
            _show(f"http://127.0.0.1:{port}/#/experiments?{TRAINING_MODE}")
        sys.exit(server.wait())
    except KeyboardInterrupt:
        server.wait()


def _show(address: str) -> None:
    click.echo(f"\nRuns and models: {address}\n", err=True)
    if sys.platform != "linux" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        webbrowser.open(address)


if __name__ == "__main__":
    main()
