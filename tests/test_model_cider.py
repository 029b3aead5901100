"""CIDEr-D over ids is coco-caption's."""

import numpy as np
from pycocoevalcap.cider.cider_scorer import CiderScorer, precook

from model.cider import CiderD

GENERATOR = np.random.default_rng(0)


def captions(images: int, most: int) -> list[list[list[int]]]:
    """One to `most` captions of up to 12 words an image; few words, so that n-grams repeat."""
    return [
        [
            GENERATOR.integers(0, 12, GENERATOR.integers(0, 13)).tolist()
            for _ in range(GENERATOR.integers(1, most + 1))
        ]
        for _ in range(images)
    ]


def text(ids: list[int]) -> str:
    return " ".join(f"w{number}" for number in ids)


def coco_caption(
    corpus: list[list[list[int]]], candidates: list[list[int]], references: list[list[list[int]]]
) -> np.ndarray:
    """Scores by coco-caption's own class, its document frequencies taken from a corpus."""
    counter = CiderScorer()
    counter.crefs = [[precook(text(ids)) for ids in truths] for truths in corpus]
    counter.compute_doc_freq()
    scorer = CiderScorer()
    for caption, truths in zip(candidates, references, strict=True):
        scorer += (text(caption), [text(ids) for ids in truths])
    scorer.document_frequency = counter.document_frequency
    # It takes the number of images from here, and stops at the last candidate.
    scorer.crefs += [[]] * (len(corpus) - len(references))
    return np.array(scorer.compute_cider())


def test_is_coco_captions_on_its_own_references() -> None:
    references = captions(60, 5)
    candidates = [truths[0] for truths in references[:20]] + [each[0] for each in captions(40, 1)]
    expected = coco_caption(references, candidates, references)
    found = CiderD(references).scores([[each] for each in candidates], references)
    np.testing.assert_allclose(found[:, 0], expected, atol=1e-6)
    assert expected.max() > 3


def test_weighs_ngrams_by_the_corpus_not_by_what_is_scored() -> None:
    corpus, references = captions(80, 3), captions(5, 4)
    several = [captions(1, 1)[0] + captions(1, 1)[0] for _ in references]
    found = CiderD(corpus).scores(several, references)
    for place in range(2):
        candidates = [each[place] for each in several]
        expected = coco_caption(corpus, candidates, references)
        np.testing.assert_allclose(found[:, place], expected, atol=1e-6)
    anew = CiderD(references).scores(several, references)
    assert np.abs(found - anew).max() > 0.01


def test_an_empty_caption_and_an_empty_reference_score_nothing() -> None:
    corpus = [[[1, 2, 3]], [[4, 5]]]
    np.testing.assert_array_equal(CiderD(corpus).scores([[[]]], [[[1, 2, 3]]]), [[0.0]])
    np.testing.assert_array_equal(CiderD(corpus).scores([[[1, 2]]], [[[]]]), [[0.0]])
