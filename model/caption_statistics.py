"""What the captions of a split tell beside their scores: a row each, and the sum of them."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from model.decoding import Prediction
from model.metrics import CIDER
from model.vocabulary import SPECIALS, Vocabulary, tokenise

EXTREMES = 10
"""Captions listed as the best, and as the worst."""


def caption_rows(
    predictions: Sequence[Prediction],
    scores: Mapping[str, Mapping[str, float]],
    is_seen: Callable[[Sequence[int]], bool] | None,
) -> list[dict[str, Any]]:
    """One row an image, as JSON.

    Args:
      predictions: of the split.
      scores: of each image by its key.
      is_seen: whether training had a caption of these ids; None where that is not known.
    """
    return [
        {
            "key": prediction.key,
            "caption": prediction.caption,
            "log_prob": prediction.log_prob,
            "exact": is_exact(prediction),
            "seen": None if is_seen is None else is_seen(prediction.tokens),
            "words": len(prediction.tokens),
            **scores[prediction.key],
            "attention_entropy": prediction.attention_entropy,
            "references": list(prediction.references),
        }
        for prediction in predictions
    ]


def is_exact(prediction: Prediction) -> bool:
    """Whether a caption has the very words of one of its references."""
    words = tokenise(prediction.caption)
    return any(tokenise(reference) == words for reference in prediction.references)


def summarise(
    rows: Sequence[Mapping[str, Any]],
    predictions: Sequence[Prediction],
    vocabulary: Vocabulary,
    cells: int,
) -> dict[str, Any]:
    """Sum up a split, as JSON.

    Args:
      rows: of `caption_rows`, one or more.
      predictions: the same captions.
      vocabulary: of the captioner.
      cells: P, over which attention is spread.

    Returns:
      mean_words, mean_reference_words: of a caption and of a reference.
      unseen: share of captions that training did not have; None where that is not known.
      vocabulary_written: share of the vocabulary's words that some caption has.
      references_known: share of the references' words, each as often as it stands there, that
        the vocabulary has.
      mean_attention_entropy: over captions with a word, in nats; None without any.
      max_attention_entropy: log P.
      best, worst: the EXTREMES captions of highest and of lowest CIDEr-D, in that order.
    """
    references = [tokenise(text) for row in rows for text in row["references"]]
    ids = [index for words in references for index in vocabulary.encode_words(words)]
    written = {token for prediction in predictions for token in prediction.tokens}
    seen = [row["seen"] for row in rows]
    entropies = [row["attention_entropy"] for row in rows if row["words"]]
    return {
        "mean_words": _mean(row["words"] for row in rows),
        "mean_reference_words": _mean(map(len, references)),
        "unseen": None if None in seen else 1.0 - _mean(seen),
        "vocabulary_written": len(written) / max(len(vocabulary) - len(SPECIALS), 1),
        "references_known": _mean(index != vocabulary.unk_id for index in ids),
        "mean_attention_entropy": _mean(entropies) if entropies else None,
        "max_attention_entropy": math.log(cells),
        "best": _extremes(rows, sign=-1),
        "worst": _extremes(rows, sign=1),
    }


def _extremes(rows: Sequence[Mapping[str, Any]], sign: int) -> list[dict[str, Any]]:
    """The first captions by CIDEr-D, rising or (sign -1) falling; of equal ones, by key."""
    ordered = sorted(rows, key=lambda row: (sign * row[CIDER], row["key"]))
    return [{name: row[name] for name in ("key", "caption", CIDER)} for row in ordered[:EXTREMES]]


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return math.fsum(values) / len(values)
