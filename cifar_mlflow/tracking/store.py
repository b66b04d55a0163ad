"""The MLflow store that runs are written to: its address and the experiment in it."""

import hashlib
import logging
import os
import shlex
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote, urlencode, urlsplit
from urllib.request import url2pathname

import mlflow
from filelock import FileLock
from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException

from cifar_mlflow.environment import default_cache_dir, patience_seconds
from cifar_mlflow.errors import CifarError, UsageError, first_line
from cifar_mlflow.redact import redact
from cifar_mlflow.tracking.retry import call_mlflow

logger = logging.getLogger(__name__)

SQLITE = "sqlite:///"
DEFAULT_EXPERIMENT = "0"
TRIAL_TAG = "optuna.trial"  # of the trainings of a search
# MLflow 3 opens an experiment in its mode for GenAI (traces, judges) unless the address asks for the other.
TRAINING_MODE = "workflowType=machine_learning"
# The filter and the order of MLflow's table of runs, as its addresses have them.
TRAININGS = urlencode(
    {
        "searchFilter": f"tags.kind = 'train' and tags.`{TRIAL_TAG}` IS NULL",
        "orderByKey": "metrics.`val/accuracy`",
        "orderByAsc": "false",
    },
    quote_via=quote,
)
DESCRIPTION = """\
Image classification with cifar-mlflow: [trainings, best first](#/experiments/{id}/runs?{mode}&{trainings}), \
[their charts](#/experiments/{id}/runs?{mode}&{trainings}&compareRunsMode=CHART), \
[models](#/experiments/{id}/models?{mode})

- Columns adds `val/accuracy` to the list. Type `val/` into the search field of the charts for those to \
choose by.
- The name of a run says what was changed from the recipe of its model. \
To compare the settings of some trainings, select them and choose Compare.
- The tag `kind` tells the runs apart: `train`, `search` (its trials, of kind `train`, are nested in it), \
`evaluate`, `export`, `register`, `review`, `monitor`. The links above show the trainings without the trials.
- Among the models, `model` is the network as trained, `scorer` the form that is registered and served.
- The test split is read once, at the end of a training: choose by `val/...`, report `test/...`.
"""


def store_uri() -> str:
    """Return the address of MLflow's store, valid in every working directory and without its password."""
    return redact(absolute_uri(mlflow.get_tracking_uri()))


def absolute_uri(uri: str) -> str:
    """Return the address of a store, valid in every working directory."""
    file = sqlite_file(uri)
    return f"{SQLITE}{file.absolute()}" if file else uri


def page_address(page: str) -> str | None:
    """Return the address of a page of MLflow's UI, such as `experiments/1`; None without a server."""
    uri = store_uri()
    return f"{uri.rstrip('/')}/#/{page}?{TRAINING_MODE}" if uri.startswith("http") else None


def trainings_page() -> str:
    """Return the page with the runs of the newest training's experiment.

    It is the list of experiments if there is no training, or if MLflow does not answer.
    """
    client = mlflow.MlflowClient()
    with suppress(CifarError):
        experiments = [each.experiment_id for each in call_mlflow(client.search_experiments)]
        newest = call_mlflow(
            lambda: client.search_runs(
                experiments, "tags.kind = 'train'", max_results=1, order_by=["attributes.start_time DESC"]
            )
        )
        if newest:
            return f"experiments/{newest[0].info.experiment_id}/runs"
    return "experiments"


def ui_command() -> str:
    """Return the command that opens MLflow's UI: short where this project's Makefile is, else the module."""
    with suppress(OSError, UnicodeDecodeError):
        if "-m cifar_mlflow.tracking.ui" in Path("Makefile").read_text(encoding="utf-8"):
            return "make ui"
    return "python -m cifar_mlflow.tracking.ui"


def sqlite_file(uri: str) -> Path | None:
    """Return the file of an SQLite store, or None for another kind of store."""
    return Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None


def select_store(uri: str) -> None:
    """Make `uri`, as returned by `store_uri`, the current store.

    Raises:
        UsageError: the store needs a password, or its file is gone.
    """
    current = store_uri()
    if uri == current:
        return
    if (file := sqlite_file(uri)) and not file.exists():
        current_file = sqlite_file(current)
        if current_file and current_file.exists():
            return  # the folder was moved, and this is the store in its new place
        raise UsageError(
            f"the run is in MLflow's store {uri}, but {file} does not exist: "
            "set MLFLOW_TRACKING_URI to its new address"
        )
    if "***" in uri:
        raise UsageError(
            f"the run is in MLflow's store {uri}: set MLFLOW_TRACKING_URI to it, with its password"
        )
    mlflow.set_tracking_uri(uri)


def connect(experiment: str, resume: str | None = None) -> str:
    """Select the experiment for new runs; create it if needed, describe it, and return its name.

    In `mlflow run` it is selected already, and a run to `resume` stays in its own.

    Raises:
        CifarError: the store cannot be reached or written, or its files were moved.
    """
    # A new SQLite store logs each of its many migrations.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        if resume:
            experiment_id = mlflow.MlflowClient().get_run(resume).info.experiment_id
            selected = mlflow.set_experiment(experiment_id=experiment_id)
        elif run_id := os.environ.get("MLFLOW_RUN_ID"):
            return _describe_experiment_of(run_id, experiment)
        else:
            with _exclusive(mlflow.get_tracking_uri()):
                selected = mlflow.set_experiment(experiment)
        _describe(selected)
        _check_artifact_location(selected.name, selected.experiment_id, selected.artifact_location)
        return str(selected.name)
    except CifarError:
        raise
    except Exception as error:  # each kind of store raises errors of its own
        subject = f"run {resume}" if resume else f"experiment {experiment!r}"
        raise CifarError(
            f"{subject} in MLflow's store {mlflow.get_tracking_uri()} cannot be used: {first_line(error)}\n"
            "Set MLFLOW_TRACKING_URI to another store, such as sqlite:////a/folder/mlflow.db or "
            "http://host:5000" + ("" if resume else ", or choose another experiment with --experiment")
        ) from error


def _describe_experiment_of(run_id: str, usual: str) -> str:
    """Describe the experiment of a run that `mlflow run` created, and return its name.

    Args:
        usual: the experiment that the other commands use; a warning names it if this one is Default.
    """
    with suppress(MlflowException):  # an outage, which the start of the run waits for
        client = mlflow.MlflowClient()
        selected = client.get_experiment(client.get_run(run_id).info.experiment_id)
        if selected.experiment_id == DEFAULT_EXPERIMENT:
            logger.warning(
                "This run is in MLflow's experiment Default; to have it beside the others, use "
                "mlflow run --experiment-name %s",
                shlex.quote(usual),
            )
        _describe(selected)
        return str(selected.name)
    return usual


def _describe(experiment: Experiment) -> None:
    """Give an experiment its kind and description, unless it has them; ignore a refusal."""
    texts = {
        "mlflow.experimentKind": "custom_model_development",
        "mlflow.note.content": DESCRIPTION.format(
            id=experiment.experiment_id, mode=TRAINING_MODE, trainings=TRAININGS
        ),
    }
    with suppress(MlflowException):
        for key, text in texts.items():
            if key not in experiment.tags:
                mlflow.MlflowClient().set_experiment_tag(experiment.experiment_id, key, text)


def _check_artifact_location(experiment: str, experiment_id: str, location: str) -> None:
    """Refuse an experiment whose folder was moved: MLflow would recreate the old, absolute path."""
    address = urlsplit(location)
    if address.scheme not in ("", "file"):
        return
    folder = Path(url2pathname(address.path)).absolute()
    store = sqlite_file(mlflow.get_tracking_uri())
    moved_to = store.absolute().parent / folder.parent.name / folder.name if store else folder
    # A new experiment has no folder yet, but the folder above `mlruns` exists.
    if folder.exists() or (folder.parents[1].exists() and not moved_to.exists()):
        return
    # Files in the other place may belong to an experiment of the same number in another store.
    if not mlflow.MlflowClient().search_runs([experiment_id], max_results=1):
        return
    missing = next(path for path in [*reversed(folder.parents), folder] if not path.exists())
    raise CifarError(
        f"the files of experiment {experiment!r} should be in {folder}, but {missing} does not exist: move "
        f"it back to that place, link it (ln -s WHERE_IT_IS_NOW {missing}), or start a new experiment "
        "with --experiment"
    )


@contextmanager
def _exclusive(tracking_uri: str) -> Iterator[None]:
    """Let one command at a time open a local database: MLflow creates its tables without a lock."""
    name = hashlib.sha256(redact(tracking_uri).encode()).hexdigest()[:16]
    with ExitStack() as stack:
        if not tracking_uri.startswith("http"):  # a server creates its own database
            # Go on without a lock if the cache cannot be written or another command holds it too long.
            with suppress(OSError, CifarError):
                path = default_cache_dir() / "stores" / f"{name}.lock"
                path.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(FileLock(path, timeout=patience_seconds()))
        yield


def run_address(run_id: str) -> str | None:
    """Return the address of the page of a run; None without a server, or if it does not answer."""
    if store_uri().startswith("http"):
        with suppress(MlflowException):
            experiment = mlflow.MlflowClient().get_run(run_id).info.experiment_id
            return page_address(f"experiments/{experiment}/runs/{run_id}")
    return None
