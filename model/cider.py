"""CIDEr-D over word ids, its document frequencies counted once (Vedantam et al. 2015).

The same arithmetic as coco-caption's `cider_scorer`, which counts them anew in the references of
each set of images that it scores; as a reward, n-grams must weigh the same in every batch.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

Ids = Sequence[int]
_Ngram = tuple[int, ...]

_ORDERS = 4
_SIGMA = 6.0
# coco-caption's scale: 10 is a caption equal to each of its references.
_SCALE = 10.0


class CiderD:
    """CIDEr-D, with the n-gram weights of a corpus.

    Args:
      corpus: the references of each image, as ids of words; `<end>` among them if it is to count.
    """

    def __init__(self, corpus: Iterable[Iterable[Ids]]) -> None:
        frequencies: Counter[_Ngram] = Counter()
        images = 0
        for references in corpus:
            images += 1
            frequencies.update({ngram for ids in references for ngram in _ngrams(ids)})
        # What no reference has is as rare as what one image's have.
        self._rarest = math.log(max(images, 1))
        self._weights = {
            ngram: self._rarest - math.log(count) for ngram, count in frequencies.items()
        }

    def scores(
        self, candidates: Iterable[Iterable[Ids]], references: Iterable[Iterable[Ids]]
    ) -> np.ndarray:
        """Score captions of images.

        Args:
          candidates: captions of each image, as many for one as for another.
          references: of each image, one or more.

        Returns:
          0 to 10, float32 [N, K].
        """
        rows = []
        for captions, truths in zip(candidates, references, strict=True):
            vectors = [self._vector(ids) for ids in truths]
            rows.append([self._score(self._vector(ids), vectors) for ids in captions])
        return np.array(rows, np.float32)

    def _vector(self, ids: Ids) -> "_Vector":
        return _Vector(_ngrams(ids), self._weights, self._rarest)

    def _score(self, candidate: "_Vector", references: Sequence["_Vector"]) -> float:
        similar = sum(_similarity(candidate, reference) for reference in references)
        return _SCALE * similar / _ORDERS / len(references)


class _Vector:
    """A caption's n-grams, weighted.

    Attributes:
      weights: of its n-grams, for each order.
      norms: Euclidean, for each order.
      length: coco-caption's, the number of bigrams.
    """

    def __init__(
        self, ngrams: Iterable[_Ngram], weights: dict[_Ngram, float], rarest: float
    ) -> None:
        counts = Counter(ngrams)
        self.weights: list[dict[_Ngram, float]] = [{} for _ in range(_ORDERS)]
        for ngram, count in counts.items():
            self.weights[len(ngram) - 1][ngram] = count * weights.get(ngram, rarest)
        self.norms = [
            math.sqrt(sum(weight * weight for weight in each.values())) for each in self.weights
        ]
        self.length = sum(count for ngram, count in counts.items() if len(ngram) == 2)


def _ngrams(ids: Ids) -> list[_Ngram]:
    words = tuple(ids)
    return [
        words[first : first + order]
        for order in range(1, _ORDERS + 1)
        for first in range(len(words) - order + 1)
    ]


def _similarity(candidate: _Vector, reference: _Vector) -> float:
    """Sum over orders of the clipped cosine, less for a length that is another."""
    total = 0.0
    for order in range(_ORDERS):
        norms = candidate.norms[order] * reference.norms[order]
        if norms == 0.0:
            continue
        truth = reference.weights[order]
        shared = 0.0
        for ngram, weight in candidate.weights[order].items():
            wanted = truth.get(ngram)
            if wanted is not None:
                shared += min(weight, wanted) * wanted
        total += shared / norms
    difference = candidate.length - reference.length
    return total * math.exp(-(difference**2) / (2 * _SIGMA**2))
