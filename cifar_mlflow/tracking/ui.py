"""`make ui`: start MLflow's UI, and open it at the experiments in the mode for trained models."""

import contextlib
import os
import subprocess
import sys
import time
import webbrowser

import click
import requests

from cifar_mlflow.tracking.store import TRAINING_MODE

POLL_SECONDS = 0.2


@click.command
@click.option("--port", default=5000, show_default=True, help="Port of the UI on this machine.")
def main(port: int) -> None:
    """Serve the runs of this folder until Ctrl-C."""
    server = subprocess.Popen([sys.executable, "-m", "mlflow", "ui", "--port", str(port)])
    try:
        while server.poll() is None:
            with contextlib.suppress(requests.RequestException):
                if requests.get(f"http://127.0.0.1:{port}/health", timeout=5).ok:
                    break
            time.sleep(POLL_SECONDS)
        if server.poll() is None:
            address = f"http://127.0.0.1:{port}/#/experiments?{TRAINING_MODE}"
            click.echo(f"\nRuns and models: {address}\n", err=True)
            if sys.platform != "linux" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
                webbrowser.open(address)
        sys.exit(server.wait())
    except KeyboardInterrupt:
        server.wait()


if __name__ == "__main__":
    main()
