"""The known traps of the field, and the patches that bring them back; run by tests/mutations.py."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """A trap, brought back.

    Attributes:
      trap: one of TRAPS.
      how: which of its forms this is.
      file: that is changed, from the project's root.
      before: text that the file has once.
      after: text in its place; the file stays Python.
      test: that fails then, FILE::NAME from the project's root.
    """

    trap: str
    how: str
    file: str
    before: str
    after: str
    test: str


# In the words of the design.
TEACHER_FORCING = "Teacher forcing off by one"
PADDING = "pad tokens in the loss, or masked by the input instead of the label"
TOKEN_COUNT = (
    "token loss averaged per replica instead of by the global token count (1 and N replicas must "
    "give the same gradients on uneven lengths)"
)
STATE = "GRU state dropped between steps"
BEAM = (
    "beam search keeping the worst, mixing finished and unfinished hypotheses, crashing when "
    "`<end>` never comes, or comparing the wrong stop token"
)
BATCH_NORMALISATION = "batch normalisation in training mode while the encoder is frozen"
BGR = "RGB fed where ResNet50 wants BGR with means removed; resizing that rescales before the means"
EXIF = "EXIF orientation ignored"
VOCABULARY = "vocabulary of training and inference differing"
VALIDATION = "validation step that updates weights"
BEST = "checkpoints picked by teacher-forced scores"
RESUME = (
    "resume that redoes or skips part of an epoch, or forgets the shuffle order, the optimiser or "
    "the best score"
)
ATTENTION = "identical attention for every word"
DOUBLY_STOCHASTIC = "doubly stochastic target unreachable (it is T/P, not 1)"
REWARD = "CIDEr optimised without `<end>` in the reward"
SCALE = "metrics on a 0–1 or another tokeniser's scale"
ZIP = "a short batch answer paired by `zip`, losing elements"
LAST_BATCH = "the last batch padded with repeated images"
POISON = "one poison image failing its batch"
BATCH_MATES = "a caption that changes with its batch-mates (padding)"
TRUNCATED = "truncated output after a kill counted as done"

TRAPS = (
    *(TEACHER_FORCING, PADDING, TOKEN_COUNT, STATE, BEAM, BATCH_NORMALISATION, BGR, EXIF),
    *(VOCABULARY, VALIDATION, BEST, RESUME, ATTENTION, DOUBLY_STOCHASTIC, REWARD, SCALE, ZIP),
    *(LAST_BATCH, POISON, BATCH_MATES, TRUNCATED),
)

_DATASET, _LOSSES = "tests/test_model_dataset.py", "tests/test_model_losses.py"
_CAPTIONER, _SEARCH = "tests/test_model_captioner.py", "tests/test_model_search.py"
_PREPARED, _METRICS = "tests/test_model_preprocessing.py", "tests/test_model_metrics.py"
_TRAINER, _RESUMING = "tests/test_model_trainer.py", "tests/test_model_resuming.py"
# One of its cases is enough, and quick.
_WIDE_BEAM = f"{_SEARCH}::test_wide_beam_finds_every_caption_in_order[0.0-0]"
_CRITICAL, _JOBS = "tests/test_model_self_critical.py", "tests/test_pipelines_jobs.py"

MUTATIONS = (
    Mutation(
        TEACHER_FORCING,
        "the label is the word that is read",
        "model/dataset.py",
        "tf.concat([words, end], axis=1)",
        "tf.concat([start, words], axis=1)",
        f"{_DATASET}::test_rows_are_framed_for_teacher_forcing",
    ),
    Mutation(
        TEACHER_FORCING,
        "a word is predicted from itself",
        "model/captioner.py",
        "tf.transpose(projected, [1, 0, 2])",
        "tf.roll(tf.transpose(projected, [1, 0, 2]), -1, 0)",
        f"{_CAPTIONER}::test_a_word_sees_no_word_after_it",
    ),
    Mutation(
        PADDING,
        "padding counts",
        "model/losses.py",
        "tf.reduce_sum(losses * mask)",
        "tf.reduce_sum(losses)",
        f"{_LOSSES}::test_padding_has_no_gradient",
    ),
    Mutation(
        PADDING,
        "masked by the word before the label, which is the input",
        "model/losses.py",
        "mask = tf.cast(labels != pad_id, logits.dtype)",
        "mask = tf.cast(tf.pad(labels, [[0, 0], [1, 0]], constant_values=1)[:, :-1] != pad_id, "
        "logits.dtype)",
        f"{_LOSSES}::test_padding_has_no_gradient",
    ),
    Mutation(
        TOKEN_COUNT,
        "each replica divides by its own number of words",
        "model/training_step.py",
        "aim.loss / counts.words",
        "aim.loss / aim.words / self._strategy.num_replicas_in_sync",
        "tests/test_model_replicas.py::test_two_replicas_train_the_weights_of_one",
    ),
    Mutation(
        STATE,
        "in training",
        "model/captioner.py",
        "return self._decoder(word, memory.keys, memory.cells, state)",
        "return self._decoder(word, memory.keys, memory.cells, tf.nest.map_structure("
        "tf.zeros_like, state))",
        f"{_CAPTIONER}::test_teacher_forcing_equals_the_equations",
    ),
    Mutation(
        STATE,
        "while scheduled sampling draws words",
        "model/captioner.py",
        "return _Sampling(state, written, word)",
        "return _Sampling(carried.state, written, word)",
        f"{_CAPTIONER}::test_sampled_words_are_what_the_model_says_of_the_words_before",
    ),
    Mutation(
        STATE,
        "in the search",
        "model/hypotheses.py",
        "self._replace(state=state, attention=attention)",
        "self._replace(attention=attention)",
        _WIDE_BEAM,
    ),
    Mutation(
        STATE,
        "the state of another hypothesis is kept",
        "model/hypotheses.py",
        "lambda values: tf.gather(values, rows), self.state)",
        "lambda values: values, self.state)",
        _WIDE_BEAM,
    ),
    Mutation(
        BEAM,
        "keeping the worst",
        "model/search.py",
        "tf.math.top_k(tf.reshape(continued",
        "tf.math.top_k(-tf.reshape(continued",
        _WIDE_BEAM,
    ),
    Mutation(
        BEAM,
        "the least probable next words",
        "model/search.py",
        "tf.math.top_k(allowed(",
        "tf.math.top_k(-allowed(",
        f"{_SEARCH}::test_greedy_takes_the_best_word_each_time",
    ),
    Mutation(
        BEAM,
        "finished hypotheses go on",
        "model/search.py",
        "forced = finished | ",
        "forced = ",
        _WIDE_BEAM,
    ),
    Mutation(
        BEAM,
        "which are finished is not carried along when hypotheses change places",
        "model/hypotheses.py",
        "finished=chosen(self.finished),",
        "",
        _WIDE_BEAM,
    ),
    Mutation(
        BEAM,
        "`<end>` is not forced when it never comes",
        "model/search.py",
        " | (current.time >= settings.max_length)",
        "",
        f"{_SEARCH}::test_captions_end_when_the_model_never_ends_them",
    ),
    Mutation(
        BEAM,
        "the stop token is another one",
        "model/hypotheses.py",
        "(word == settings.end_id)",
        "(word == settings.start_id)",
        _WIDE_BEAM,
    ),
    Mutation(
        BATCH_NORMALISATION,
        "scales and offsets fine-tuned with the convolutions",
        "model/fine_tuning.py",
        "is_above and isinstance(layer, keras.layers.Conv2D)",
        "is_above",
        "tests/test_model_fine_tuning.py"
        "::test_the_convolutions_from_a_stage_on_are_trained_and_nothing_else[from_block_4]",
    ),
    Mutation(
        BATCH_NORMALISATION,
        "statistics of the batch",
        "model/encoder.py",
        "self._runtime(images)",
        # Keras leaves a layer that is not trainable in inference mode, whatever it is told.
        'setattr(self.network, "trainable", True) or self.network(images, training=True)',
        "tests/test_model_encoder.py::test_a_grid_does_not_depend_on_its_batch",
    ),
    Mutation(
        BATCH_NORMALISATION,
        "a network that is not frozen",
        "model/encoder.py",
        "self.network.trainable = False",
        "self.network.trainable = True",
        "tests/test_model_encoder.py::test_batch_normalisation_keeps_its_statistics",
    ),
    Mutation(
        BGR,
        "RGB",
        "model/preprocessing.py",
        "tf.reverse(image, axis=[-1])",
        "image",
        f"{_PREPARED}::test_golden_pixels",
    ),
    Mutation(
        BGR,
        "the means of RGB",
        "model/preprocessing.py",
        "tf.constant(BGR_MEANS)",
        "tf.constant(BGR_MEANS[::-1])",
        f"{_PREPARED}::test_golden_pixels",
    ),
    Mutation(
        BGR,
        "means left in",
        "model/preprocessing.py",
        "rows -= tf.tile(",
        "rows -= 0.0 * tf.tile(",
        f"{_PREPARED}::test_golden_pixels",
    ),
    Mutation(
        BGR,
        "the means of RGB in the pipeline",
        "model/preprocessing.py",
        "BGR_MEANS[::-1], np",
        "BGR_MEANS, np",
        "tests/test_pipelines_preparing.py::test_images_are_those_of_prepare_to_the_bit",
    ),
    Mutation(
        BGR,
        "padding taken for a part of the picture in the pipeline",
        "pipelines/encoding.py",
        "np.array(extents, np.int32)",
        "np.full((len(extents), 2), images.shape[1], np.int32)",
        "tests/test_pipelines_encoding.py::test_the_encoder_gets_what_prepare_gives",
    ),
    Mutation(
        BGR,
        "resizing brings pixels to 0 to 1",
        "model/preprocessing.py",
        'tf.image.resize(image, size, method="area")',
        'tf.image.resize(image, size, method="area") / 255.0',
        f"{_PREPARED}::test_prepared_images_are_what_resnet50_was_trained_on",
    ),
    Mutation(
        EXIF,
        "what has to be encoded anew is not turned",
        "model/image_bytes.py",
        "_to_rgb(image if turn is None else image.transpose(turn))",
        "_to_rgb(image)",
        "tests/test_model_image_bytes.py::test_every_orientation_is_turned_upright",
    ),
    Mutation(
        EXIF,
        "a JPEG passes as it lies",
        "model/image_bytes.py",
        'image.mode != "RGB" or _orientation(image) in _TO_UPRIGHT',
        'image.mode != "RGB"',
        "tests/test_model_image_bytes.py::test_every_orientation_is_turned_upright",
    ),
    Mutation(
        VOCABULARY,
        "nobody compares them",
        "model/compatibility.py",
        "if vocabulary.digest != expected:",
        "if not expected:",
        "tests/test_model_compatibility.py::test_vocabulary_that_does_not_match_is_refused",
    ),
    Mutation(
        VOCABULARY,
        "a trained model takes any",
        "model/checkpoints.py",
        'check_digest(vocabulary, saved["vocabulary_digest"].decode(), '
        "str(model_dir / VOCABULARY_FILE))",
        "pass",
        "tests/test_model_compatibility.py::test_vocabulary_that_does_not_match_is_refused",
    ),
    Mutation(
        VALIDATION,
        "it takes a training step",
        "model/trainer.py",
        "score = float(step)",
        "score = float(step); self._step(next(iter(self._batches(step))), *tf.constant([step, 0]))",
        f"{_TRAINER}::test_validation_leaves_the_weights_alone",
    ),
    Mutation(
        VALIDATION,
        "it leaves the averages in the weights' place",
        "model/averages.py",
        "finally:\n            self._swap()",
        "finally:\n            pass",
        "tests/test_model_averages.py::test_averages_are_numpy_s_and_only_lent",
    ),
    Mutation(
        BEST,
        "the likelihood of the captions of people",
        "model/trainer.py",
        'row["val_cider"] = score',
        'score = row["val_cider"] = math.exp(-row["cross_entropy"])',
        f"{_TRAINER}::test_validation_scores_are_those_of_free_running_captions",
    ),
    Mutation(
        BEST,
        "the last is kept, whatever its score",
        "model/trainer.py",
        "better = score > float(self.progress.best_score)",
        "better = True",
        f"{_TRAINER}::test_best_is_the_highest_score_not_the_last",
    ),
    Mutation(
        RESUME,
        "the epoch begins again",
        "model/dataset.py",
        ".skip(offset)",
        "",
        f"{_DATASET}::test_resumed_stream_is_the_rest_of_the_undisturbed_one",
    ),
    Mutation(
        RESUME,
        "a record of each batch is skipped",
        "model/dataset.py",
        "consumed = stream.first_step * stream.batch_size",
        "consumed = stream.first_step * (stream.batch_size + 1)",
        f"{_DATASET}::test_resumed_stream_is_the_rest_of_the_undisturbed_one",
    ),
    Mutation(
        RESUME,
        "another order of the epoch",
        "model/dataset.py",
        "tf.constant(epoch, tf.int64)",
        "tf.constant(0, tf.int64)",
        f"{_DATASET}::test_resumed_stream_is_the_rest_of_the_undisturbed_one",
    ),
    Mutation(
        RESUME,
        "the trainer reads from the first record",
        "model/trainer.py",
        "batches = self._batches(step)",
        "batches = self._batches(0)",
        f"{_RESUMING}::test_resumed_run_equals_the_undisturbed_one[plain]",
    ),
    Mutation(
        RESUME,
        "without the optimiser",
        "model/checkpoints.py",
        "tf.train.Checkpoint(**parts, progress=progress)",
        "tf.train.Checkpoint(captioner=fitted.captioner, progress=progress)",
        f"{_RESUMING}::test_resumed_run_equals_the_undisturbed_one[plain]",
    ),
    Mutation(
        RESUME,
        "without the best score",
        "model/trainer.py",
        "step = int(self.progress.step)",
        "step = int(self.progress.step); self.progress.best_score.assign(-1.0)",
        f"{_RESUMING}::test_resumed_run_remembers_the_best_score",
    ),
    Mutation(
        ATTENTION,
        "the query has no say",
        "model/attention.py",
        "keys + self._query_projection(query)",
        "keys + 0.0 * self._query_projection(query)",
        f"{_CAPTIONER}::test_attention_differs_between_words",
    ),
    Mutation(
        DOUBLY_STOCHASTIC,
        "1",
        "model/losses.py",
        "attended - target",
        "attended - 1.0",
        f"{_LOSSES}::test_attention_that_is_even_has_no_penalty",
    ),
    Mutation(
        REWARD,
        "dropped from captions and references",
        "model/self_critical.py",
        "if word != pad]",
        "if word not in (pad, self._vocabulary.end_id)]",
        f"{_CRITICAL}::test_an_end_is_rewarded_and_missed_where_there_is_none",
    ),
    Mutation(
        REWARD,
        "the weights of n-grams know none",
        "model/self_critical.py",
        "[*ids.tolist(), end]",
        "[*ids.tolist()]",
        f"{_CRITICAL}::test_minimises_surprise_times_advantage[mean]",
    ),
    Mutation(
        SCALE,
        "CIDEr-D from 0 to 1",
        "model/metrics.py",
        "CIDER: cider}",
        "CIDER: cider / 10}",
        f"{_METRICS}::test_cider_of_one_shared_word_by_hand",
    ),
    Mutation(
        SCALE,
        "BLEU in percent",
        "model/metrics.py",
        "dict(zip(BLEU, bleu, strict=True))",
        "dict(zip(BLEU, (100 * value for value in bleu), strict=True))",
        f"{_METRICS}::test_bleu_and_rouge_by_hand",
    ),
    Mutation(
        SCALE,
        "captions split at blanks",
        "model/metrics.py",
        "ptb_tokens(candidates[key])",
        "candidates[key].split()",
        f"{_METRICS}::test_punctuation_and_case_do_not_count",
    ),
    Mutation(
        SCALE,
        "references split at blanks",
        "model/metrics.py",
        "ptb_tokens(text)",
        "text.split()",
        f"{_METRICS}::test_punctuation_and_case_do_not_count",
    ),
    Mutation(
        ZIP,
        "rows of an answer are not counted",
        "serving/answers.py",
        " or shape[0] != count:",
        ":",
        "tests/test_serving_client.py::test_an_answer_with_other_rows_is_refused",
    ),
    Mutation(
        LAST_BATCH,
        "in validation and evaluation",
        "model/dataset.py",
        "split.iterate(records.batch(batch_size)",
        "split.iterate(records.repeat(2).batch(batch_size)"
        ".take(-(-split.num_images // batch_size))",
        f"{_DATASET}::test_images_are_read_once_in_shard_order",
    ),
    Mutation(
        LAST_BATCH,
        "in training, at the end of each epoch",
        "model/dataset.py",
        "_epoch(split.files, stream, number)",
        "_epoch(split.files, stream, number).repeat(2).take("
        "-(-split.num_images // stream.batch_size) * stream.batch_size)",
        f"{_DATASET}::test_batches_cross_epochs_without_loss_or_repeat",
    ),
    Mutation(
        LAST_BATCH,
        "in both pipelines",
        "pipelines/read_ahead.py",
        "yield batch\n",
        "yield (batch * size)[:size]\n",
        "tests/test_pipelines_read_ahead.py::test_batches_lose_nothing",
    ),
    Mutation(
        POISON,
        "the exported graph cannot decode it",
        "export/reading.py",
        ".ignore_errors()",
        "",
        "tests/test_export_reading.py::test_what_cannot_be_read_says_why_and_fails_no_other",
    ),
    Mutation(
        POISON,
        "the model refuses it",
        "serving/client.py",
        "yield from self._rows(signature, part, deadline_s)",
        "yield from [ItemFailure(Reason.MODEL_ERROR, str(error))] * len(part)",
        "tests/test_pipelines_captioning.py::test_a_poison_image_fails_alone_wherever_it_stands",
    ),
    Mutation(
        BATCH_MATES,
        "the search ends with the first of its images",
        "model/hypotheses.py",
        "tf.reduce_all(decided(current))",
        "tf.reduce_any(decided(current))",
        f"{_SEARCH}::test_a_search_of_a_batch_goes_on_for_whom_it_must",
    ),
    Mutation(
        BATCH_MATES,
        "padding costs while others go on",
        "model/search.py",
        "only = tf.where(finished, 0.0, end)",
        "only = tf.where(finished, -0.1, end)",
        f"{_SEARCH}::test_a_caption_does_not_depend_on_its_batch_mates",
    ),
    Mutation(
        BATCH_MATES,
        "where a caption's padding looks counts in its attention penalty",
        "model/losses.py",
        "mask = tf.cast(labels != pad_id, weights.dtype)",
        "mask = tf.ones_like(labels, weights.dtype)",
        f"{_LOSSES}::test_attention_that_is_even_has_no_penalty",
    ),
    Mutation(
        TRUNCATED,
        "a shard whose files are cut short",
        "pipelines/jobs.py",
        "storage.size(self.path(file.file)) == file.bytes",
        "storage.size(self.path(file.file)) is not None",
        f"{_JOBS}::test_a_result_stands_for_whole_files_of_the_same_items_only",
    ),
    Mutation(
        TRUNCATED,
        "a file has its name before it is whole",
        "pipelines/storage.py",
        'self._temporary = temporary_path(path if scratch is None else f"{scratch}/file")',
        "self._temporary = path",
        f"{_JOBS}::test_a_sink_accounts_for_every_item_or_publishes_nothing",
    ),
    Mutation(
        TRUNCATED,
        "a shard of records",
        "model/dataset.py",
        "if size != shard.bytes:",
        "if size is None:",
        f"{_DATASET}::test_a_shard_that_is_not_as_the_manifest_says_is_met_before_training",
    ),
    Mutation(
        TRUNCATED,
        "a half row of the history, and what came after the checkpoint",
        "model/history.py",
        'row.endswith("\\n") and json.loads(row)["step"] <= step',
        "True",
        f"{_RESUMING}::test_interrupted_history_has_each_validation_once",
    ),
    Mutation(
        TRUNCATED,
        "a checkpoint that cannot be read whole",
        "model/checkpoints.py",
        'log(f"{path} cannot be read ({_first_line(error)}); trying the one before it")',
        "return True",
        f"{_RESUMING}::test_a_damaged_checkpoint_gives_way_to_the_one_before",
    ),
)
