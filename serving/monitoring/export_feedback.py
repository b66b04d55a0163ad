"""Copy stored images whose true class is known from feedback to a folder for training, with provenance."""

import csv
import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from cifar_mlflow.errors import CifarError, UsageError
from cifar_mlflow.files import atomic_write
from cifar_mlflow.names import counted
from serving.monitoring.images import EXTENSIONS

PROVENANCE = "provenance.csv"
COLUMNS = ("label", "answer", "confidence", "model_version", "request_id", "item", "time", "feedback_time")


def export_feedback(feedback: pd.DataFrame, images_dir: Path, folder: Path) -> str:
    """Copy each stored image with a known class to `folder/CLASS/`, and return a sentence about it.

    `folder/provenance.csv` has the answer, the model version and the time of the feedback of each image. An
    image of an earlier export moves if newer feedback names another class, and is removed if it only says
    that the class is wrong; the others stay.

    Args:
        feedback: as `Database.read` returns it.
        images_dir: where the service keeps images, named by their sha256.

    Raises:
        UsageError: there is no such folder, or it lies in `folder`, where it would be taken for a class.
        CifarError: an image cannot be copied, or a class has a name that no folder can have.
    """
    if not images_dir.is_dir():
        raise UsageError(f"--images-dir: {images_dir} is not a folder; name that of `serve --images-dir`")
    if folder.resolve() in images_dir.resolve().parents:
        raise UsageError(
            f"--export-feedback: {folder} contains {images_dir}, the folder of --images-dir, which would be "
            "taken for a class: name another folder"
        )
    is_right = feedback["feedback_correct"].fillna(False).astype(bool)
    told = feedback["feedback_label"].astype(object)
    judged = feedback.assign(
        answer=feedback["label"].astype(object),
        label=told.where(told.notna(), feedback["label"].astype(object).where(is_right)),
    )
    judged = judged[judged["image_sha256"].notna()].sort_values("feedback_time")
    latest = judged[judged["label"].notna()].drop_duplicates("image_sha256", keep="last")
    rejected = _rejected(judged[judged["label"].isna()])
    rows = _read_provenance(folder / PROVENANCE)
    for file, row in [*rows.items()]:
        if _is_revoked(Path(file).stem, row, rejected):
            (folder / file).unlink(missing_ok=True)
            del rows[file]
    known = [
        record
        for record in latest.to_dict("records")
        if not _is_revoked(record["image_sha256"], record, rejected)
    ]
    missing = 0
    for record in known:
        source = _stored(images_dir, record["image_sha256"])
        if source is None:
            missing += 1
            continue
        name = _copy(source, folder, record["label"])
        rows = {file: row for file, row in rows.items() if Path(file).stem != source.stem}
        rows[name] = {column: record[column] for column in COLUMNS}
    count = len(known) - missing
    if rows or (folder / PROVENANCE).exists():
        _write_provenance(folder / PROVENANCE, rows)
    gone = f"; {missing:,} more no longer in {images_dir}" if missing else ""
    unknown = len(feedback) - len(known)
    rest = (
        f"; {unknown:,} without a known class, without an image, or with a later verdict" if unknown else ""
    )
    return f"Feedback: {counted(count, 'image')} copied to {folder}{gone}{rest}"


def _rejected(wrong: pd.DataFrame) -> dict[tuple[str, str], float]:
    """Return the times of verdicts that name no class, by image and wrong class, and by request and item."""
    times = {}
    for record in wrong.to_dict("records"):
        times[record["image_sha256"], record["answer"]] = record["feedback_time"]
        times[record["request_id"], str(record["item"])] = record["feedback_time"]
    return times


def _is_revoked(sha256: str, row: Mapping[Any, Any], rejected: Mapping[tuple[str, str], float]) -> bool:
    """Return whether a later verdict says that the class of an image is wrong, or replaces its verdict."""
    keys = ((sha256, row["label"]), (row["request_id"], str(row["item"])))
    return any(rejected.get(key, 0) > float(row["feedback_time"]) for key in keys)


def _stored(images_dir: Path, sha256: str) -> Path | None:
    """Return the image with this content; None if it was not kept, deleted or changed."""
    for extension in EXTENSIONS.values():
        path = images_dir / f"{sha256}.{extension}"
        if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256:
            return path
    return None


def _copy(source: Path, folder: Path, label: str) -> str:
    """Copy the image to the folder of its class only, and return its name in `folder`."""
    if "/" in label or "\\" in label or label.startswith("."):
        raise CifarError(f"--export-feedback: class {label!r} cannot be the name of a folder")
    target = folder / label / source.name
    for former in folder.glob(f"*/{source.name}"):
        if former != target:
            former.unlink()
    with atomic_write(target) as unfinished:
        shutil.copyfile(source, unfinished)
    return f"{label}/{source.name}"


def _read_provenance(path: Path) -> dict[str, dict[str, Any]]:
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        return {row.pop("file"): row for row in csv.DictReader(file)}


def _write_provenance(path: Path, rows: dict[str, dict[str, Any]]) -> None:
    with atomic_write(path) as unfinished, unfinished.open("w", newline="") as file:
        table = csv.DictWriter(file, ["file", *COLUMNS])
        table.writeheader()
        table.writerows({"file": name, **row} for name, row in sorted(rows.items()))
