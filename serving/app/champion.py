"""The model that is served now: it follows an alias of the registry, and changes between two requests.

A thread asks the registry. What it finds is loaded and tried out beside the one that serves, takes its place
at once, and the old one is let go when its last request has been answered. What cannot be served is refused:
the reason is kept, and nothing else changes. The registry may be away as long as it likes.
"""

import logging
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import mlflow
import numpy as np
from mlflow.exceptions import MlflowException

from cifar_mlflow.errors import CifarError, UsageError
from cifar_mlflow.scorer.predictor import Scorer
from cifar_mlflow.tracking.retry import first_line
from serving.registry.loader import load_scorer
from serving.registry.mlflow_model import SCORER_PATH
from serving.registry.versions import FILE_TAG

logger = logging.getLogger("cifar_mlflow.serve")

_OF_ALIAS = re.compile(r"models:/(?P<name>[^/@]+)@(?P<alias>[^/@]+)")
_OF_VERSION = re.compile(r"models:/(?P<name>[^/@]+)/(?P<version>[0-9]+)")
# What MLflow says where there is no such model, or nobody has the alias.
_MISSING = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}
TRIED = 8


@dataclass(eq=False)
class Served:
    """A version that is or was served.

    Attributes:
        version: its number; of a run or a folder, which have none, what the user called it.
        tags: those it has in the registry.
        users: requests that are being answered with it.
    """

    scorer: Scorer
    name: str
    version: str
    alias: str | None = None
    tags: dict[str, str] = field(default_factory=dict)
    users: int = 0
    retired: bool = False

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"


class Champion:
    """Holds what is served, from the first load on.

    Args:
        model_uri: see `ServeConfig`; only an alias is followed.
        threads: of the network; None takes one a core.

    Attributes:
        refused: the version that has the alias but cannot be served; None if all is well.
        reason: why it was refused.
        vacant: whether the registry says that no version has the alias any more.
        registry_problem: why the registry could not be asked the last time.
        on_change: is told what will be served, just before it is.

    Raises:
        UsageError: there is no such model.
        CifarError: it cannot be served, or MLflow does not answer.
    """

    def __init__(self, model_uri: str, threads: int | None = None) -> None:
        self._model_uri = model_uri
        self._threads = threads
        self._alias = _OF_ALIAS.fullmatch(model_uri)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._refused_state: object = None
        self.on_change: Callable[[Served], None] = lambda served: None
        self.refused: str | None = None
        self.reason: str | None = None
        self.vacant = False
        self.registry_problem: str | None = None
        self._current = self._first()
        logger.info("Serving %s", self._current)

    def follow(self, seconds: float) -> None:
        """Look for another holder of the alias every so many seconds, until `close`."""
        if self._alias and seconds:
            self._thread = threading.Thread(target=self._watch, args=(seconds,), name="champion", daemon=True)
            self._thread.start()

    @property
    def current(self) -> Served:
        return self._current

    @contextmanager
    def use(self) -> Iterator[Served]:
        """What is served now; it stays usable within the block, whatever becomes champion meanwhile."""
        with self._lock:
            served = self._current
            served.users += 1
        try:
            yield served
        finally:
            with self._lock:
                served.users -= 1
                last = served.retired and not served.users
            if last:
                served.scorer.close()

    def problems(self) -> list[str]:
        """What an operator has to look after, in words."""
        found = []
        if self.refused:
            # Anybody may read it: the names of our folders stay in the log.
            reason = re.sub(r"(?<![\w:])/[^\s:]*/", "", str(self.reason))
            found.append(f"version {self.refused} is refused: {reason}")
        if self.vacant:
            found.append(f"no version is {self._model_uri} any more; {self._current} goes on serving")
        if self.registry_problem:
            found.append("the registry does not answer; the log says why")
        return found

    def close(self) -> None:
        self._stop.set()
        self._current.scorer.close()

    def _first(self) -> Served:
        if self._alias:
            version = self._look_up()
            return self._load(version.version, version.tags)
        named = _OF_VERSION.fullmatch(self._model_uri)
        scorer = self._checked(self._model_uri)
        if named:
            return Served(scorer, named["name"], named["version"])
        return Served(scorer, str(scorer.card.get("model", "model")), str(scorer.card["run_id"]))

    def _look_up(self) -> Any:
        assert self._alias is not None
        client = mlflow.MlflowClient()
        try:
            return client.get_model_version_by_alias(self._alias["name"], self._alias["alias"])
        except MlflowException as error:
            if error.error_code in _MISSING:
                raise UsageError(
                    f"there is no {self._model_uri} in {mlflow.get_registry_uri()}: {first_line(error)}; "
                    "make one with: cifar-mlflow register RUN_ID, and cifar-mlflow promote"
                ) from error
            raise CifarError(
                f"MLflow at {mlflow.get_registry_uri()} does not answer: {first_line(error)}"
            ) from error

    def _load(self, version: str, tags: dict[str, str]) -> Served:
        assert self._alias is not None
        name = self._alias["name"]
        scorer = self._checked(f"models:/{name}/{version}")
        return Served(scorer, name, str(version), self._alias["alias"], dict(tags))

    def _checked(self, model_uri: str) -> Scorer:
        try:
            scorer = load_scorer(model_uri, self._threads)
        except CifarError:
            raise
        except Exception as error:  # ONNX Runtime has its own; a card may lack something
            raise CifarError(f"{model_uri} cannot be loaded: {first_line(error)}") from error
        try:
            _try_out(scorer)
        except Exception as error:
            scorer.close()
            raise CifarError(f"{model_uri} cannot be served: {first_line(error)}") from error
        return scorer

    def _watch(self, seconds: float) -> None:
        while not self._stop.wait(seconds):
            try:
                self.look()
            except Exception:  # the thread must live on, whatever a store comes up with
                logger.exception("The registry could not be looked at")

    def look(self) -> None:
        """Ask the registry once, and serve what has the alias now if it can be served."""
        try:
            version = self._look_up()
        except UsageError as error:
            if not self.vacant:
                logger.warning("%s; %s goes on serving", error, self._current)
            self.vacant, self.registry_problem = True, None
            return
        except CifarError as error:
            if self.registry_problem is None:
                logger.warning("%s; %s goes on serving", error, self._current)
            self.registry_problem = first_line(error)
            return
        if self.registry_problem is not None:
            logger.info("The registry is back")
        self.vacant, self.registry_problem = False, None
        number = str(version.version)
        if number == self._current.version and _digests(version.tags) == _digests(self._current.tags):
            self.refused = self.reason = self._refused_state = None
            return
        state = (number, _digests(version.tags), self._sizes(number))
        if state != self._refused_state:
            self._change(number, version.tags, state)

    def _change(self, number: str, tags: dict[str, str], state: object) -> None:
        try:
            new = self._load(number, tags)
        except CifarError as error:
            self.refused, self.reason, self._refused_state = number, first_line(error), state
            logger.error("Version %s is refused, %s goes on serving: %s", number, self._current, error)
            return
        self.on_change(new)
        with self._lock:
            old, self._current = self._current, new
            old.retired = True
            unused = not old.users
        if unused:
            old.scorer.close()
        self.refused = self.reason = self._refused_state = None
        logger.info("Serving %s in place of %s", new, old)

    def _sizes(self, number: str) -> object:
        """Of the files of a version: damaged ones that were repaired are worth another look."""
        assert self._alias is not None
        address = f"models:/{self._alias['name']}/{number}/{SCORER_PATH}"
        try:
            files = mlflow.artifacts.list_artifacts(address)
        except Exception as error:  # each kind of artifact store has errors of its own
            return first_line(error)
        return sorted((file.path, file.file_size) for file in files)


def _digests(tags: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in tags.items() if key.startswith(FILE_TAG)}


def _try_out(scorer: Scorer) -> None:
    """Warm up, and see that the answers are probabilities, of a picture the same alone and among others.

    Raises:
        ValueError: they are not.
    """
    size = scorer.image_size
    images = np.random.default_rng(0).integers(0, 256, (TRIED, size, size, 3), dtype=np.uint8)
    together = scorer.score(images).probabilities
    alone = np.concatenate([scorer.score(images[i : i + 1]).probabilities for i in range(TRIED)])
    if together.shape != (TRIED, len(scorer.classes)):
        raise ValueError(
            f"it knows {together.shape[1]} classes, and has {len(scorer.classes)} names for them"
        )
    if not (np.isfinite(together).all() and np.allclose(together.sum(axis=1), 1, atol=1e-4)):
        raise ValueError("its answers are no probabilities")
    if not np.allclose(together, alone, atol=1e-2):
        raise ValueError("of a picture alone it says something else than of the same among others")
