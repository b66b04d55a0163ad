"""The settings of classifying, serving and monitoring."""

import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import SecretStr, field_validator, model_validator

from cifar_mlflow.config import Settings, TrackingConfig, setting


class ClassifyConfig(Settings):
    """Classification: files and folders of images through a served model."""

    model_uri: str = setting(
        "models:/cifar10@champion",
        "models:/<name>@<alias>, models:/<name>/<version>, a run id, or a folder with a model.",
    )
    output: Path | None = setting(
        None, "File for the answers: .csv, .jsonl or .parquet. What it holds already is not done again."
    )
    sort_into: Path | None = setting(None, "Folder for copies of the images, in one folder a class.")
    top_k: int = setting(3, "How many of the likeliest classes the file has for each image.", ge=1)


class ServeConfig(Settings):
    """AppState: the model over HTTP, and what protects it."""

    model_uri: str = setting(
        "models:/cifar10@champion",
        "models:/<name>@<alias>, which is followed; or models:/<name>/<version>, a run id, or a folder.",
    )
    host: str = setting("127.0.0.1", "Address to listen on; 0.0.0.0 is all of this machine's.", min_length=1)
    port: int = setting(8000, "Port to listen on; 0 takes a free one.", ge=0, le=65_535)
    workers: int = setting(1, "Processes, each with the model.", ge=1, le=64)
    threads: int = setting(
        0, "Threads of the network in each process; 0 divides the cores by the workers.", ge=0, le=1024
    )
    api_key: SecretStr | None = setting(
        None, "Key that clients must send; better given as $CIFAR_MLFLOW_API_KEY, which others cannot see."
    )
    allowed_hosts: tuple[str, ...] = setting(
        (),
        "Names by which clients may call the server (comma-separated, *.example.org too). Default: this "
        "machine's own on a loopback address, else any.",
    )
    rate_limit: int = setting(
        0, "Requests a minute of one client (by address, in each process); 0 is off.", ge=0
    )
    max_body_mb: int = setting(16, "Largest request, in MB.", ge=1, le=1024)
    max_pictures: int = setting(1000, "Most pictures in a request.", ge=1, le=10_000)
    queue_limit: int = setting(
        256,
        "Pictures, and requests, that may wait in each process; above, the answer is 503 at once.",
        ge=1,
        le=100_000,
    )
    request_timeout: float = setting(
        30.0,
        "Seconds for the work on a request, and for its body to come (a large one gets more).",
        gt=0,
        le=3600,
    )
    follow_seconds: float = setting(
        5.0, "How often the registry is asked for a new champion; 0 never.", ge=0, le=86_400
    )
    request_log: str = setting(
        "sqlite:///requests.db",
        "Where each answer is noted: SQLAlchemy's address of a SQLite or PostgreSQL database, or none. One "
        "with a password is better given as $CIFAR_MLFLOW_REQUEST_LOG.",
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
    """Monitoring: a report on what was served."""

    request_log: str = setting(
        lambda: os.environ.get("CIFAR_MLFLOW_REQUEST_LOG") or "sqlite:///requests.db",
        "The request log of `serve`. One with a password is better given as $CIFAR_MLFLOW_REQUEST_LOG.",
    )
    since: str = setting(
        "7d", "How far back: 90m, 12h, 7d, 2w; or a date or time such as 2026-11-24 or 2026-11-24T18:00Z."
    )
    model_uri: str | None = setting(
        None, "Compare all pictures with the reference of this model. Default: each with that of its own."
    )

    @field_validator("since")
    @classmethod
    def _understood(cls, since: str) -> str:
        begin_of_window(since, 0)
        return since


def begin_of_window(since: str, now: float) -> float:
    """Unix seconds of what `MonitorConfig.since` says; a time without a zone is this machine's.

    Raises:
        ValueError: it says nothing that is understood.
    """
    try:
        if span := re.fullmatch(r"([0-9]{1,6})([mhdw])", since.strip()):
            begin = now - int(span[1]) * _SECONDS[span[2]]
        else:
            begin = datetime.fromisoformat(since.strip()).timestamp()
        datetime.fromtimestamp(begin, UTC)
        return begin
    except (ValueError, OverflowError, OSError):  # no time, or one that has no date
        raise ValueError(
            "give a span such as 90m, 12h, 7d or 2w, or a time such as 2026-11-24 or 2026-11-24T18:00Z"
        ) from None
