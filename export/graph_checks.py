"""Checks of a SavedModel that is loaded in this process; each failure is named."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf

from export.samples import NO_IMAGE, TOLERANCE, Sample, samples_of
from export.server_files import BATCH_SIZES
from model.checkpoints import Trained
from model.decoding import search_captions
from model.encoder import Encoder
from model.errors import CheckFailed
from model.fine_tuning import grids_by
from model.preprocessing import prepare
from model.vocabulary import Vocabulary
from serving import contract

Signature: TypeAlias = Any
"""A concrete function of a loaded SavedModel: image_bytes string [N] → outputs by name."""

# The least, an even and an odd one, and the largest that the server forms.
_SIZES = (1, 2, 7, BATCH_SIZES[-1])


def check_signatures(signatures: Mapping[str, Signature]) -> None:
    """They are the contract's; raises CheckFailed."""
    for name, outputs in contract.OUTPUTS.items():
        if name not in signatures:
            raise CheckFailed(f"export: signature {name} is missing")
        declared = signatures[name].structured_outputs
        for output, wanted in outputs.items():
            found = declared.get(output)
            if found is None:
                raise CheckFailed(f"export: {name} has no output {output}")
            if found.dtype.name != wanted.dtype or found.shape.rank != len(wanted.dims):
                raise CheckFailed(
                    f"export: {name}.{output} is {found.dtype.name} {found.shape}, expected "
                    f"{wanted.dtype} [{', '.join(wanted.dims)}]"
                )


def ask(serve: Signature, images: Sequence[bytes]) -> dict[str, tf.Tensor]:
    """Call a signature."""
    answer: dict[str, tf.Tensor] = serve(**{contract.IMAGE_BYTES: tf.constant(images)})
    return answer


def check_captions(samples: Sequence[Sample], trained: Trained, encoder: Encoder) -> None:
    """The reloaded graph says what the pieces say that trained and evaluated the model.

    Args:
      samples: what the reloaded graph said.
      trained: captioner, vocabulary and search settings.
      encoder: of the model.

    Raises:
      CheckFailed: naming the sample.
    """
    settings = encoder.settings
    prepared = [prepare(one.image, settings.image_size, settings.aspect) for one in samples]
    pixels, extents = (tf.stack(parts) for parts in zip(*prepared, strict=True))
    grid = grids_by(encoder)({"image": pixels, "extent": extents})
    expected = search_captions(trained.captioner, trained.vocabulary, trained.config.search, grid)
    for row, sample in enumerate(samples):
        caption = trained.vocabulary.decode(expected.tokens[row, 0].numpy())
        if sample.caption != caption:
            raise CheckFailed(
                f"export: sample {row} is captioned {sample.caption!r} after reloading, "
                f"{caption!r} in memory"
            )
    got, wanted = [sample.log_prob for sample in samples], expected.log_prob[:, 0].numpy()
    if not np.allclose(got, wanted, rtol=TOLERANCE, atol=TOLERANCE):
        raise CheckFailed(f"export: log_prob is {got} after reloading, {wanted.tolist()} in memory")


def check_batches(serve: Signature, samples: Sequence[Sample]) -> None:
    """What is said of an image depends neither on its batch's size nor on what else is in it."""
    # What cannot be read is one of them.
    known = [samples[0], NO_IMAGE, *samples[1:]]
    generator = np.random.default_rng(0)
    for size in _SIZES:
        rows = generator.permutation(np.arange(size) % len(known))
        images = [known[row].image for row in rows]
        for row, got in zip(rows, samples_of(images, ask(serve, images)), strict=True):
            if not got.says_the_same_as(known[row]):
                raise CheckFailed(
                    f"export: sample {row} is {got.said} in a batch of {size}, "
                    f"{known[row].said} among the samples"
                )


def check_words(explain: Signature, samples: Sequence[Sample], vocabulary: Vocabulary) -> None:
    """The words in the graph are those of the vocabulary beside it."""
    answer = ask(explain, [sample.image for sample in samples])
    ids, lengths = (answer[name].numpy() for name in (contract.TOKEN_IDS, contract.LENGTH))
    for row, words in enumerate(answer[contract.WORDS].numpy()):
        length = lengths[row]
        got = [word.decode() for word in words[:length]]
        expected = [
            vocabulary.words[token] if token < len(vocabulary) else None
            for token in ids[row, :length]
        ]
        if got != expected:
            raise CheckFailed(
                f"export: explain writes {got} for sample {row}, the vocabulary in assets has "
                f"{expected} for the same ids"
            )
