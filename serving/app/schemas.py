"""The JSON of the HTTP API: request bodies and responses, as pydantic models that OpenAPI is made from."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, WithJsonSchema, model_validator

from cifar_mlflow.models.card import AbstentionInfo, ClassMapInfo, OodInfo

Probability = Annotated[float, Field(ge=0, le=1)]
# Any value is accepted here: a wrong one becomes the error of its image, not of the request.
EncodedImage = Annotated[
    Any, WithJsonSchema({"type": "string", "description": "An image as base64 text or as a data URL."})
]

REQUEST_ID = (
    "For /feedback. Also in the header X-Request-ID, or X-Feedback-Id if the request had an X-Request-ID."
)


class ErrorDetail(BaseModel):
    code: str = Field(description="For programs; docs/service.md lists the codes.")
    message: str = Field(description="A sentence for people.")


class ErrorResponse(BaseModel):
    """The body of every response with a status of 400 or above."""

    error: ErrorDetail


class ModelName(BaseModel):
    name: str = Field(description="Name of the registered model.")
    version: str = Field(description="Version in the registry; a run id if the model is not registered.")


class RankedClass(BaseModel):
    label: str = Field(description="Name of the class.")
    confidence: Probability = Field(description="Calibrated probability of the class.")


class Answer(BaseModel):
    """The answer for one image; every field is null (`top_k` is empty) if the image has an error."""

    label: str | None = Field(description="Name of the likeliest class.")
    class_index: Annotated[int, Field(ge=0)] | None = Field(description="Index of that class, from 0.")
    confidence: Probability | None = Field(description="Calibrated probability of that class.")
    top_k: list[RankedClass] = Field(description="The likeliest classes, the most likely first.")
    uncertain: bool | None = Field(description="Whether the model is too unsure to be relied on.")


class Explanation(BaseModel):
    """The contribution of each part of the image to the logit of a class."""

    label: str = Field(description="Name of the class that is explained: the likeliest one.")
    class_map: list[list[float]] = Field(
        description="Rows of numbers that sum to the logit of the class. They are `class_map.stride` (see "
        "/model) pixels of the network's input apart."
    )
    overlay: str = Field(
        description="The image that the network saw, red where it speaks for the class and blue where it "
        "speaks against it, as a data URL of a PNG."
    )


class Prediction(Answer):
    filename: str | None = Field(description="Name of the uploaded file, without folders.")
    error: ErrorDetail | None = Field(description="Why this image has no answer.")
    input: str | None = Field(
        default=None, description="With `input=true`: the image that the network saw, as a data URL of a PNG."
    )
    explanation: Explanation | None = Field(
        default=None, description="With `explain=true`: why the image has this answer."
    )


class Timings(BaseModel):
    """Milliseconds spent on the request."""

    decode: float = Field(description="Decoding of the images.")
    score: float = Field(description="Waiting for the network, and inference.")
    total: float = Field(description="From the first byte of the request to the response.")


class PredictParameters(BaseModel):
    """The query parameters of /predict."""

    top_k: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="How many of the likeliest classes to return; default 3, at most all."
    )
    input: bool = Field(
        default=False,
        description="Whether to return the image that the network saw, as a data URL of a PNG.",
    )
    explain: bool = Field(
        default=False,
        description="Whether to return what each part of the image adds to the answer, as numbers and as a "
        "picture. Some networks, and models that earlier releases registered, cannot: status 400, code "
        "`no_explanation`.",
    )


class PredictResponse(BaseModel):
    request_id: str = Field(description=REQUEST_ID)
    model: ModelName
    predictions: list[Prediction] = Field(description="One per image, in the order of the request.")
    timings_ms: Timings


class InvocationsRow(Answer):
    error: ErrorDetail | None = Field(
        default=None, description='With `on_error` "null" only: why this row has no answer.'
    )


class InvocationsResponse(BaseModel):
    predictions: list[InvocationsRow] = Field(description="One per row, in the order of the table.")


class ReadyResponse(BaseModel):
    ready: Literal[True]
    model: ModelName
    problems: list[str] = Field(description="What an operator should look at although the service works.")


class TrainingData(BaseModel):
    data: str = Field(description="Name of the data set.")
    data_digest: str = Field(description="sha256 of the data set.")
    val_size: float | None = Field(description="Held out for validation: a share or a number of images.")
    split_seed: int | None = Field(description="Seed of that split.")


class ModelResponse(BaseModel):
    """The served model: its `ServedCard`, and what the registry knows about it."""

    name: str = Field(description="Name of the registered model.")
    version: str = Field(description="Version in the registry; a run id if the model is not registered.")
    alias: str | None = Field(description="Alias that the server follows.")
    run_id: str = Field(description="MLflow run that trained the model.")
    run_url: str | None = Field(description="Page of that run in MLflow, if its address is known.")
    versions_url: str | None = Field(description="Page of the versions in MLflow, if its address is known.")
    model: str | None = Field(description="Name of the architecture.")
    classes: list[str] = Field(description="Names of the classes; their order is that of `class_index`.")
    precision: str = Field(description="fp32 or int8.")
    image_size: int = Field(description="Side in pixels of the images that the network takes.")
    fit: str = Field(description="How an image that is not square is prepared: crop or squash.")
    temperature: float = Field(description="Divides the logits before the softmax (calibration).")
    uncertain: AbstentionInfo = Field(description="The confidence below which an answer is uncertain.")
    ood: OodInfo = Field(description="The threshold above which an image is unlike the training images.")
    class_map: ClassMapInfo | None = Field(
        description="The maps of `explain=true`: their rows and columns, and how many pixels of the input "
        "of the network these are apart; null if the model gives no maps."
    )
    metrics: dict[str, float] = Field(description="Named as in the MLflow run; accuracies are from 0 to 1.")
    trained_on: TrainingData
    decision: str | None = Field(description="Why the network is fp32 or int8.")
    promotion: str | None = Field(description="What it replaced as champion, and why, if it was forced.")
    promoted_at: str | None = Field(description="When it was promoted, in ISO 8601.")


class Feedback(BaseModel):
    """Feedback of a person on an answer."""

    model_config = ConfigDict(extra="forbid", strict=True)

    request_id: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$", description="From the response to /predict.")
    item: int = Field(default=0, ge=0, lt=10_000, description="Which image of the request, from 0.")
    correct: bool | None = Field(default=None, description="Whether the label was right.")
    label: str | None = Field(default=None, description="The right label, one of the model's classes.")


class _OnlyItsFields(BaseModel):
    """Base of objects from clients: one error for all other fields, because each error takes much memory."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _has_no_other_fields(cls, value: Any) -> Any:
        if isinstance(value, dict) and not value.keys() <= cls.model_fields.keys():
            raise ValueError("there are other fields")
        return value


class SingleImage(_OnlyItsFields):
    image: EncodedImage


class ImageList(_OnlyItsFields):
    images: list[EncodedImage] = Field(min_length=1)


class DataframeSplit(_OnlyItsFields):
    """A table as `DataFrame.to_dict(orient="split")` gives it."""

    columns: list[str | int] = Field(
        fail_fast=True, description="Names of the columns; one of them is `image`."
    )
    data: list[list[EncodedImage]] = Field(
        fail_fast=True, description="The rows, each with one cell per column."
    )
    index: list[Any] | None = Field(default=None, description="Ignored.")

    @model_validator(mode="after")
    def _rows_fit_columns(self) -> "DataframeSplit":
        if len(set(self.columns)) < len(self.columns):
            raise ValueError("two columns have the same name")
        if any(len(row) != len(self.columns) for row in self.data):
            raise ValueError("a row does not have one cell per column")
        return self

    def column(self, name: str) -> list[Any] | None:
        if name not in self.columns:
            return None
        position = self.columns.index(name)
        return [row[position] for row in self.data]


class InvocationsParams(BaseModel):
    """The parameters of the model's signature; others are ignored, as MLflow does."""

    model_config = ConfigDict(strict=True)

    top_k: int | None = Field(default=None, ge=1, description="How many of the likeliest classes to return.")
    on_error: Literal["raise", "null"] = Field(
        default="raise", description="Whether one bad image fails the request or only its row."
    )


Columns = dict[str, list[EncodedImage] | EncodedImage]


class InvocationsBody(BaseModel):
    """A table in MLflow's JSON. Exactly one of the four formats must be given."""

    dataframe_split: DataframeSplit | None = None
    dataframe_records: list[dict[str, EncodedImage]] | None = Field(
        default=None, fail_fast=True, description="Rows as objects."
    )
    inputs: list[EncodedImage] | Columns | None = Field(
        default=None, description="Images, rows as objects, or an object of columns."
    )
    instances: list[EncodedImage] | Columns | None = Field(default=None, description="As `inputs`.")
    params: InvocationsParams | None = None


class OpenInferenceError(BaseModel):
    """The body of every error below /v2."""

    error: str = Field(description="A sentence for people.")


class ServerMetadata(BaseModel):
    name: str
    version: str = Field(description="Version of the HTTP API.")
    extensions: list[str] = Field(description="Extensions of the protocol that the server supports.")


class LiveResponse(BaseModel):
    live: Literal[True]


class ServerReadyResponse(BaseModel):
    ready: Literal[True]


class ModelReadyResponse(BaseModel):
    name: str
    ready: Literal[True]


class TensorMetadata(BaseModel):
    name: str
    datatype: str
    shape: list[int] = Field(description="-1 stands for any size.")


class ModelMetadata(BaseModel):
    name: str
    versions: list[str] = Field(description="The version that is served.")
    platform: str
    inputs: list[TensorMetadata] = Field(description="A request has one of them.")
    outputs: list[TensorMetadata]


InputName = Literal["image", "pixels"]
OutputName = Literal["label", "class_index", "probabilities", "uncertain"]


class InputParameters(_OnlyItsFields):
    binary_data_size: StrictInt | None = Field(
        default=None, ge=0, description="Number of bytes of the tensor, which follow the JSON."
    )


class InferInput(BaseModel):
    """A batch of images: files as BYTES of shape [n] or [n, 1], or RGB values as UINT8 of [n, h, w, 3]."""

    name: InputName
    datatype: Literal["BYTES", "UINT8"] = Field(description="BYTES for `image`, UINT8 for `pixels`.")
    shape: list[Annotated[StrictInt, Field(ge=0)]] = Field(min_length=1, max_length=4, fail_fast=True)
    parameters: InputParameters = InputParameters()
    data: list[Any] | None = Field(
        default=None,
        description="The elements, flat or nested: base64 text or data URLs for `image`, whole numbers from "
        "0 to 255 for `pixels`. Absent if `binary_data_size` is given.",
    )


class OutputParameters(_OnlyItsFields):
    binary_data: StrictBool | None = Field(
        default=None, description="Whether the tensor follows the JSON of the response as bytes."
    )


class RequestedOutput(BaseModel):
    name: OutputName
    parameters: OutputParameters = OutputParameters()


class InferParameters(_OnlyItsFields):
    binary_data_output: StrictBool = Field(
        default=False, description="The value of `binary_data` for outputs that do not set it."
    )


class InferRequest(BaseModel):
    """A request of the Open Inference Protocol v2; unknown parameters are refused, other fields ignored."""

    id: str | None = Field(default=None, description="Returned in the response.")
    parameters: InferParameters = InferParameters()
    inputs: list[InferInput] = Field(min_length=1, max_length=1, fail_fast=True)
    outputs: list[RequestedOutput] | None = Field(
        default=None, max_length=4, fail_fast=True, description="The tensors to return; default all."
    )


class TensorSize(BaseModel):
    binary_data_size: int = Field(description="Number of bytes of the tensor, which follow the JSON.")


class InferOutput(TensorMetadata):
    """A tensor with a row per image; it has `data`, flat, or its size in `parameters`."""

    shape: list[int]
    data: list[str | float | bool] | None = None
    parameters: TensorSize | None = None


class InferResponseParameters(BaseModel):
    request_id: str = Field(description=REQUEST_ID)


class InferResponse(BaseModel):
    id: str | None = Field(default=None, description="Id of the request; absent if it had none.")
    model_name: str
    model_version: str
    parameters: InferResponseParameters
    outputs: list[InferOutput]
