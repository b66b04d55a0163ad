"""Champion and previous: which version of the registered model is served, how it changes, and the way back.

A version is compared with the champion by its accuracy on validation, and only where both were measured on
the same images: the same classes, the same data, the same split. Promotions on one machine wait for each
other. Those of several machines cannot, as MLflow sets an alias whatever it was before: each looks before and
after whether another was quicker, and says so, but two within the same moment may both believe to be alone.
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

from cifar_mlflow.config import default_cache_dir
from cifar_mlflow.errors import CifarError, UsageError
from serving.registry.mlflow_model import SCORER_PATH, code_digest, download
from serving.registry.versions import RegisteredModel, Version

logger = logging.getLogger("cifar_mlflow.serving")

CHAMPION, PREVIOUS = "champion", "previous"
LOCK_SECONDS = 60
MOST_DIGITS = 9


class NotPromotedError(CifarError):
    """The champion stays, for the reason given."""


@dataclass(frozen=True)
class Promotion:
    """What was done: `champion` and `previous` are the versions that have these aliases now."""

    name: str
    champion: str
    previous: str | None
    message: str


def promote(which: str | None, name: str, *, force: bool = False) -> Promotion:
    """Make a version the champion; the champion until now becomes `previous`.

    Args:
        which: the number of a version, or the id of a run for the newest version of it. None takes the best
            by validation accuracy of all that can be compared with the champion, and as long as there is no
            champion, with the newest.
        name: the registered model.
        force: promote it whatever the comparison says.

    Raises:
        NotPromotedError: the version is the champion already, is worse, or cannot be compared with it.
        UsageError: there is no such version, or it is none that `register` made.
        CifarError: MLflow does not answer, files of the version are damaged, or another machine came between.
    """
    with _alone(name):
        model = RegisteredModel(name)
        number, previous = model.holder(CHAMPION), model.holder(PREVIOUS)
        # A champion that was deleted took its alias along: the one before is what to be better than.
        standard = number or previous
        champion = model.look_up(standard) if standard else None
        version = _choose(model, which, champion)
        if number == version.number:
            better = "" if which else ", and none that can be compared with it is better"
            raise NotPromotedError(f"{version} is the champion of {name} already{better}")
        objection = _objection(version, champion) if standard not in (None, version.number) else None
        if objection and not force:
            raise NotPromotedError(f"{version} does not become the champion of {name}: {objection}")
        _check_files(name, version)
        model.expect(CHAMPION, number)
        model.tag(version.number, promoted_over=number or "none")  # first: by it a rollback finds its way
        if number:  # a promotion that is killed between the two has changed nothing that is served
            model.give(PREVIOUS, number, over=previous)
        model.give(CHAMPION, version.number, over=number)
        if not number and previous == version.number:
            model.take(PREVIOUS)
        message = f"{version} is now the champion of {name}"
        if number:
            message += f"; before, it was {champion or f'version {number}'}"
        if objection:
            message += f". It was forced: {objection}"
        _note(model, version.number, promoted=message, promoted_at=_now())
        return Promotion(name, version.number, model.holder(PREVIOUS), message)


def rollback(name: str) -> Promotion:
    """Make the previous champion the champion again, and the other one `previous`: done twice, it is undone.

    Where the champion was deleted, it only gives its place back. One that is waiting while another process
    changes the champion does nothing: it was meant for the champion before.

    Raises:
        UsageError: there is no previous champion, or it is none that `register` made.
        CifarError: MLflow does not answer, files of the version are damaged, or another machine came between.
    """
    model = RegisteredModel(name)
    champion = model.holder(CHAMPION)
    with _alone(name):
        model.expect(CHAMPION, champion)
        previous = model.holder(PREVIOUS)
        if champion and champion == previous:  # a promotion was killed half way: the champion knows over whom
            previous = model.noted(champion, "promoted_over")
        if previous in (None, "none"):
            raise UsageError(f"{name} has no previous champion to go back to")
        version = model.ours(previous)
        _check_files(name, version)
        model.expect(CHAMPION, champion)
        model.tag(previous, promoted_over=champion or "none")
        if champion:  # first, as in a promotion
            model.give(PREVIOUS, champion, over=previous)
        model.give(CHAMPION, previous, over=champion)
        message = f"{version} is the champion of {name} again"
        if champion:
            message += f", in place of version {champion}"
            _note(model, champion, rolled_back_at=_now(), rolled_back_to=previous)
        else:
            model.take(PREVIOUS)
        _note(model, previous, promoted=message, promoted_at=_now())
        return Promotion(name, previous, champion, message)


def _note(model: RegisteredModel, number: str, **tags: str) -> None:
    """Tag a version with what was done; if that fails, it is done nonetheless."""
    try:
        model.tag(number, **tags)
    except CifarError as error:
        logger.warning("version %s was not tagged with it: %s", number, error)


def _choose(model: RegisteredModel, which: str | None, champion: Version | None) -> Version:
    if which is None:
        ours = model.all_ours()
        if not ours:
            raise UsageError(f"{model.name} has no version that cifar-mlflow register made")
        standard = champion or ours[-1]
        comparable = [version for version in ours if _difference(version, standard) is None]
        # Of equally good ones the champion stays, or else the newest is taken.
        return max(
            comparable or [standard],
            key=lambda version: (version.val_accuracy or 0, version == champion, int(version.number)),
        )
    if re.fullmatch(r"[0-9a-f]{32}", which):
        of_run = [version for version in model.all_ours() if version.run_id == which]
        if not of_run:
            raise UsageError(
                f"{model.name} has no version of run {which}; make one with: cifar-mlflow register {which}"
            )
        return of_run[-1]
    if not re.fullmatch(r"[0-9]+", which):
        raise UsageError(f"neither the number of a version nor the id of a run: {which}")
    if len(which.lstrip("0")) > MOST_DIGITS:  # a database would take it for a failure of its own
        raise UsageError(f"{model.name} has no version {which}")
    return model.ours(which)


def _objection(version: Version, champion: Version | None) -> str | None:
    """Why the version should not follow this champion; None if it should."""
    if champion is None:
        return "the champion was not made by cifar-mlflow register, so they cannot be compared"
    if difference := _difference(version, champion):
        return f"it cannot be compared with the champion, {champion}: {difference}"
    assert version.val_accuracy is not None
    assert champion.val_accuracy is not None
    if version.val_accuracy < champion.val_accuracy:
        return f"it is worse than the champion, {champion}"
    return None


def _difference(one: Version, other: Version) -> str | None:
    """Why the accuracies of two versions cannot be compared; None if they can."""
    if one.classes != other.classes:
        return f"they know other classes ({_few(one.classes)}; {_few(other.classes)})"
    if one.data_digest != other.data_digest:
        return (
            f"they were trained on other data ({one.data}, {one.data_digest[:12]}; "
            f"{other.data}, {other.data_digest[:12]})"
        )
    splits = [f"val_size {version.val_size:g}, split_seed {version.split_seed}" for version in (one, other)]
    if splits[0] != splits[1]:
        return (
            f"they have other validation images ({'; '.join(splits)}): train it with the champion's, or "
            "promote it with --force"
        )
    if one.val_accuracy is None or other.val_accuracy is None:
        return "no images were held out for validation"
    return None


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _check_files(name: str, version: Version) -> None:
    """Download the version and compare its files with what was registered."""
    with tempfile.TemporaryDirectory() as scratch:
        model = download(f"models:/{name}/{version.number}", Path(scratch, "model"))
        code = code_digest(model)
        folder = model / SCORER_PATH
        found = {
            path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in folder.rglob("*")
            if path.is_file()
        }
    odd = sorted(name for name in found | version.files if found.get(name) != version.files.get(name))
    if version.code not in (None, code):
        odd.append("the code that comes with it")
    if odd:
        raise CifarError(
            f"version {version.number} of {name} cannot be served: {', '.join(odd)} is missing or is not "
            f"what was registered; register run {version.run_id} again"
        )


@contextmanager
def _alone(name: str) -> Iterator[None]:
    """One promotion or rollback at a time on this machine."""
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
