"""All that a process of the service holds: the model, the threads, the bounds, and what is noted."""

import gc
import os
import sys

from serving.app.auth import Security
from serving.app.body import Bodies
from serving.app.champion import Champion
from serving.app.inference import Inference
from serving.config import ServeConfig
from serving.monitoring.telemetry import Telemetry

# Bodies that may be in memory at a time, in the largest ones.
BODIES_HELD = 16


class AppState:
    """Opened with the settings, closed when the last request is answered.

    Raises:
        UsageError: there is no such model.
        CifarError: it cannot be served, or MLflow does not answer.
    """

    def __init__(self, config: ServeConfig) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        share = max(1, cores // config.workers)
        self.config = config
        self.champion = Champion(config.model_uri, config.threads or share)
        self.inference = Inference(share, config.queue_limit, config.request_timeout)
        largest = config.max_body_mb * 2**20
        self.bodies = Bodies(largest, config.request_timeout, BODIES_HELD * largest)
        self.security = Security(config)
        self.telemetry = Telemetry(config, self.champion.current)
        self.champion.on_change = self.telemetry.serving

    def start(self) -> None:
        """Follow the champion; with several workers, in each of them."""
        # A full collection looks through all objects of the libraries: a fifth of a second without answers.
        gc.freeze()
        # Of Python's 5 ms: as long the network waits for the interpreter between two batches, if it is busy.
        sys.setswitchinterval(0.0005)
        self.champion.follow(self.config.follow_seconds)

    def failure(self) -> str | None:
        """Return why images cannot be answered at present, None if they can; anybody may read it."""
        return self.inference.failure()

    def problems(self) -> list[str]:
        """What an operator has to look after, though the service answers."""
        return self.champion.problems() + self.telemetry.problems()

    def close(self) -> None:
        self.champion.close()
        self.inference.close()
        self.telemetry.close()
