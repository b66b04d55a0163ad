"""Result: what a job returns, and its table for the terminal."""

from dataclasses import dataclass

HEADLINES = ("accuracy", "accuracy_tta", "f1_macro", "loss", "ece")


@dataclass(frozen=True)
class Result:
    """The outcome of a job: its run, and the metrics by their names in the run."""

    run_id: str
    run_name: str
    metrics: dict[str, float]

    def summary(self) -> str:
        """Return a short table for the terminal."""
        lines = [f"\nRun {self.run_name} ({self.run_id})"]
        for split in ("val", "test", "train"):
            values = {name: self.metrics.get(f"{split}/{name}") for name in HEADLINES}
            found = [f"{name} {value:.4f}" for name, value in values.items() if value is not None]
            if found:
                lines.append(f"  {split:5s} " + "  ".join(found))
        if seconds := self.metrics.get("train_seconds"):
            lines.append(f"  trained in {seconds:.0f} s")
        return "\n".join(lines)
