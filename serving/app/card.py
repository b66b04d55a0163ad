"""What the service says of the model it serves."""

from typing import Any

from serving.app.champion import ServedModel


def model_card(served: ServedModel) -> dict[str, Any]:
    """The card that travels with the model, and what the registry adds."""
    card = served.scorer.card
    return {
        "name": served.name,
        "version": served.version,
        "alias": served.alias,
        "run_id": card["run_id"],
        "model": card.get("model"),
        "classes": served.scorer.classes,
        "precision": card["precision"],
        "image_size": served.scorer.image_size,
        "fit": card["fit"],
        "temperature": card["temperature"],
        "uncertain": card["uncertain"],
        "ood": card["ood"],
        "metrics": card["metrics"],
        "trained_on": {
            "data": card["data"],
            "data_digest": card["data_digest"],
            "val_size": card.get("val_size"),
            "split_seed": card.get("split_seed"),
        },
        "decision": served.tags.get("decision"),
        "promoted_at": served.tags.get("promoted_at"),
    }
