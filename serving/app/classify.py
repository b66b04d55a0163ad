"""Classify the images of one request, and record the answers in its context."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from starlette.requests import Request

from cifar_mlflow.scorer.predictor import Scorer, Scores
from serving.app.champion import ServedModel
from serving.app.decoding import DecodedImage
from serving.app.errors import Refusal
from serving.app.inference import Inference, Scored
from serving.app.request_context import RequestContext

DEFAULT_TOP_K = 3
NO_ANSWER: dict[str, Any] = {
    "label": None, "class_index": None, "confidence": None, "top_k": [], "uncertain": None
}  # fmt: skip


class Classified(NamedTuple):
    """Both lists are in the order of the request; each answer has an `error`, None or an object.

    `scores` has a row for each image without an error, or is None.
    """

    answers: list[dict[str, Any]]
    images: list[DecodedImage]
    scores: Scores | None
    decode_ms: float
    score_ms: float


async def classify(
    request: Request,
    inference: Inference,
    served: ServedModel,
    contents: Sequence[Any],
    top_k: int | None,
    explain: bool = False,
) -> Classified:
    """Return an answer for each image.

    Args:
        contents: bytes, or texts of base64 or data URLs.
        top_k: how many of the likeliest classes each answer has.
        explain: whether the scores need class maps.

    Raises:
        Refusal: 400, `top_k` is above the number of classes, or the model gives no maps; 503 or 504, see
            `Inference.score`.
        ClientGoneError: the client has disconnected.
    """
    classes = len(served.scorer.classes)
    if top_k is not None and top_k > classes:
        raise Refusal(400, "bad_param", f"top_k must be a whole number from 1 to {classes}.")
    if explain and not served.scorer.engine.explains:
        raise Refusal(
            400,
            "no_explanation",
            "This model cannot explain its answers: an earlier release registered it, or its architecture "
            "allows no exact map. Ask without explain, or register the model again.",
        )
    context: RequestContext = request.scope["context"]
    context.model_version = str(served)
    scored = await inference.score(request, served.scorer, contents, explain)
    answers = _answers(served.scorer, scored, top_k or min(DEFAULT_TOP_K, classes))
    context.pictures = [image.record for image in scored.images]
    context.files = [image.data for image in scored.images]
    return Classified(answers, scored.images, scored.scores, scored.decode_ms, scored.score_ms)


def _answers(scorer: Scorer, scored: Scored, top_k: int) -> list[dict[str, Any]]:
    """Return the answers, errors included; complete the records of the images that have one."""
    scores = scored.scores
    good = iter(zip(scorer.answers(scores, top_k), scores.ood.tolist(), strict=True)) if scores else iter(())
    answers = []
    for image in scored.images:
        if image.error is not None:
            error = {"code": image.error.code, "message": image.error.message}
            answers.append({**NO_ANSWER, "error": error})
            continue
        answer, ood = next(good)
        image.record.update(
            label=answer["label"],
            confidence=answer["confidence"],
            uncertain=answer["uncertain"],
            ood=ood,
            score_ms=scored.score_ms,
        )
        answers.append({**answer, "error": None})
    return answers
