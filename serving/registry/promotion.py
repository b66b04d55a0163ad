"""The promotion rule: which version of the registered model is served, and how to go back.

The aliases `champion` and `previous` name two versions. A version becomes champion if its validation accuracy
is at least the champion's, measured on the same images: the same classes, data and split.

On one machine, a lock lets one promotion run at a time. MLflow has no conditional update of an alias, so
promotions from several machines are only detected: each checks the alias before and after it writes. Two that
write at the same instant may both believe that they succeeded.
"""

import hashlib
import logging
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from cifar_mlflow.console import spinner
from cifar_mlflow.environment import default_cache_dir
from cifar_mlflow.errors import CifarError, UsageError
from cifar_mlflow.names import RUN_ID, listed, model_option
from cifar_mlflow.tracking.locations import check_artifact_folder
from serving.registry.mlflow_model import SCORER_PATH, code_digest, download
from serving.registry.versions import RegisteredModel, Version

logger = logging.getLogger("cifar_mlflow.serving")

CHAMPION, PREVIOUS = "champion", "previous"
# Tag of a version: the champion that it replaced, or "none".
PROMOTED_OVER = "promoted_over"
LOCK_SECONDS = 60
MAX_VERSION_DIGITS = 9


class NotPromotedError(CifarError):
    """The champion stays; the message gives the reason."""


@dataclass(frozen=True)
class Promotion:
    """The result: `champion` and `previous` are the versions that have these aliases now."""

    name: str
    champion: str
    previous: str | None
    message: str


def promote(which: str | None, name: str, *, force: bool = False) -> Promotion:
    """Make a version the champion; the old champion becomes `previous`.

    Args:
        which: the number of a version, or the id of a run, which stands for its newest version. None selects
            the version with the best validation accuracy among those comparable with the champion, or, while
            there is no champion, with the newest version.
        name: the registered model.
        force: promote the version even if it is worse or not comparable.

    Raises:
        NotPromotedError: the version is already the champion, is worse, or cannot be compared with it.
        UsageError: there is no such version, or `register` did not make it.
        CifarError: MLflow does not answer, files of the version are damaged, or another machine promoted
            a version at the same time.
    """
    with spinner(f"Promoting a version of {name}"), _promotion_lock(name):
        model = RegisteredModel(name)
        champion, previous = model.version_with_alias(CHAMPION), model.version_with_alias(PREVIOUS)
        # A deleted champion took its alias with it; the version to beat is then the previous champion.
        to_beat = champion or previous
        opponent = model.find_version(to_beat) if to_beat else None
        version = _select(model, which, opponent)
        if version.number == champion:
            better = "" if which else ", and no comparable version is better"
            raise NotPromotedError(f"{version} is the champion of {name} already{better}")
        objection = _objection(version, opponent) if to_beat not in (None, version.number) else None
        if objection and not force:
            raise NotPromotedError(
                f"{version} does not become the champion of {name}: {objection}; to serve it all the same: "
                f"cifar-mlflow promote {version.number} --force{model_option(name)}"
            )
        _make_champion(model, version, champion, previous)
        message = f"{version} is now the champion of {name}"
        if champion:
            message += f"; before, it was {opponent or f'version {champion}'}"
        if objection:
            message += f". It was forced: {objection}"
        _record(model, version.number, promoted=message, promoted_at=_now())
        return Promotion(name, version.number, model.version_with_alias(PREVIOUS), message)


def rollback(name: str) -> Promotion:
    """Make the previous champion the champion again, and the champion `previous`; a second call undoes it.

    If the champion was deleted, the previous champion just takes its place.

    Raises:
        UsageError: there is no previous champion, or `register` did not make it.
        CifarError: MLflow does not answer, files of the version are damaged, or another process or machine
            changed the champion in the meantime.
    """
    model = RegisteredModel(name)
    champion = model.version_with_alias(CHAMPION)
    with _promotion_lock(name):
        # If the champion changed while waiting for the lock, do nothing: the caller meant the old one.
        model.check_alias(CHAMPION, champion)
        previous = alias_before = model.version_with_alias(PREVIOUS)
        if champion and champion == previous:  # a promotion was killed halfway
            previous = model.get_tag(champion, PROMOTED_OVER)
        if previous in (None, "none"):
            raise UsageError(f"{name} has no previous champion to go back to")
        version = model.get_version(previous)
        _make_champion(model, version, champion, alias_before)
        message = f"{version} is the champion of {name} again"
        if champion:
            message += f", in place of version {champion}; another rollback would undo this"
            _record(model, champion, rolled_back_at=_now(), rolled_back_to=version.number)
        _record(model, version.number, promoted=message, promoted_at=_now())
        return Promotion(name, version.number, champion, message)


def _make_champion(
    model: RegisteredModel, version: Version, champion: str | None, previous: str | None
) -> None:
    """Move the aliases from the old `champion` and `previous` (version numbers) to their new versions.

    The order makes a crash harmless: until the last step, the old champion is served, and `rollback` finds
    its predecessor by the tag.
    """
    _check_files(model, version)
    model.check_alias(CHAMPION, champion)
    model.set_tags(version.number, **{PROMOTED_OVER: champion or "none"})
    if champion:
        model.set_alias(PREVIOUS, champion, expected=previous)
    model.set_alias(CHAMPION, version.number, expected=champion)
    if not champion and previous == version.number:
        model.delete_alias(PREVIOUS)


def _record(model: RegisteredModel, number: str, **tags: str) -> None:
    """Tag a version with what happened; a failure is only logged, since the promotion itself succeeded."""
    try:
        model.set_tags(number, **tags)
    except CifarError as error:
        logger.warning("Version %s was not tagged with the promotion: %s", number, error)


def _select(model: RegisteredModel, which: str | None, opponent: Version | None) -> Version:
    if which is None:
        return _best_comparable(model, opponent)
    if RUN_ID.fullmatch(which):
        of_run = [version for version in model.list_versions() if version.run_id == which]
        if not of_run:
            raise UsageError(
                f"{model.name} has no version of run {which}; create one with: cifar-mlflow register {which}"
            )
        return of_run[-1]
    if not re.fullmatch(r"[0-9]+", which):
        raise UsageError(f"neither the number of a version nor the id of a run: {which}")
    if len(which.lstrip("0")) > MAX_VERSION_DIGITS:  # too large for the integer column of a database
        raise UsageError(f"{model.name} has no version {which}")
    return model.get_version(which)


def _best_comparable(model: RegisteredModel, opponent: Version | None) -> Version:
    versions = model.list_versions()
    if not versions:
        raise UsageError(f"{model.name} has no version that cifar-mlflow register made")
    reference = opponent or versions[-1]
    comparable = [version for version in versions if _difference(version, reference) is None]
    # Among equally good versions, the champion stays; without one, the newest wins.
    return max(
        comparable or [reference],
        key=lambda version: (version.val_accuracy or 0, version == opponent, int(version.number)),
    )


def _objection(version: Version, opponent: Version | None) -> str | None:
    """Return why the version must not replace the champion; None if it may."""
    if opponent is None:
        return "the champion was not made by cifar-mlflow register, so they cannot be compared"
    if difference := _difference(version, opponent):
        return f"it cannot be compared with the champion, {opponent}: {difference}"
    assert version.val_accuracy is not None
    assert opponent.val_accuracy is not None
    if version.val_accuracy < opponent.val_accuracy:
        return f"it is worse than the champion, {opponent}"
    return None


def _difference(one: Version, other: Version) -> str | None:
    """Return why the accuracies of two versions cannot be compared; None if they can."""
    if one.classes != other.classes:
        return f"they have different classes ({listed(one.classes, 5)}; {listed(other.classes, 5)})"
    if one.data_digest != other.data_digest:
        return (
            f"they were trained on different data ({one.data}, {one.data_digest[:12]}; "
            f"{other.data}, {other.data_digest[:12]})"
        )
    splits = [
        f"--val-size {version.val_size:g} --split-seed {version.split_seed}" for version in (one, other)
    ]
    if splits[0] != splits[1]:
        return f"they have different validation images ({'; '.join(splits)})"
    if one.val_accuracy is None or other.val_accuracy is None:
        return "no images were held out for validation"
    return None


def _check_files(model: RegisteredModel, version: Version) -> None:
    """Download the version and compare its files with the digests from its registration.

    Raises:
        CifarError: a file is missing, changed or unknown, or the whole folder is gone.
    """
    check_artifact_folder(model.location(version.number), f"version {version.number} of {model.name}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = download(f"models:/{model.name}/{version.number}", Path(scratch, "model"))
        code = code_digest(folder)
        scorer = folder / SCORER_PATH
        found = {
            path.relative_to(scorer).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in scorer.rglob("*")
            if path.is_file()
        }
    damaged = sorted(file for file in found | version.files if found.get(file) != version.files.get(file))
    if version.code_digest not in (None, code):
        damaged.append("the code of the model")
    if damaged:
        raise CifarError(
            f"version {version.number} of {model.name} cannot be served: {', '.join(damaged)} is missing or "
            f"differs from what was registered; register run {version.run_id} again"
        )


@contextmanager
def _promotion_lock(name: str) -> Iterator[None]:
    """Let one promotion or rollback of a registered model run at a time on this machine."""
    path = default_cache_dir() / "promotions" / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path).acquire(timeout=LOCK_SECONDS)
    except Timeout:
        raise CifarError(
            f"another process has been promoting a version of {name} for {LOCK_SECONDS} s: try again later"
        ) from None
    except OSError as error:
        raise CifarError(f"{path}: cannot be written ({error.strerror or error})") from error
    with lock:
        yield


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
