"""`cifar-mlflow monitor`: report on served requests as an MLflow run and a few lines of text."""

import logging
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd

from cifar_mlflow.environment import default_cache_dir
from cifar_mlflow.errors import CifarError, UsageError
from cifar_mlflow.evaluation.figures import confusion_matrix
from cifar_mlflow.interrupt import StopRequest
from cifar_mlflow.names import counted
from cifar_mlflow.tracking.lifecycle import tracked_run
from cifar_mlflow.tracking.run import TrackedRun
from cifar_mlflow.tracking.store import connect, run_address, ui_command
from serving.config import MonitorConfig, begin_of_window
from serving.monitoring import analysis, figures
from serving.monitoring.database import Database
from serving.monitoring.drift import Reference
from serving.monitoring.export_feedback import export_feedback
from serving.registry.loader import load_scorer
from serving.registry.versions import RegisteredModel

logger = logging.getLogger("cifar_mlflow.monitor")

SHOWN_VERSIONS = 4  # in one figure; the tables have all
AXES = {
    "label": "predicted class",
    "confidence": "confidence, in deciles of the reference",
    "brightness": "brightness (mean of all values), in deciles of the reference",
    "contrast": "contrast (standard deviation), in deciles of the reference",
}


@dataclass(frozen=True, eq=False)
class ServedVersion:
    """The answers of one model version in the time window.

    Attributes:
        answers: its records with a label.
        data: the data set that it was trained on; None if it is unknown.
        reference: None if there is none; `problem` says why.
        uncertain_on_validation: the share of uncertain answers to validation images; None if it is unknown.
        drift: as `analysis.drift` returns it; None without a reference.
        feedback: None if there is none.
    """

    version: str
    answers: pd.DataFrame
    data: str | None
    reference: Reference | None
    problem: str | None
    uncertain_on_validation: float | None
    drift: pd.DataFrame | None
    feedback: analysis.FeedbackSummary | None

    @property
    def folder(self) -> str:
        return re.sub(r"[^A-Za-z0-9._-]", "-", self.version)


def monitor(config: MonitorConfig) -> str:
    """Report on the request log as an MLflow run of kind `monitor`; return a summary for a person.

    Raises:
        UsageError: the address of the request log is not valid.
        CifarError: there is no request log, it cannot be read, or MLflow does not answer.
    """
    until = time.time()
    since = begin_of_window(config.since, until)
    database = Database(config.request_log)
    log = database.safe_url
    records, feedback = database.read(since, until)
    window = f"{_utc(since)} to {_utc(until)} UTC"
    is_live = records["live"].fillna(False).astype(bool)
    left_out = 0 if config.live_frames else int(is_live.sum())
    if left_out:
        records = records[~is_live]
    if records.empty and feedback.empty:
        besides = (
            f" apart from {left_out:,} frames of live views (--live-frames includes them)" if left_out else ""
        )
        return f"{log} has no requests from {window}{besides}. --since looks further back."
    versions = _find_versions(records, feedback, config.model_uri)
    exported = _export_feedback(config, feedback, versions)
    experiment = connect(
        config.experiment
        if "experiment" in config.model_fields_set or not versions
        else versions[-1].data or config.experiment
    )
    name = config.run_name or f"monitor-{datetime.fromtimestamp(until, UTC):%Y-%m-%d-%H%M}"
    with (
        StopRequest() as stop,
        tracked_run(kind="monitor", name=name, cache_dir=default_cache_dir()) as (run, _),
        stop.at_once(),
    ):
        run.log_params({**config.model_dump(mode="json"), "request_log": log, "experiment": experiment})
        lines, metrics = _log_traffic(run, records, since, until)
        lines += exported
        if left_out:
            lines.append(f"Left out: {left_out:,} frames of live views (--live-frames includes them)")
        for each in versions:
            _log_version(run, each)
            lines += _summary(each)
        with_drift = {
            each.version: each.drift
            for each in versions
            if each.drift is not None and each.drift["psi"].notna().any()
        }
        if with_drift:
            shown = dict(list(with_drift.items())[-SHOWN_VERSIONS:])
            run.log_figure(figures.stability(shown, f"Drift against the reference: {window}"), "drift.png")
        if versions:
            run.log_csv(pd.DataFrame([_row(each) for each in versions]), "versions.csv")
            metrics |= _metrics(versions[-1])
            for model_id in _model_ids(versions):
                run.log_model_input(model_id)
            run.set_tags({"model_version": versions[-1].version})
        run.log_metrics({key: value for key, value in metrics.items() if np.isfinite(value)}, step=0)
        note = "\n".join(
            [f"Requests from {window}, from the request log {log}\n", *(f"- {line}" for line in lines)]
        )
        run.set_tags({"mlflow.note.content": note})
        lines = [
            f"{window}, from {log}",
            *lines,
            f"Figures and tables: run {run.name} ({run.run_id}) in experiment {experiment}: "
            + (run_address(run.run_id) or ui_command()),
        ]
    return "\n".join(lines)


def _export_feedback(
    config: MonitorConfig, feedback: pd.DataFrame, versions: list[ServedVersion]
) -> list[str]:
    """Export the feedback on one model, as the config asks, and return sentences about it.

    Other models may have other classes, which the data of this one do not have.
    """
    if not (config.export_feedback and config.images_dir):
        return []
    if not versions:  # nothing was answered
        return [export_feedback(feedback, config.images_dir, config.export_feedback)]
    named = re.match("models:/([^/@]+)[/@]", config.model_uri or "")
    model = named[1] if named else _model_of(versions[-1].version)
    models = feedback["model_version"].astype(object).map(_model_of, na_action="ignore")
    own = feedback[models == model]
    lines = [export_feedback(own, config.images_dir, config.export_feedback)]
    if others := len(feedback) - len(own):
        lines.append(
            f"Feedback on other models than {model} left out: {others:,} (--model-uri models:/NAME@champion "
            "exports that on another one)"
        )
    return lines


def _model_of(version: str) -> str:
    """Return the registered model of a version; a model that is not registered is its only version."""
    name, _, number = version.rpartition("/")
    return name if number.isdigit() else version


def _find_versions(
    records: pd.DataFrame, feedback: pd.DataFrame, model_uri: str | None
) -> list[ServedVersion]:
    """Return the versions that answered or got feedback, in the order of their last answer."""
    answers = records[records["label"].notna()]
    judged = feedback[feedback["label"].notna()]
    last = pd.concat([answers, judged]).groupby("model_version", observed=True)["time"].max().sort_values()
    found = []
    for version in last.index.astype(str):
        own = answers[answers["model_version"] == version]
        card, problem = _card(version, model_uri)
        reference = card.get("reference")
        if reference is None and problem is None:
            problem = (
                "it was registered without a reference; cifar-mlflow register creates a version with one"
            )
        classes = card.get("classes") or sorted(own["label"].astype(str).unique())
        found.append(
            ServedVersion(
                version=version,
                answers=own,
                data=card.get("data"),
                reference=reference,
                problem=problem,
                uncertain_on_validation=_uncertain_on_validation(card),
                drift=None if reference is None else analysis.drift(own, reference),
                feedback=analysis.summarize_feedback(
                    judged[judged["model_version"] == version], tuple(classes)
                ),
            )
        )
    return found


def _model_ids(versions: list[ServedVersion]) -> list[str]:
    """Return the ids of the logged models behind the versions that MLflow still has."""
    found = []
    for each in versions:
        name, _, number = each.version.rpartition("/")
        if number.isdigit():
            with suppress(UsageError):  # the version was deleted
                found.append(RegisteredModel(name).model_id(number))
    return [model_id for model_id in found if model_id]


def _card(version: str, model_uri: str | None) -> tuple[dict[str, Any], str | None]:
    """Return the model card, or an empty one and why it cannot be read."""
    number = version.rpartition("/")[2]
    # A model that was served from a run or a folder has the run id as its version.
    uri = model_uri or (f"models:/{version}" if number.isdigit() else number)
    try:
        scorer = load_scorer(uri)
    except CifarError as error:
        if model_uri:
            raise
        return {}, str(error)
    scorer.close()
    return scorer.card, None


def _uncertain_on_validation(card: dict[str, Any]) -> float | None:
    coverage = card.get("uncertain", {}).get("coverage")
    return None if coverage is None else 1 - coverage


def _log_traffic(
    run: TrackedRun, records: pd.DataFrame, since: float, until: float
) -> tuple[list[str], dict[str, float]]:
    requests = analysis.requests_of(records)
    if requests.empty:
        return ["No requests in this window; the feedback is on earlier answers."], {"requests": 0}
    table, step = analysis.by_time(requests)
    run.log_csv(table, "traffic.csv", index=True)
    window = (pd.Timestamp(since, unit="s", tz="UTC"), pd.Timestamp(until, unit="s", tz="UTC"))
    first, last = _utc(records["time"].min()), _utc(records["time"].max())
    times_of = f"{first} to {last} UTC, all since {_utc(since)}"
    run.log_figure(figures.traffic(table, step, f"Requests: {times_of}", window), "traffic.png")
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
        f"{metrics['refused_share']:.2%} refused (4xx)"
    ]
    errors = records["error_code"].dropna().astype(str).value_counts()
    if len(errors):
        run.log_csv(errors.rename_axis("code").to_frame("records"), "errors.csv", index=True)
        most_frequent = ", ".join(f"{code} {number:,}" for code, number in errors.head(5).items())
        lines.append(f"Most frequent errors: {most_frequent}")
    if len(times):
        metrics |= {"p50_ms": float(times.quantile(0.5)), "p99_ms": float(times.quantile(0.99))}
        lines.append(f"Latency: p50 {metrics['p50_ms']:.1f} ms, p99 {metrics['p99_ms']:.1f} ms")
        run.log_figure(figures.latency(table, step, f"Latency: {times_of}", window), "latency.png")
    if len(answered):
        metrics["uncertain_share"] = float(answered["uncertain"].mean())
        lines.append(f"Images classified: {len(answered):,}")
    else:
        lines.append("No image was classified.")
    return lines, metrics


def _log_version(run: TrackedRun, served: ServedVersion) -> None:
    """Log the figures and tables of one version, in a folder with its name."""
    version, answers, folder = served.version, served.answers, served.folder
    if served.reference is not None and served.drift is not None and len(answers):
        tables = {feature: analysis.bins(answers, served.reference, feature) for feature in AXES}
        for name, (shown, features) in {
            "class_mix": ("predicted classes", ["label"]),
            "confidence": ("confidence of the answers", ["confidence"]),
            "brightness_contrast": ("brightness and contrast", ["brightness", "contrast"]),
        }.items():
            chosen = {feature: tables[feature] for feature in features}
            title = (
                f"{version}: {shown}\n{counted(len(answers), 'image')} served, "
                f"{served.reference['images']:,} in the reference"
            )
            run.log_figure(figures.beside_reference(chosen, AXES, title), f"{folder}/{name}.png")
        for feature, table in tables.items():
            run.log_csv(table, f"{folder}/{feature}.csv")
        run.log_csv(served.drift.rename(columns={"feature": "what"}), f"{folder}/drift.csv")
    if served.feedback is not None and served.feedback.known:
        live = served.feedback
        title = f"{version}: {counted(live.known, 'answer')} whose true class is known"
        run.log_figure(confusion_matrix(live.confusion, live.classes, title), f"{folder}/live_confusion.png")
        table = pd.DataFrame(live.confusion, pd.Index(live.classes, name="true"), list(live.classes))
        run.log_csv(table, f"{folder}/live_confusion.csv", index=True)


def _summary(served: ServedVersion) -> list[str]:
    lines = []
    if len(served.answers):
        share, usual = served.answers["uncertain"].mean(), served.uncertain_on_validation
        answers = counted(len(served.answers), "answer")
        beside = "" if usual is None else f"; {usual:.1%} on the validation images"
        lines.append(f"{served.version}: {share:.1%} of {answers} uncertain{beside}")
    if served.drift is None:
        lines.append(f"{served.version}: drift is unknown: {served.problem}")
    elif served.drift["psi"].isna().all():
        lines.append(f"{served.version}: too few images to compute drift ({len(served.answers):,})")
    else:
        found = served.drift.dropna(subset=["psi"])
        indices = ", ".join(f"{row.feature} {row.psi:.3f} ({row.verdict})" for row in found.itertuples())
        held_out = served.reference is not None and served.reference["split"] == "val"
        note = (
            "" if held_out else "; the reference consists of training images, so its confidence is too high"
        )
        lines.append(f"{served.version}: drift (PSI): {indices}{note}")
    if served.feedback is None:
        lines.append(f"{served.version}: no feedback yet, so the accuracy on these images is unknown")
    else:
        live = served.feedback
        low, high = live.interval
        f1 = (
            f" Macro F1 is {live.f1_macro:.3f} on the {live.known:,} whose true class is known."
            if live.known
            else ""
        )
        lines.append(
            f"{served.version}: of {counted(live.judged, 'answer')} with feedback, {live.accuracy:.1%} were "
            f"right (95 % confidence interval {low:.1%} to {high:.1%}, provided that people judged a random "
            f"sample).{f1}"
        )
    return lines


def _row(served: ServedVersion) -> dict[str, Any]:
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


def _metrics(served: ServedVersion) -> dict[str, float]:
    metrics: dict[str, float] = {}
    if served.drift is not None:
        psi = served.drift.set_index("feature")["psi"]
        metrics |= {f"psi/{feature}": float(value) for feature, value in psi.items()}
    if served.feedback is not None:
        metrics |= {
            "live/feedbacks": float(served.feedback.judged),
            "live/accuracy": served.feedback.accuracy,
            "live/f1_macro": served.feedback.f1_macro,
        }
    return metrics


def _utc(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}"
