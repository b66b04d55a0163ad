"""The Python snippets of docs/export.md: each loads a file and gives the label of the scorer."""

import re
import shutil
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest

from cifar_mlflow.cli import EXPORT_FORMATS
from cifar_mlflow.evaluation.predict import predict_logits
from cifar_mlflow.export.format import ExportFormat
from cifar_mlflow.scorer.preprocess import decode_image
from cifar_mlflow.verb_config import ExportConfig
from tests.export.models import to_export

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/export.md").read_text()
SNIPPETS = dict(re.findall(r"^```python (\S+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL))
SLOW = {"pt2", "savedmodel", "keras", "h5", "litert", "executorch"}


@pytest.mark.parametrize(
    "snippet",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name
        for name in SNIPPETS
        if name != "preprocessing"
    ],
)
@pytest.mark.slow
def test_the_snippet_gives_the_label_of_the_scorer(
    snippet: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, _, option = snippet.partition("-with-")
    form: ExportFormat = resolve_name(EXPORT_FORMATS[name])
    if command := form.missing(ExportConfig()):
        pytest.skip(command)
    monkeypatch.chdir(tmp_path)
    model = to_export("fast", config=ExportConfig(with_preprocessing=bool(option)))
    form.write(model, tmp_path)
    labels = set()
    for photo in sorted((ROOT / "serving/examples").glob("*.png")):
        shutil.copy(photo, "photo.png")
        variables: dict[str, Any] = {}
        exec(SNIPPETS["preprocessing"] + SNIPPETS[snippet], variables)
        logits = predict_logits(model.classifier, decode_image(photo.read_bytes(), 32)[None])
        assert variables["label"] == model.card.classes[logits[0].argmax()]
        labels.add(variables["label"])
    assert len(labels) > 1


def test_every_format_is_documented() -> None:
    ours = {name for name, place in EXPORT_FORMATS.items() if place.startswith("cifar_mlflow.")}
    assert ours <= SNIPPETS.keys()
    table = TEXT.partition("## Measured")[0]
    for name, place in EXPORT_FORMATS.items():
        form: ExportFormat = resolve_name(place)
        (row,) = [line for line in table.splitlines() if line.startswith("|") and f"`{name}`" in line]
        assert f"| {', '.join(form.precisions)} |" in row
        assert (f"pip install -e '.[{form.extra}]'" in row) == (form.extra is not None)
