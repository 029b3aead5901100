"""The captions of the training split: a captioner may have learnt one by heart."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import numpy as np
import tensorflow as tf

from model.dataset import SHARDS_AT_ONCE, TRAIN_SPLIT, Split
from model.errors import InvalidInput
from model.progress import Progress
from model.records import Manifest, parse_tokens
from model.vocabulary import Vocabulary

# A record is about 200 KB, most of it the grid, which is read and thrown away.
_BATCH_SIZE = 64
_ID_DTYPE = np.int32


class TrainingCaptions:
    """Every caption of the training split.

    Captions are compared by the ids that training saw: words that the vocabulary lacks are all
    alike, and one that preprocessing cut short counts as cut. COCO's 590,000 take about 100 MB.

    Args:
      records: RECORDS.
      manifest: of the records.
      vocabulary: of the captioner.

    Raises:
      InvalidInput: the records have no training captions in the captioner's ids.
    """

    def __init__(self, records: Path, manifest: Manifest, vocabulary: Vocabulary) -> None:
        split = Split(records, manifest, TRAIN_SPLIT)
        found = manifest.vocabulary["digest"]
        if found != vocabulary.digest:
            raise InvalidInput(
                f"{records}: vocabulary {found[:8]}, the model's is {vocabulary.digest[:8]}; "
                "evaluate on the records it was trained on"
            )
        if split.num_images == 0:
            raise InvalidInput(f"split {TRAIN_SPLIT!r} of {records} has no images")
        self._captions = _read(split)

    def has(self, tokens: Sequence[int]) -> bool:
        """Whether one of them has exactly the words of these ids."""
        return np.array(tokens, _ID_DTYPE).tobytes() in self._captions


def captions_by_image(split: Split) -> Iterator[list[np.ndarray]]:
    """Ids of the words of every image's captions, int32 [words] each, in no order of images.

    Raises:
      InvalidInput: a damaged shard.
    """
    records = tf.data.TFRecordDataset(split.files, num_parallel_reads=SHARDS_AT_ONCE)
    batches = records.batch(_BATCH_SIZE).map(parse_tokens).prefetch(1)
    with closing(Progress("training captions", split.num_images, "images")) as line:
        for batch in split.iterate(batches):
            rows = batch.merge_dims(0, 1)
            ids = rows.values.numpy().astype(_ID_DTYPE)
            captions = [ids[i:j] for i, j in pairwise(rows.row_splits.numpy())]
            for first, last in pairwise(batch.row_splits.numpy()):
                yield captions[first:last]
            line.advance(int(batch.nrows()))


def _read(split: Split) -> set[bytes]:
    """The bytes of every caption's ids."""
    return {ids.tobytes() for captions in captions_by_image(split) for ids in captions}
