"""The result of a job: its summary and the likely next commands, for the terminal."""

import shlex
from dataclasses import dataclass, field
from typing import Any

from cifar_mlflow.console import duration, percent
from cifar_mlflow.names import champion_option
from cifar_mlflow.settings import option_name
from cifar_mlflow.tracking.store import run_address, ui_command
from cifar_mlflow.verb_config import RegisterConfig

SHARES = {"accuracy": "accuracy", "accuracy_tta": "with TTA"}
HEADLINES = {"f1_macro": "F1", "loss": "loss", "ece": "ECE"}


@dataclass(frozen=True)
class Result:
    """The outcome of a job.

    Attributes:
        metrics: by their names in the run.
        seconds: time of the steps beside the training, by kind.
    """

    run_id: str
    run_name: str
    metrics: dict[str, float]
    seconds: dict[str, float] = field(default_factory=dict)

    def summary(self) -> str:
        """Return a short table for the terminal."""
        lines = [f"\nRun {self.run_name} ({self.run_id})"]
        for split in ("val", "test", "train"):
            values = {name: self.metrics.get(f"{split}/{name}") for name in (*SHARES, *HEADLINES)}
            found = [
                f"{SHARES[name]} {percent(value).strip()}"
                if name in SHARES
                else f"{HEADLINES[name]} {value:.3f}"
                for name, value in values.items()
                if value is not None
            ]
            if found:
                lines.append(f"  {split:5s} " + "  ".join(found))
        trained = self.metrics.get("train_seconds")
        times = {**({"training": trained} if trained else {}), **self.seconds}
        if times:
            lines.append("  time  " + ", ".join(f"{kind} {duration(time)}" for kind, time in times.items()))
        return "\n".join(lines)


def next_steps(run_id: str, model: str, promote: str) -> str:
    """Return the commands that probably follow a training.

    Args:
        model: name of the registered model.
        promote: the command that makes the trained network the champion.
    """
    compare = run_address(run_id) or f"{ui_command()}    # the runs in MLflow's UI"
    return f"""
What next:
  compare   {compare}
  evaluate  cifar-mlflow evaluate --model-uri {run_id} --tta crops
  promote   cifar-mlflow {promote}
  serve     cifar-mlflow serve{champion_option(model)}
  export    cifar-mlflow export {run_id} --format onnx --output exported"""


def registration_options(given: dict[str, Any]) -> str:
    """Return the options of the registration that a training got, for a `register` command later."""
    fields = RegisterConfig.model_fields
    return "".join(
        f" {option_name(name)} {shlex.quote(str(given[name]))}"
        for name in ("registered_model", "serve_precision", "target_accuracy")
        if name in given and given[name] != fields[name].default
    )
