"""Captions a split with a trained captioner and scores it as COCO does."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from model import metrics
from model.checkpoints import load_trained
from model.compatibility import check_fingerprint, check_same_grids
from model.dataset import Split
from model.decoding import CaptionWriter, Prediction
from model.errors import InvalidInput
from model.records import Manifest
from model.vocabulary import tokenise

BATCH_SIZE = 32


def evaluate(records: Path, model_dir: Path, split: str, beam_width: int | None) -> dict[str, Any]:
    """Evaluate the best checkpoint of a model.

    Args:
      records: RECORDS, of the same encoder and preprocessing as the model's.
      model_dir: MODEL_DIR.
      split: to caption.
      beam_width: instead of the model's own.

    Returns:
      The report, as JSON: model step, split, search, scores, missing metrics and their
      reasons, and a row an image.

    Raises:
      InvalidInput: nothing to evaluate, or records that do not fit the model.
    """
    trained = load_trained(model_dir)
    manifest = Manifest.load(records)
    check_fingerprint(manifest, str(records))
    check_same_grids(trained.manifest, manifest, str(records))
    chosen = Split(records, manifest, split)
    if chosen.num_images == 0:
        raise InvalidInput(f"split {split!r} of {records} has no images, expected at least one")
    search = trained.config.search
    if beam_width is not None:
        search = replace(search, beam_width=beam_width)
    writer = CaptionWriter(trained.captioner, trained.vocabulary, search)
    predictions = list(writer.predictions(chosen, BATCH_SIZE))
    return {
        "model_dir": str(model_dir),
        "step": trained.step,
        "split": split,
        "images": len(predictions),
        "beam_width": search.beam_width,
        **score_predictions(predictions),
        "captions": [
            {
                "key": prediction.key,
                "caption": prediction.caption,
                "log_prob": prediction.log_prob,
                "exact": is_exact(prediction),
                "references": list(prediction.references),
            }
            for prediction in predictions
        ],
    }


def score_predictions(predictions: list[Prediction]) -> dict[str, Any]:
    """Scores of a list of predictions, and why any is missing.

    Returns:
      {"scores": {name: value, "exact_match": share of captions that are, word for word, one
      of their references}, "missing": {name: reason}}.
    """
    candidates = {prediction.key: prediction.caption for prediction in predictions}
    references = {prediction.key: prediction.references for prediction in predictions}
    computed = metrics.score_all(candidates, references)
    exact_match = sum(map(is_exact, predictions)) / len(predictions)
    return {
        "scores": {**computed.values, "exact_match": exact_match},
        "missing": computed.missing,
    }


def is_exact(prediction: Prediction) -> bool:
    """Whether a caption has the very words of one of its references."""
    words = tokenise(prediction.caption)
    return any(tokenise(reference) == words for reference in prediction.references)
