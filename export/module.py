"""The exported module: image bytes in, captions out, everything inside the graph."""

import math
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import tensorflow as tf

from export.reading import read_batch
from model.checkpoints import Trained
from model.decoding import search_captions
from model.encoder import Encoder
from model.fine_tuning import grids_by
from model.hypotheses import Hypotheses
from model.records import Manifest
from model.tokeniser import CLITIC_PATTERN, CLITIC_REPLACEMENT
from serving import contract
from serving.contract import Status

Outputs = dict[str, tf.Tensor]
_IMAGE_BYTES = tf.TensorSpec([None], tf.string, name=contract.IMAGE_BYTES)


class Seen(NamedTuple):
    """What the encoder makes of N images.

    Attributes:
      grids: as preprocessing stores them, float16 [N, P, F].
      places: where their rows and columns look, as `Encoder.cell_centres`; 0 where there is none.
      status: of contract.Status, int32 [N]; where it is not OK, the grid says nothing.
    """

    grids: tf.Tensor
    places: tf.Tensor
    status: tf.Tensor


def look_at(image_bytes: tf.Tensor, encoder: Encoder) -> Seen:
    """Read and encode images, string [N]."""
    settings = encoder.settings
    prepared, status = read_batch(image_bytes, settings.image_size, settings.aspect)
    grids = grids_by(encoder)(prepared._asdict())
    places = encoder.cell_centres(prepared.extent)
    there = (status == Status.OK)[:, tf.newaxis, tf.newaxis]
    return Seen(grids, tf.where(there, places, 0.0), status)


def _manifest(trained: Trained, encoder: Encoder) -> Manifest:
    manifest = trained.manifest
    if trained.encoder is None:
        return manifest
    weights = f"fine-tuned from {manifest.encoder['weights']}"
    own = {**manifest.encoder, "weights": weights, "digest": encoder.digest}
    return replace(manifest, encoder=own)


class CaptionModule(tf.Module):
    """Decodes, encodes, searches and detokenises; one method a signature.

    Args:
      trained: captioner, vocabulary and search settings.
      encoder: its own, or the one its records were made with.

    Attributes:
      manifest: of the records; it names the encoder that the module holds.
    """

    def __init__(self, trained: Trained, encoder: Encoder) -> None:
        super().__init__(name="captioner")
        self.manifest = _manifest(trained, encoder)
        # Functions capture these; listed, they are saved. The Keras model itself is kept out of
        # the SavedModel, which needs none of Keras' own bookkeeping.
        self.weights = [variable.value for variable in trained.captioner.weights]
        self.encoder_weights = list(encoder.variables)
        # The padding's word is no word.
        words = [
            "" if index == trained.vocabulary.pad_id else word
            for index, word in enumerate(trained.vocabulary.words)
        ]
        self._words = tf.constant(words)

        def search(image_bytes: tf.Tensor, best_only: bool) -> tuple[Hypotheses, Seen]:
            seen = look_at(image_bytes, encoder)
            found = search_captions(
                trained.captioner,
                trained.vocabulary,
                trained.config.search,
                seen.grids,
                best_only=best_only,
            )
            return _only_where(seen.status == Status.OK, found, trained.vocabulary.pad_id), seen

        # Graphs shared by the signatures: traced, saved and loaded once.
        signature = [_IMAGE_BYTES]
        self._search_best = tf.function(partial(search, best_only=True), input_signature=signature)
        self._search_all = tf.function(partial(search, best_only=False), input_signature=signature)

    def signatures(self) -> dict[str, tf.types.experimental.ConcreteFunction]:
        """Trace every signature of serving/contract."""
        methods = {
            contract.SERVING_DEFAULT: self.caption,
            contract.EXPLAIN: self.explain,
            contract.NBEST: self.nbest,
        }
        return {
            name: tf.function(method).get_concrete_function(_IMAGE_BYTES)
            for name, method in methods.items()
        }

    def caption(self, image_bytes: tf.Tensor) -> Outputs:
        """The best caption of each image.

        Args:
          image_bytes: encoded images, string [N].

        Returns:
          The outputs of `serving_default`.
        """
        found, seen = self._search_best(image_bytes)
        return self._best(found, seen.status)

    def explain(self, image_bytes: tf.Tensor) -> Outputs:
        """The best caption with its words and where each looked; outputs of `explain`."""
        found, seen = self._search_best(image_bytes)
        return {
            **self._best(found, seen.status),
            contract.WORDS: tf.gather(self._words, found.tokens[:, 0]),
            contract.ATTENTION: found.attention[:, 0],
            contract.PLACES: seen.places,
        }

    def nbest(self, image_bytes: tf.Tensor) -> Outputs:
        """Every hypothesis of the beam, best first; outputs of `nbest`."""
        found, seen = self._search_all(image_bytes)
        return {
            contract.STATUS: seen.status,
            contract.CAPTIONS: self._text(found.tokens),
            contract.LOG_PROBS: found.log_prob,
        }

    def _best(self, found: Hypotheses, status: tf.Tensor) -> Outputs:
        return {
            contract.STATUS: status,
            contract.CAPTION: self._text(found.tokens[:, 0]),
            contract.LOG_PROB: found.log_prob[:, 0],
            contract.TOKEN_IDS: found.tokens[:, 0],
            contract.LENGTH: found.length[:, 0],
        }

    def _text(self, tokens: tf.Tensor) -> tf.Tensor:
        """Detokenise as model/vocabulary does: int32 [..., T] → string [...]."""
        joined = tf.strings.reduce_join(tf.gather(self._words, tokens), axis=-1, separator=" ")
        stripped = tf.strings.strip(joined)
        return tf.strings.regex_replace(stripped, CLITIC_PATTERN, CLITIC_REPLACEMENT)


def _only_where(is_read: tf.Tensor, found: Hypotheses, pad_id: int) -> Hypotheses:
    """What was found where there was a picture, bool [N]; nothing, at no probability, elsewhere."""

    def kept(value: tf.Tensor, nothing: float) -> tf.Tensor:
        rows = tf.reshape(is_read, [-1] + [1] * (len(value.shape) - 1))
        return tf.where(rows, value, tf.cast(nothing, value.dtype))

    return found._replace(
        tokens=kept(found.tokens, pad_id),
        log_prob=kept(found.log_prob, -math.inf),
        length=kept(found.length, 0),
        attention=kept(found.attention, 0.0),
        score=kept(found.score, -math.inf),
        word_log_probs=kept(found.word_log_probs, 0.0),
    )
