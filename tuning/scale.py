"""Where the values of a hyperparameter are drawn."""

import math
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution


@dataclass(frozen=True)
class Scale:
    """From 0 to 1, even by value, by logarithm, or by choice."""

    choices: tuple[Any, ...]
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    whole: bool = False

    @classmethod
    def of(cls, study: optuna.Study, name: str) -> "Scale":
        """All that a parameter may be; its bounds may have been others in some of the trials."""
        domains: list[Any] = [
            trial.distributions[name]
            for trial in study.get_trials(deepcopy=False)
            if name in trial.distributions
        ]
        if isinstance(domains[0], CategoricalDistribution):
            return cls(tuple(dict.fromkeys(choice for domain in domains for choice in domain.choices)))
        return cls(
            (),
            min(domain.low for domain in domains),
            max(domain.high for domain in domains),
            all(domain.log for domain in domains),
            all(isinstance(domain.low, int) for domain in domains),
        )

    def place(self, value: Any) -> float:
        if self.choices:
            return (self.choices.index(value) + 0.5) / len(self.choices)
        if self.low == self.high:
            return 0.5
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return float(value - self.low) / (self.high - self.low)

    def ticks(self) -> dict[float, str]:
        """Places, and what is written there."""
        if self.choices:
            return {self.place(choice): str(choice) for choice in self.choices}
        middle = math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2
        values = [self.low, round(middle) if self.whole else middle, self.high]
        return {self.place(value): f"{value:.2g}" if value < 100 else f"{value:.0f}" for value in values}
