"""Settings of `classify`, `serve` and `monitor`."""

import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import SecretStr, field_validator, model_validator

from cifar_mlflow.config import TrackingConfig
from cifar_mlflow.settings import Settings, setting


class ClassifyConfig(Settings):
    """Classification: label image files and folders with a registered model."""

    model_uri: str = setting(
        "models:/cifar10@champion",
        "Model: models:/<name>@<alias>, models:/<name>/<version>, a run id, or a folder.",
    )
    output: str | None = setting(
        None,
        "Result file (.csv, .jsonl or .parquet), or a folder or URL ending in / for a Parquet file per 1,000 "
        "images. Images that already have a result there are skipped.",
        min_length=1,
    )
    engine: Literal["local", "ray", "spark"] = setting(
        "local", "Classify in this process, or on a Ray or Spark cluster (then --output is a folder)."
    )
    cluster: str | None = setting(
        None,
        "Address of the Ray cluster, or Spark master. Default: RAY_ADDRESS or that of spark-submit, else "
        "this machine.",
        min_length=1,
    )
    sort_into: Path | None = setting(None, "Copy the images to this folder, into one subfolder per class.")
    explain: Path | None = setting(
        None,
        "Write a picture of each image to this folder: red parts speak for the answer, blue ones against it.",
    )
    top_k: int = setting(3, "Number of likeliest classes per image in the result file.", ge=1)

    @property
    def into_folder(self) -> bool:
        """Return whether the output is a folder."""
        return self.output is not None and (self.engine != "local" or self.output.endswith("/"))

    @model_validator(mode="after")
    def _has_an_output_for_the_engine(self) -> Self:
        if self.engine != "local" and self.output is None:
            raise ValueError(f"--engine {self.engine} needs --output FOLDER, which all workers can write")
        if self.cluster and self.engine == "local":
            raise ValueError("--cluster needs --engine ray or --engine spark")
        for option, folder in (("--sort-into", self.sort_into), ("--explain", self.explain)):
            if folder and self.into_folder:
                raise ValueError(f"{option} needs a result file as --output, and --engine local")
        if self.into_folder and str(self.output).endswith((".csv", ".jsonl", ".parquet")):
            raise ValueError(f"--engine {self.engine} writes a folder: --output must not be a file name")
        return self


class ServeConfig(Settings):
    """Service: serve the model over HTTP, with limits and access control."""

    model_uri: str = setting(
        "models:/cifar10@champion",
        "Model: models:/<name>@<alias> (new champions replace it), models:/<name>/<version>, a run id, or a "
        "folder.",
    )
    host: str = setting(
        "127.0.0.1", "Address to listen on; 0.0.0.0 means every address of this machine.", min_length=1
    )
    port: int = setting(8000, "Port to listen on; 0 selects a free one.", ge=0, le=65_535)
    workers: int = setting(1, "Worker processes; each loads the model.", ge=1, le=64)
    threads: int = setting(
        0, "Inference threads per worker; 0 means the number of cores divided by the workers.", ge=0, le=1024
    )
    api_key: SecretStr | None = setting(
        None, "Key that clients must send. Prefer $CIFAR_MLFLOW_API_KEY: other users can see command lines."
    )
    allowed_hosts: tuple[str, ...] = setting(
        (),
        "Accepted Host headers (comma-separated; *.example.org matches sub-domains). Default: the names of "
        "this machine if it listens on a loopback address, otherwise any.",
    )
    rate_limit: int = setting(
        0, "Requests per minute per client address, in each worker; 0 means no limit.", ge=0
    )
    max_body_mb: int = setting(16, "Maximum size of a request body, in MB.", ge=1, le=1024)
    max_pictures: int = setting(1000, "Maximum number of images per request.", ge=1, le=10_000)
    queue_limit: int = setting(
        256,
        "Maximum number of images, and of requests, that wait in each worker; further ones get a 503.",
        ge=1,
        le=100_000,
    )
    request_timeout: float = setting(
        30.0,
        "Seconds to process a request (then 504), and to receive its body (then 408; more for large ones).",
        gt=0,
        le=3600,
    )
    follow_seconds: float = setting(
        5.0, "Seconds between two checks of the registry for a new champion; 0 means never.", ge=0, le=86_400
    )
    mlflow_url: str | None = setting(
        None,
        "Address of MLflow's web UI, for links on the page. Default: the tracking server, if there is one.",
        pattern=r"https?://\S+",
    )
    request_log: str = setting(
        "sqlite:///requests.db",
        "SQLAlchemy URL of the SQLite or PostgreSQL database that records requests, or none. Prefer "
        "$CIFAR_MLFLOW_REQUEST_LOG for a URL with a password.",
    )
    images_dir: Path | None = setting(None, "Keep the images of requests in this folder.")
    retention_days: float = setting(
        30.0, "Delete rows of the request log, and kept images, after this many days.", gt=0
    )
    retention_rows: int | None = setting(
        None, "Keep at most this many rows in the request log. Default: 2,000 per MB of --retention-mb.", ge=1
    )
    retention_mb: float = setting(
        1024.0, "Keep at most this many MB of images, and 2,000 rows of the request log per MB.", gt=0
    )

    @model_validator(mode="before")
    @classmethod
    def _secrets_from_environment(cls, values: dict[str, Any]) -> dict[str, Any]:
        variables = {"api_key": "CIFAR_MLFLOW_API_KEY", "request_log": "CIFAR_MLFLOW_REQUEST_LOG"}
        found = {name: os.environ[key] for name, key in variables.items() if os.environ.get(key)}
        return {**found, **values}

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _split_at_commas(cls, value: Any) -> Any:
        if isinstance(value, str):
            return [host.strip().lower() for host in value.split(",") if host.strip()]
        return value


_SECONDS = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}


class MonitorConfig(TrackingConfig):
    """Monitoring: report on the requests served."""

    request_log: str = setting(
        lambda: os.environ.get("CIFAR_MLFLOW_REQUEST_LOG") or "sqlite:///requests.db",
        "Request log of `serve`. Prefer $CIFAR_MLFLOW_REQUEST_LOG for a URL with a password.",
    )
    since: str = setting(
        "7d",
        "Start of the report: an age (90m, 12h, 7d, 2w), or a date or time (2026-11-24, 2026-11-24T18:00Z).",
    )
    model_uri: str | None = setting(
        None, "Compare all images with the reference data of this model. Default: each with its own model's."
    )
    live_frames: bool = setting(
        False, "Include the frames of live views; the request log keeps one per second."
    )
    export_feedback: Path | None = setting(
        None,
        "Copy the images whose true class is known from feedback to this folder, one subfolder per class, "
        "for training with --dataset cifar10+DIR. It is feedback on the registered model of --model-uri; "
        "without it, on the model that answered last.",
    )
    images_dir: Path | None = setting(
        None, "The folder of `serve --images-dir`, from which --export-feedback copies."
    )

    @model_validator(mode="after")
    def _images_to_export(self) -> Self:
        if self.export_feedback and not self.images_dir:
            raise ValueError("--export-feedback needs --images-dir, the folder of `serve --images-dir`")
        return self

    @field_validator("since")
    @classmethod
    def _is_valid(cls, since: str) -> str:
        begin_of_window(since, 0)
        return since


def begin_of_window(since: str, now: float) -> float:
    """Return `MonitorConfig.since` in Unix seconds; a time without a zone is local time.

    Raises:
        ValueError: it is neither an age nor a date or time.
    """
    try:
        if span := re.fullmatch(r"([0-9]{1,6})([mhdw])", since.strip()):
            begin = now - int(span[1]) * _SECONDS[span[2]]
        else:
            begin = datetime.fromisoformat(since.strip()).timestamp()
        datetime.fromtimestamp(begin, UTC)
        return begin
    except (ValueError, OverflowError, OSError):  # invalid, or outside the range of dates
        raise ValueError(
            "give a span such as 90m, 12h, 7d or 2w, or a time such as 2026-11-24 or 2026-11-24T18:00Z"
        ) from None
