"""The charts of a study: readable, and drawn without side effects."""

import warnings

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from optuna.trial import TrialState, create_trial

from tests.tuning.studies import ONE, SPACE, TWO, make_study, search, trial
from tuning.plots import CHARTS, html_figure, missing_charts, png_figure
from tuning.report import snapshot

LONG_NAME = "weight_decay.model=cnn+fast,optimizer=sgd"


def test_charts_are_drawn_without_warnings_or_traces_in_global_state() -> None:
    study = snapshot(make_study([*search(40), trial(TrialState.RUNNING, curve=(0.3, 0.4))]))
    mpl.use("agg")
    style = dict(mpl.rcParams)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in CHARTS.keys() - missing_charts(study).keys():
            FigureCanvasAgg(png_figure(study, name)).draw()
            html_figure(study, name)
    assert dict(mpl.rcParams) == style
    assert plt.get_fignums() == []


def test_every_chart_names_the_split() -> None:
    study = snapshot(make_study(search(40)))
    for name in CHARTS.keys() - missing_charts(study).keys():
        assert "validation split" in png_figure(study, name).get_suptitle()


@pytest.mark.parametrize("name", ["slices", "parallel_coordinates"])
def test_long_names_of_parameters_fit_into_the_figure(name: str) -> None:
    params = {"mixup": 0.5, "cutout": 4, "lr.sgd": 0.1, "model": "cnn"}
    values = [trial(values=(0.5 + i / 10,), params={**params, LONG_NAME: 0.5 + i / 5}) for i in range(3)]
    figure = png_figure(snapshot(make_study(values)), name)
    FigureCanvasAgg(figure).draw()
    texts = [text for ax in figure.axes for text in (ax.xaxis.label, *ax.get_xticklabels())]
    shown, *_ = [text for text in texts if text.get_text().replace("\n", "") == LONG_NAME]
    box, limits = shown.get_window_extent(), figure.bbox
    assert limits.x0 <= box.x0 < box.x1 <= limits.x1
    assert limits.y0 <= box.y0 < box.y1 <= limits.y1


def test_the_labels_of_parallel_coordinates_are_those_of_the_values() -> None:
    """Optuna's own are truncated."""
    trials = [
        trial(values=(0.5, 3.0), params={LONG_NAME: 1.25, "cutout": 8}),
        *[trial(values=(0.4, 2.0))] * 2,
    ]
    figure = html_figure(snapshot(make_study(trials, TWO)), "parallel_coordinates")
    labels = [label.replace("<br>", "") for label in figure.layout.xaxis.ticktext]
    (line,) = [line for line in figure.data if line.customdata is not None and line.customdata[0][1] == "0.5"]
    values = dict(zip(labels, [value for _, value in line.customdata], strict=True))
    assert (values["latency_ms"], values["cutout"], values[LONG_NAME]) == ("3", "8", "1.25")


def test_the_history_shows_pruned_trials_and_names_them() -> None:
    study = snapshot(make_study([trial(values=(0.5,)), trial(TrialState.PRUNED, curve=(0.1, 0.2))]))
    names = ["complete", "best so far", "pruned, last value"]
    figure = png_figure(study, "history")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == names
    assert np.asarray(figure.axes[0].collections[-1].get_offsets()).tolist() == [[1, 0.2]]
    traces = {trace.name: trace for trace in html_figure(study, "history").data}
    assert [*traces] == names
    assert (*traces[names[2]].x, *traces[names[2]].y) == (1, 0.2)


@pytest.mark.parametrize("objectives", [ONE, TWO])
@pytest.mark.parametrize("name", ["slices", "parallel_coordinates"])
def test_no_trial_is_nearly_white(name: str, objectives: tuple[str, ...]) -> None:
    values = [(0.1 * (i + 1), 3.0 + i % 2)[: len(objectives)] for i in range(3)]
    study = snapshot(
        make_study([trial(values=each, params={"mixup": each[0]}) for each in values], objectives)
    )
    shown = png_figure(study, name).axes[0].collections[0]
    colors = shown.to_rgba(np.asarray(shown.get_array()))[:, :3]
    assert colors.min(axis=1).max() < 0.7
    assert len({*map(tuple, colors)}) > 1


def test_the_charts_of_many_parameters_form_a_grid() -> None:
    first = {"mixup": 0.5, "cutout": 4, "lr.sgd": 0.1, "width": 1.0, "model": "cnn", LONG_NAME: 1.0}
    second = {"mixup": 0.6, "cutout": 8, "lr.sgd": 0.2, "width": 0.5, "model": "resnet18", LONG_NAME: 1.5}
    study = make_study([trial(values=(0.5,), params=first), trial(values=(0.6,), params=second)])
    figure = png_figure(snapshot(study), "slices")
    FigureCanvasAgg(figure).draw()
    charts = [ax for ax in figure.axes if ax.get_xlabel()]
    assert len(charts) == len(SPACE) == 6
    assert len({round(ax.get_position().y0, 2) for ax in charts}) == 2
    boxes = [ax.get_window_extent() for ax in charts]
    assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])


def test_only_parameters_that_differ_between_trials_are_drawn() -> None:
    trials = [trial(values=(i / 10,), params={"model": "cnn", "mixup": i / 5}) for i in range(5)]
    study = snapshot(make_study(trials))
    slices = png_figure(study, "slices")
    assert [ax.get_xlabel() for ax in slices.axes if ax.get_xlabel()] == ["mixup"]
    parallel = png_figure(study, "parallel_coordinates")
    assert [text.get_text() for text in parallel.axes[0].get_xticklabels()] == ["val/accuracy", "mixup"]


def test_charts_of_parameters_need_some_complete_trials_that_differ_and_say_so() -> None:
    reasons = missing_charts(make_study([trial(values=(0.5,)), create_trial(state=TrialState.FAIL)]))
    assert reasons["slices"] == "needs 5 complete trials; there is one"
    assert missing_charts(make_study([trial(values=(0.5,))] * 5))["slices"] == (
        "needs a parameter that differs between trials; there is none"
    )
    assert reasons["pareto_front"] == "needs two objectives"
    assert reasons["intermediate_values"] == "needs a trial that has reported an epoch; there is none"
    assert "history" not in reasons


def test_a_pareto_front_replaces_the_accuracies_by_epoch() -> None:
    study = make_study([trial(values=(0.5 + i / 10, 3.0 - i)) for i in range(3)], TWO)
    reasons = missing_charts(study)
    assert reasons["intermediate_values"] == "needs a single objective; see the run of each trial"
    assert "pareto_front" not in reasons
