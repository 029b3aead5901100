"""Captions a split with a trained captioner, or several together, and scores it as COCO does."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from model import metrics
from model.boxes import Boxes, read_boxes
from model.caption_statistics import caption_rows, summarise
from model.checkpoints import Trained, load_trained
from model.compatibility import check_ensemble, check_fingerprint, check_same_grids
from model.dataset import Split
from model.decoding import CaptionWriter, Prediction, WordModel, by_key
from model.ensemble import Ensemble
from model.errors import InvalidInput
from model.fine_tuning import grids_by
from model.pointing import Found, point, summarise_pointing
from model.records import Manifest
from model.training_captions import TrainingCaptions
from model.vocabulary import Vocabulary

BATCH_SIZE = 32


def evaluate(
    records: Path,
    model_dirs: Sequence[Path],
    split: str,
    beam_width: int | None,
    boxes: Path | None = None,
) -> dict[str, Any]:
    """Evaluate the best checkpoint of a model, or those of several models as one.

    Args:
      records: RECORDS, of the same encoder and preprocessing as the models'.
      model_dirs: MODEL_DIR, one or more; the first one's settings search.
      split: to caption.
      beam_width: instead of the model's own.
      boxes: COCO's instances JSON of the split, for the pointing score.

    Returns:
      The report, as JSON (docs/evaluation.md).

    Raises:
      InvalidInput: nothing to evaluate, records that do not fit the models, models that do
        not fit each other, or boxes that cannot be read.
    """
    objects = None if boxes is None else read_boxes(boxes)
    models = [load_trained(directory) for directory in model_dirs]
    names = [str(directory) for directory in model_dirs]
    vocabulary = models[0].vocabulary
    check_ensemble(
        [model.vocabulary for model in models], [model.manifest for model in models], names
    )
    manifest = Manifest.load(records)
    check_fingerprint(manifest, str(records))
    check_same_grids(models[0].manifest, manifest, str(records))
    chosen = Split(records, manifest, split)
    if chosen.num_images == 0:
        raise InvalidInput(f"split {split!r} of {records} has no images, expected at least one")
    search = models[0].config.search
    if beam_width is not None:
        search = replace(search, beam_width=beam_width)
    writer = CaptionWriter(_together(models), vocabulary, search, grids_by(models[0].encoder))
    predictions = list(writer.predictions(chosen, BATCH_SIZE))
    steps = [model.step for model in models]
    judged = _judge(predictions, records, manifest, vocabulary)
    if objects is not None:
        _add_pointing(judged, point(predictions, vocabulary, manifest, objects), objects)
    return {
        "model_dir": names[0] if len(names) == 1 else names,
        "step": steps[0] if len(steps) == 1 else steps,
        "split": split,
        "images": len(predictions),
        "beam_width": search.beam_width,
        "search": asdict(search),
        **judged,
    }


def _together(models: Sequence[Trained]) -> WordModel:
    if len(models) == 1:
        return models[0].captioner
    return Ensemble([model.captioner for model in models])


def _judge(
    predictions: list[Prediction], records: Path, manifest: Manifest, vocabulary: Vocabulary
) -> dict[str, Any]:
    """Scores, what is missing and why, the summary and a row an image."""
    scores = metrics.score_all(*by_key(predictions))
    is_seen: Callable[[Sequence[int]], bool] | None = None
    missing = scores.missing
    try:
        is_seen = TrainingCaptions(records, manifest, vocabulary).has
    except InvalidInput as error:
        # Scores need no training split: it may have been left where training was.
        missing = missing | {"seen": str(error)}
    rows = caption_rows(predictions, scores.per_image, is_seen)
    exact_match = sum(row["exact"] for row in rows) / len(rows)
    return {
        "scores": {**scores.values, "exact_match": exact_match},
        "missing": missing,
        "summary": summarise(rows, predictions, vocabulary, manifest.grid_shape[0]),
        "captions": rows,
    }


def _add_pointing(judged: dict[str, Any], found: Found, boxes: Boxes) -> None:
    """Add the pointing score to the scores, or why it is missing, and the rest where it belongs."""
    summary = summarise_pointing(found)
    score = summary.pop("score")
    if score is not None:
        judged["scores"]["pointing"] = score
    elif found:
        judged["missing"]["pointing"] = "no caption names an object that has a box"
    else:
        judged["missing"]["pointing"] = (
            f"{boxes.source} has none of the split's images by their file names, such as "
            f"{judged['captions'][0]['key']}"
        )
    judged["summary"]["pointing"] = summary
    for row in judged["captions"]:
        named = found.get(row["key"])
        row["pointing"] = None if named is None else [asdict(pointed) for pointed in named]
