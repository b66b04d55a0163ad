"""Everything that a process of the service holds: the model, its threads, the limits, and telemetry."""

import gc
import sys
from contextlib import ExitStack

from cifar_mlflow.environment import available_cores
from serving.app.admission import AdmissionControl
from serving.app.auth import AccessControl
from serving.app.champion import Champion
from serving.app.inference import Inference
from serving.app.request_body import BodyLimits
from serving.app.telemetry import Telemetry
from serving.config import ServeConfig

# The bodies in memory at a time may take as much as this many of the largest size.
LARGEST_BODIES = 16


class AppState:
    """The objects of one process, opened before the first request and closed after the last one.

    Raises:
        UsageError: the model does not exist.
        CifarError: the model cannot be served, or MLflow does not answer.
    """

    def __init__(self, config: ServeConfig) -> None:
        cores_per_worker = max(1, available_cores() // config.workers)
        max_bytes = config.max_body_mb * 2**20
        self.config = config
        self.access = AccessControl(config)
        self.admission = AdmissionControl(config.queue_limit)
        self.body_limits = BodyLimits(max_bytes, config.request_timeout, LARGEST_BODIES * max_bytes)
        with ExitStack() as opened:  # a worker that fails to start tries again and again
            self.champion = Champion(config.model_uri, config.threads or cores_per_worker)
            opened.callback(self.champion.close)
            self.inference = Inference(cores_per_worker, config.queue_limit, config.request_timeout)
            opened.callback(self.inference.close)
            self.telemetry = Telemetry(config, self.champion.current)
            opened.pop_all()
        self.champion.on_change = self.telemetry.serving

    def start(self) -> None:
        """Begin to follow the champion; each worker does so by itself."""
        # A full garbage collection visits all objects of the libraries: a fifth of a second without answers.
        gc.freeze()
        # The engine waits for the interpreter between two batches: up to this long, by default 5 ms.
        sys.setswitchinterval(0.0005)
        self.champion.follow(self.config.follow_seconds)

    def failure(self) -> str | None:
        """Return why images get no answers at present, or None if they do; the text is public, see /ready."""
        if not self.champion.current.scorer.engine.is_alive:
            return "The network is not running any more; the log says why. Restart the server."
        return self.inference.failure()

    def problems(self) -> list[str]:
        """Return problems for the operator that do not prevent answers; the text is public, see /ready."""
        return self.champion.problems() + self.telemetry.problems()

    def close(self) -> None:
        self.champion.close()
        self.inference.close()
        self.telemetry.close()
