"""The one description of a model: written when it is trained, extended when it is registered.

`ModelCard` travels with the weights (safetensors header, HDF5 attributes, ONNX metadata, MLflow metadata).
`ServedCard` is `scorer.json` in every registered model, GET /model, and the source of a version's tags. The
scorer itself reads `scorer.json` as a plain dictionary, since it must run without pydantic.

Field names are file formats: do not rename them. Unknown keys are ignored, so that an older release reads
what a newer one wrote.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Card(BaseModel):
    """The fields that both cards have.

    Attributes:
        classes: names, in the order of the logits.
        image_size: side of the input in pixels.
        temperature: divides the logits before the softmax.
        data, data_digest: name and sha256 of the data set.
        val_size, split_seed: which training images were held out for validation.
        metrics: named as in the MLflow run (`test/accuracy`, 0..1).
    """

    model_config = ConfigDict(frozen=True)

    classes: tuple[str, ...]
    image_size: int
    temperature: float = 1.0
    data: str = ""
    data_digest: str = ""
    val_size: float = 0.0
    split_seed: int = 0
    run_id: str = ""
    metrics: dict[str, float] = Field(default_factory=dict)


class ModelCard(_Card):
    """The description of a trained network.

    Attributes:
        model: name of the architecture, as `build_network` takes it.
        mean, std: per channel (R, G, B), for pixels in 0..1.
    """

    model: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    width: float = 1.0
    dropout: float = 0.0

    @property
    def file_stem(self) -> str:
        """The name of the architecture as part of a file name: `torchvision-resnet18`."""
        return self.model.replace("/", "-")


class AbstentionInfo(BaseModel):
    """The confidence threshold below which an answer is uncertain; above 1, every answer is.

    `coverage` is the share of validation images that are answered with certainty, None if no images were held
    out, and `accuracy` the share of right answers among them, None if there are none. `reason` says why the
    target accuracy is not kept or not verified; it is None if the certain answers reach it.
    """

    model_config = ConfigDict(frozen=True)

    confidence_below: float
    target_accuracy: float
    coverage: float | None
    accuracy: float | None
    reason: str | None = None


class OodInfo(BaseModel):
    """The threshold above which an image counts as unlike the training images.

    `score` is the energy of the logits, in models of this release plus the distance of the features (see
    `evaluation.feature_distance`).

    `auroc` has, per kind of out-of-distribution image, the area under the ROC curve of the score, 0..1:
    how well it separates these images from validation images.
    """

    model_config = ConfigDict(frozen=True)

    score: Literal["energy", "energy+distance"] = "energy"
    above: float
    auroc: dict[str, float] = Field(default_factory=dict)


class ClassMapInfo(BaseModel):
    """The class activation maps that a model gives on demand (see `evaluation.class_map`).

    Attributes:
        side: rows and columns of a map.
        stride: pixels of the network's input from one position to the next, from the upper left corner.
    """

    model_config = ConfigDict(frozen=True)

    side: int
    stride: int


class ServedCard(_Card):
    """The content of `scorer.json`: a model as it is served.

    Attributes:
        format: version of the folder format, `scorer.predictor.FORMAT`.
        model: name of the architecture; None in a folder that `register` did not write.
        fit: how an image that is not square is brought to `image_size`.
        reference: statistics of the validation images, for drift (see `serving.monitoring.drift`); None in
            models that were registered before drift was measured.
        class_map: None in models that give no maps, such as those of earlier releases.
        files: sha256 by name of each other file in the folder.
    """

    format: int
    model: str | None = None
    fit: str = "crop"
    precision: Literal["fp32", "int8"]
    uncertain: AbstentionInfo
    ood: OodInfo
    reference: dict[str, Any] | None = None
    class_map: ClassMapInfo | None = None
    files: dict[str, str] = Field(default_factory=dict)
