"""`cifar-mlflow monitor`: what was served, as a run of MLflow and in a few lines."""

import logging
import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import sqlalchemy as sa

from cifar_mlflow.config import default_cache_dir
from cifar_mlflow.errors import CifarError
from cifar_mlflow.evaluation.figures import confusion_matrix
from cifar_mlflow.interrupt import StopRequest
from cifar_mlflow.tracking.lifecycle import tracked_run
from cifar_mlflow.tracking.run import TrackedRun
from cifar_mlflow.tracking.store import connect
from serving.config import MonitorConfig, begin_of_window
from serving.monitoring import analysis, figures
from serving.monitoring.drift import Reference
from serving.monitoring.read_log import read_log
from serving.registry.loader import load_scorer

logger = logging.getLogger("cifar_mlflow.monitor")

SHOWN_VERSIONS = 4  # in one picture; the tables have all
AXES = {
    "label": "predicted class",
    "confidence": "confidence, in tenths of the reference",
    "brightness": "brightness (mean of the values), in tenths of the reference",
    "contrast": "contrast (their standard deviation), in tenths of the reference",
}


@dataclass(frozen=True, eq=False)
class Served:
    """One version of a model within the window.

    Attributes:
        answers: its records with a label.
        reference: None if there is none; then `problem` says why.
        drift: as `analysis.drift` makes it; None without a reference.
        live: None without feedback.
    """

    version: str
    answers: pd.DataFrame
    reference: Reference | None
    problem: str | None
    drift: pd.DataFrame | None
    live: analysis.Live | None

    @property
    def folder(self) -> str:
        return re.sub(r"[^A-Za-z0-9._-]", "-", self.version)


def monitor(config: MonitorConfig) -> str:
    """Read the request log, and log a report on it as a run of kind `monitor`; what to tell a person.

    Raises:
        UsageError: the address of the log is none.
        CifarError: there is no log, it cannot be read, or MLflow does not answer.
    """
    until = time.time()
    since = begin_of_window(config.since, until)
    records, feedback = read_log(config.request_log, since, until)
    log = sa.make_url(config.request_log).render_as_string(hide_password=True)
    window = f"{_utc(since)} to {_utc(until)} UTC"
    if records.empty and feedback.empty:
        return f"{log} has no requests from {window}: there is nothing to report. --since looks further back."
    connect(config.experiment)
    versions = _versions(records, feedback, config.model_uri)
    name = config.run_name or f"monitor-{datetime.fromtimestamp(until, UTC):%Y-%m-%d-%H%M}"
    with (
        StopRequest() as stop,
        tracked_run(kind="monitor", name=name, cache_dir=default_cache_dir()) as (run, _),
        stop.at_once(),
    ):
        run.log_params({**config.model_dump(mode="json"), "request_log": log})
        lines, metrics = _log_traffic(run, records, window)
        for each in versions:
            _log_version(run, each)
            lines += _words(each)
        with_drift = {each.version: each.drift for each in versions if each.drift is not None}
        if with_drift:
            shown = dict(list(with_drift.items())[-SHOWN_VERSIONS:])
            run.log_figure(figures.stability(shown, f"Drift against the reference: {window}"), "drift.png")
        if versions:
            run.log_csv(pd.DataFrame([_row(each) for each in versions]), "versions.csv")
            metrics |= _metrics(versions[-1])
            run.set_tags({"model_version": versions[-1].version})
        run.log_metrics({key: value for key, value in metrics.items() if np.isfinite(value)}, step=0)
        note = "\n".join([f"**Served** from {window}, by {log}\n", *(f"- {line}" for line in lines)])
        run.set_tags({"mlflow.note.content": note})
        lines = [f"{window}, by {log}", *lines, f"Pictures and tables: run {run.name} ({run.run_id})"]
    return "\n".join(lines)


def _versions(records: pd.DataFrame, feedback: pd.DataFrame, model_uri: str | None) -> list[Served]:
    """The last to have answered comes last."""
    answers = records[records["label"].notna()]
    said = feedback[feedback["label"].notna()]
    last = pd.concat([answers, said]).groupby("model_version", observed=True)["time"].max().sort_values()
    found = []
    for version in last.index.astype(str):
        own = answers[answers["model_version"] == version]
        card, problem = _card(version, model_uri)
        reference = card.get("reference")
        if reference is None and problem is None:
            problem = "it was registered without a reference; cifar-mlflow register makes a version with one"
        classes = card.get("classes") or sorted(own["label"].astype(str).unique())
        found.append(
            Served(
                version=version,
                answers=own,
                reference=reference,
                problem=problem,
                drift=None if reference is None else analysis.drift(own, reference),
                live=analysis.live(said[said["model_version"] == version], tuple(classes)),
            )
        )
    return found


def _card(version: str, model_uri: str | None) -> tuple[dict[str, Any], str | None]:
    """The card of the model, or why there is none."""
    number = version.rpartition("/")[2]
    # What was served from a run or a folder has its run for a version.
    uri = model_uri or (f"models:/{version}" if number.isdigit() else number)
    try:
        scorer = load_scorer(uri)
    except CifarError as error:
        if model_uri:
            raise
        return {}, str(error)
    scorer.close()
    return scorer.card, None


def _log_traffic(run: TrackedRun, records: pd.DataFrame, window: str) -> tuple[list[str], dict[str, float]]:
    requests = analysis.requests_of(records)
    if requests.empty:
        return ["No requests; the feedback is on earlier ones."], {"requests": 0}
    table, step = analysis.by_time(requests)
    run.log_csv(table, "traffic.csv", index=True)
    run.log_figure(figures.traffic(table, step, f"Requests: {window}"), "traffic.png")
    share = requests["outcome"].value_counts(normalize=True).to_dict()
    times = requests.loc[requests["outcome"] == "answered", "total_ms"]
    answered = records[records["label"].notna()]
    metrics = {
        "requests": float(len(requests)),
        "error_share": share.get("failed", 0.0),
        "refused_share": share.get("refused", 0.0),
        "pictures": float(len(answered)),
    }
    lines = [
        f"Requests: {len(requests):,}; {metrics['error_share']:.2%} failed (5xx), "
        f"{metrics['refused_share']:.2%} were refused (4xx)"
    ]
    errors = records["error_code"].dropna().astype(str).value_counts()
    if len(errors):
        run.log_csv(errors.rename_axis("code").to_frame("records"), "errors.csv", index=True)
        lines.append(f"Errors: {', '.join(f'{code} {number:,}' for code, number in errors.head(5).items())}")
    if len(times):
        metrics |= {"p50_ms": float(times.quantile(0.5)), "p99_ms": float(times.quantile(0.99))}
        lines.append(f"Time to the answer: p50 {metrics['p50_ms']:.1f} ms, p99 {metrics['p99_ms']:.1f} ms")
        run.log_figure(figures.latency(table, step, f"Time to the answer: {window}"), "latency.png")
    if len(answered):
        metrics["uncertain_share"] = float(answered["uncertain"].mean())
        lines.append(
            f"Pictures answered: {len(answered):,}; {metrics['uncertain_share']:.1%} of them uncertain"
        )
    else:
        lines.append("No picture was answered.")
    return lines, metrics


def _log_version(run: TrackedRun, served: Served) -> None:
    """Pictures and tables of one version, below a folder with its name."""
    version, answers, folder = served.version, served.answers, served.folder
    if served.reference is not None and served.drift is not None and len(answers):
        tables = {what: analysis.bins(answers, served.reference, what) for what in AXES}
        title = (
            f"{version}: {len(answers):,} pictures beside the {served.reference['images']:,} of the reference"
        )
        for name, whats in {
            "class_mix": ["label"],
            "confidence": ["confidence"],
            "brightness_contrast": ["brightness", "contrast"],
        }.items():
            chosen = {what: tables[what] for what in whats}
            run.log_figure(figures.beside_reference(chosen, AXES, title), f"{folder}/{name}.png")
        for what, table in tables.items():
            run.log_csv(table, f"{folder}/{what}.csv")
        run.log_csv(served.drift, f"{folder}/drift.csv")
    if served.live is not None and served.live.known:
        live = served.live
        title = f"{version}: {live.known:,} answers whose true class was told"
        run.log_figure(confusion_matrix(live.confusion, live.classes, title), f"{folder}/live_confusion.png")
        table = pd.DataFrame(live.confusion, pd.Index(live.classes, name="true"), list(live.classes))
        run.log_csv(table, f"{folder}/live_confusion.csv", index=True)


def _words(served: Served) -> list[str]:
    lines = []
    if served.drift is None:
        lines.append(f"{served.version}: no figures of drift: {served.problem}")
    elif served.drift["psi"].isna().all():
        lines.append(f"{served.version}: too few pictures for figures of drift ({len(served.answers):,})")
    else:
        found = served.drift.dropna(subset=["psi"])
        said = ", ".join(f"{row.what} {row.psi:.3f} ({row.verdict})" for row in found.itertuples())
        judges = "" if served.reference and served.reference["split"] == "val" else (
            "; its reference is of images that it was trained on, of which it is surer than of any other"
        )  # fmt: skip
        lines.append(f"{served.version}: drift (PSI): {said}{judges}")
    if served.live is None:
        lines.append(f"{served.version}: no feedback, so nothing is known of its accuracy on these pictures")
    else:
        live = served.live
        low, high = live.interval
        f1 = f"; F1 {live.f1_macro:.3f} of the {live.known:,} whose true class is known" if live.known else ""
        lines.append(
            f"{served.version}: {live.accuracy:.1%} of {live.judged:,} answers with feedback were right "
            f"(95 %: {low:.1%} to {high:.1%}, if people did not choose what to judge){f1}"
        )
    return lines


def _row(served: Served) -> dict[str, Any]:
    answers = served.answers
    row: dict[str, Any] = {
        "version": served.version,
        "first": _utc(answers["time"].min()) if len(answers) else None,
        "last": _utc(answers["time"].max()) if len(answers) else None,
        "pictures": len(answers),
        "uncertain_share": answers["uncertain"].mean() if len(answers) else None,
        "mean_confidence": answers["confidence"].mean(),
    }
    return row | _metrics(served)


def _metrics(served: Served) -> dict[str, float]:
    metrics: dict[str, float] = {}
    if served.drift is not None:
        psi = served.drift.set_index("what")["psi"]
        metrics |= {f"psi/{what}": float(value) for what, value in psi.items()}
    if served.live is not None:
        metrics |= {
            "live/feedbacks": float(served.live.judged),
            "live/accuracy": served.live.accuracy,
            "live/f1_macro": served.live.f1_macro,
        }
    return metrics


def _utc(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}"
