"""Runs on tiny records, and what is left of them."""

import itertools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.eager import context

from model.config import Config
from model.meter import Meter
from model.run import Run
from model.trainer import Trainer
from tests import tiny

SETTINGS = (
    ("embedding_size", 12),
    ("hidden_size", 16),
    ("attention_size", 12),
    ("dropout", 0.2),
    ("batch_size", 4),
    ("learning_rate", 1e-2),
    ("warmup_steps", 2),
    ("shuffle_buffer", 4),
    ("max_length", 12),
    ("schedule", "constant"),
    ("checkpoint_steps", 2),
    ("validation_steps", 4),
)


def make_run(tmp_path: Path, name: str, steps: int, *changes: tuple[str, object]) -> Run:
    records = tmp_path / "records"
    if not records.exists():
        tiny.make_records(records)
    config = Config().updated([*SETTINGS, *changes])
    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    return Run(records, tmp_path / name, config, strategy, steps)


def silent(_: str) -> None:
    """Takes the log lines."""


def weights(trainer: Trainer) -> list[np.ndarray]:
    return [variable.numpy() for variable in trainer.captioner.variables]


# Everything that draws, averages or remembers.
EVERYTHING = (
    ("label_smoothing", 0.1),
    ("scheduled_sampling", 0.5),
    ("scheduled_sampling_epochs", 2),
    ("attention_penalty", 1.0),
    ("l2", 1e-3),
    ("ema_decay", 0.9),
    ("tie_embeddings", True),
    ("clip_value", 0.05),
    ("schedule", "plateau"),
    ("patience", 1),
    # Also the steps at which the test of resuming stops: an end is validated.
    ("validation_steps", 3),
)
# Numbers that a clock gives.
SPEEDS = ("captions_per_s", "input_wait")


def kept(trainer: Trainer) -> list[np.ndarray]:
    """All that a checkpoint must hold."""
    plateau = trainer.progress.plateau
    variables = [*trainer.optimizer.variables, *trainer.averages.variables, *plateau.variables]
    variables += trainer.loss_scale.variables
    values = [variable.numpy() for variable in (*variables, trainer.progress.best_score)]
    return [*weights(trainer), *values]


def check_sums(trainer: Trainer) -> None:
    """In a step, as the graph optimiser leaves it, AddN adds two: a race orders three."""
    batches = trainer._batches(0)
    step = trainer._step.compiled(batches.element_spec)
    batch = next(iter(batches))
    context.enable_run_metadata()
    try:
        step(batch, tf.constant(0), tf.constant(0))
        graphs = context.export_run_metadata().partition_graphs
    finally:
        context.disable_run_metadata()
    functions = [function.node_def for graph in graphs for function in graph.library.function]
    nodes = [node for found in (*(graph.node for graph in graphs), *functions) for node in found]
    assert len(nodes) > 1000
    terms = {
        node.name: sum(not name.startswith("^") for name in node.input)
        for node in nodes
        if node.op == "AddN"
    }
    assert set(terms.values()) <= {2}, terms


def history(run: Run) -> list[dict[str, Any]]:
    rows = map(json.loads, (run.model_dir / "history.jsonl").read_text().splitlines())
    return [{name: row[name] for name in row if name not in SPEEDS} for row in rows]


def validate_as(monkeypatch: pytest.MonkeyPatch, *scores: float) -> None:
    """Let validations give these scores, one after the other."""
    given = iter(scores)
    monkeypatch.setattr("model.validation.metrics.score", lambda *_: {"cider": next(given)})


def send_in_step(step: int, number: int) -> None:
    """Let the process send itself a signal while it takes its step of that number."""
    taken, add = itertools.count(1), Meter.add

    def counted(self: Meter, captions: tf.Tensor) -> None:
        if next(taken) == step:
            os.kill(os.getpid(), number)
        add(self, captions)

    Meter.add = counted  # type: ignore[method-assign]


def checkpoint_steps(model_dir: Path) -> list[int]:
    found = (model_dir / "checkpoints").glob("ckpt-*.index")
    return sorted(int(path.stem.removeprefix("ckpt-")) for path in found)
