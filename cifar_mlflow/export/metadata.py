"""The description of a file in formats that are zip archives, or may have one at their end."""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

ENTRY = "cifar_mlflow.json"


def append_metadata(path: Path, metadata: Mapping[str, str]) -> None:
    """Add the entry `cifar_mlflow.json`, in an archive at the end of the file if it is not one itself."""
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(ENTRY, json.dumps(metadata, indent=2, ensure_ascii=False))


def read_metadata(path: Path) -> dict[str, str]:
    """Return what `append_metadata` added."""
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.split("/")[-1] == ENTRY)
        metadata: dict[str, str] = json.loads(archive.read(name))
    return metadata
