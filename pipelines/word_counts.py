"""The vocabulary, counted in Beam from the training split's specs.

A pipeline of its own: its result reaches the next one as a file path, not as a side input.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

import apache_beam as beam
from apache_beam.transforms.combiners import ToListCombineFn

from model.errors import InvalidInput, ItemFailure
from model.vocabulary import SPECIALS, Vocabulary
from pipelines import coco, storage
from pipelines.lease import Lease
from pipelines.runner import is_dry_run
from pipelines.shards import FileDoFn, carried_errors, check_made, run_pipeline


def write_vocabulary(
    specs: Sequence[str],
    path: str,
    min_count: int,
    beam_args: Sequence[str],
    lease: Lease | None,
) -> None:
    """Count the words of the captions in spec files and write the vocabulary.

    Args:
      specs: paths of the training split's spec files.
      path: where the vocabulary goes.
      min_count: how often a word must be seen.
      beam_args: Beam's own flags.
      lease: the launch's right to write there; None where nobody else can.

    Raises:
      InvalidInput: no word is seen that often, or another launch took over.
      CheckFailed: the runner made no vocabulary.
    """
    with run_pipeline(beam_args) as pipeline:
        _ = (
            pipeline
            | "Specs" >> beam.Create(specs)
            | "Spread" >> beam.Reshuffle()
            | "Words" >> beam.ParDo(_Words(beam_args))
            | "Count" >> beam.CombinePerKey(sum)
            | "Collect" >> beam.CombineGlobally(ToListCombineFn())
            | "Publish" >> beam.ParDo(_Publish(path, min_count, beam_args, lease))
        )
    if not is_dry_run(beam_args):
        check_made(path)


def word_counts(spec: str) -> Iterator[tuple[str, int]]:
    """(word, how often) over the valid captions of one spec file."""
    counts: Counter[str] = Counter()
    for item in storage.read_json_lines(spec):
        for annotation_id, caption in item["captions"]:
            try:
                counts.update(coco.words_of(annotation_id, caption))
            except ItemFailure:
                # Its row is written with its image's shard.
                continue
    yield from counts.items()


class _Words(FileDoFn):
    """Path of a spec file → its (word, count)."""

    def process(self, spec: str) -> Iterator[tuple[str, int]]:
        yield from word_counts(spec)


class _Publish(FileDoFn):
    """All (word, count) → vocabulary.json."""

    def __init__(
        self, path: str, min_count: int, beam_args: Sequence[str], lease: Lease | None
    ) -> None:
        super().__init__(beam_args)
        self._path, self._min_count, self._lease = path, min_count, lease

    def process(self, counts: list[tuple[str, int]]) -> Iterator[int]:
        with carried_errors(self._path):
            vocabulary = Vocabulary.build(dict(counts), self._min_count)
            if len(vocabulary) == len(SPECIALS):
                most = max((count for _, count in counts), default=0)
                raise InvalidInput(
                    f"min_word_count {self._min_count}, but no word of the training captions is "
                    f"there more than {most} times; lower --min_word_count"
                )
            if self._lease is not None:
                # A launch that took over may count for another job.
                self._lease.check()
            storage.write_bytes(self._path, vocabulary.to_json().encode())
        yield len(vocabulary)
