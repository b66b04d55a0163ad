"""The settings of a finished training, to train again like it."""

import mlflow

from cifar_mlflow.config import TrainConfig
from cifar_mlflow.effective import NEUTRAL
from cifar_mlflow.errors import UsageError
from cifar_mlflow.tracking.locations import check_training
from cifar_mlflow.tracking.retry import call_mlflow


def settings_of_run(run_id: str) -> dict[str, str | None]:
    """Return the settings of a training or trial, as text; those that depend on the machine are left out.

    Raises:
        UsageError: there is no such run, or it is not a training.
        CifarError: MLflow does not answer.
    """
    missing = f"--settings-of {run_id}: there is no such run in {mlflow.get_tracking_uri()}"
    run = call_mlflow(lambda: mlflow.MlflowClient().get_run(run_id), missing)
    check_training(run)
    if "model" not in run.data.params:
        raise UsageError(f"--settings-of {run_id}: the run is not a training")
    names = TrainConfig.model_fields.keys() - {*NEUTRAL}
    if run.data.params.get("dataset") == "folder":
        names |= {"data_dir"}
    given = {name: value for name, value in run.data.params.items() if name in names and value != "None"}
    # Settings that are None are no params. Of these, recipes set only the weights.
    return {"weights": None, **given}
