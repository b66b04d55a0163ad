"""The answers of /predict and /invocations, made of what the pictures turned out to be."""

from collections.abc import Sequence
from typing import Any

from serving.app.champion import ServedModel
from serving.app.errors import Refusal, status_of
from serving.app.inference import Scored
from serving.app.pictures import Picture, data_url
from serving.app.request_context import RequestContext
from serving.app.uploads import Upload

NO_ANSWER: dict[str, Any] = {
    "label": None, "class_index": None, "confidence": None, "top_k": [], "uncertain": None
}  # fmt: skip


def answers(
    served: ServedModel, scored: Scored, top_k: int, exchange: RequestContext
) -> list[dict[str, Any]]:
    """One answer a picture, as the model gives them, with its `error`; and the records of the exchange."""
    good = served.scorer.answers(scored.scores, top_k) if scored.scores is not None else []
    energies = scored.scores.ood.tolist() if scored.scores is not None else []
    remaining = iter(zip(good, energies, strict=True))
    found = []
    for picture in scored.pictures:
        known = picture.known
        if picture.error is not None:
            error = {"code": picture.error.code, "message": picture.error.message}
            found.append({**NO_ANSWER, "error": error})
        else:
            answer, energy = next(remaining)
            known |= {key: answer[key] for key in ("label", "confidence", "uncertain")}
            known["ood"] = energy
            found.append({**answer, "error": None})
        exchange.pictures.append(known)
        exchange.files.append(picture.data)
    return found


def predictions(
    uploads: Sequence[Upload],
    pictures: Sequence[Picture],
    answers: Sequence[dict[str, Any]],
    with_input: bool,
) -> list[dict[str, Any]]:
    """What /predict says of each picture.

    Raises:
        Refusal: none of them is one.
    """
    errors = [picture.error for picture in pictures if picture.error is not None]
    if len(errors) == len(pictures):
        statuses = {status_of(error.code) for error in errors}
        raise Refusal(statuses.pop() if len(statuses) == 1 else 400, errors[0].code, errors[0].message)
    said = [{"filename": upload.filename, **answer} for upload, answer in zip(uploads, answers, strict=True)]
    if with_input:
        for prediction, picture in zip(said, pictures, strict=True):
            prediction["input"] = None if picture.pixels is None else data_url(picture.pixels)
    return said


def rows(
    pictures: Sequence[Picture], answers: Sequence[dict[str, Any]], on_error: str
) -> list[dict[str, Any]]:
    """What /invocations says of each row.

    Raises:
        Refusal: a row is no picture, and the request wants all or none.
    """
    if on_error == "null":
        return list(answers)
    for row, picture in enumerate(pictures):
        if picture.error is not None:
            raise Refusal(400, picture.error.code, f"row {row}: {picture.error.message}")
    return [{key: value for key, value in answer.items() if key != "error"} for answer in answers]
