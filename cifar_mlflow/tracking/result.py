"""The result of a job, and its summary for the terminal."""

from dataclasses import dataclass, field

from cifar_mlflow.console import duration, percent

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
