"""`make web`: write the web folder of a registered version as it is served, and serve it on this computer."""

import subprocess
import sys
from pathlib import Path

import click

from cifar_mlflow.errors import CifarError
from serving.registry.loader import load_scorer
from serving.web.server import create_server


@click.command()
@click.option("--model-uri", default="models:/cifar10@champion", show_default=True)
@click.option("--output", type=click.Path(path_type=Path), default=Path("build"), show_default=True)
@click.option("--port", type=click.IntRange(0, 65_535), default=8080, show_default=True)
def main(model_uri: str, output: Path, port: int) -> None:
    """Write the web folder below OUTPUT and serve it on 127.0.0.1 until Ctrl-C."""
    try:
        scorer = load_scorer(model_uri)
    except CifarError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(error.exit_code)
    scorer.close()
    precision = scorer.card["precision"]
    stem = scorer.card["model"] if precision == "fp32" else f"{scorer.card['model']}-{precision}"
    command = [
        "export",
        model_uri,
        "--format=web",
        f"--precision={precision}",
        f"--output={output}",
        "--overwrite",
    ]
    if code := subprocess.run([sys.executable, "-m", "cifar_mlflow", *command]).returncode:
        sys.exit(code)
    try:
        server = create_server(output / f"{stem}-web", port)
    except OSError as error:
        click.echo(
            f"Error: port {port} cannot be used ({error.strerror}): choose another (PORT or --port)", err=True
        )
        sys.exit(1)
    click.echo(f"http://127.0.0.1:{server.server_port}  until Ctrl-C")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()


if __name__ == "__main__":
    main()
