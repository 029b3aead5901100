"""Self-critical training on the drawn world: held-out CIDEr-D before and after.

Cross-entropy is stopped early, while there is something left to learn; the second phase begins
with its best weights, on the same records. Both are scored as they are after their last step, which
no score has picked; captions are found by the model's beam. Beside it stands a control: as many
more steps of cross-entropy from the same weights, all else the same.
"""

import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import tensorflow as tf

from benchmarks.ratio import report
from demo.toy_coco import TRAIN, VAL, draw_world
from model.encoder import Encoder, EncoderSettings
from model.evaluation import evaluate
from model.recipe import load_recipe
from model.run import Run
from model.trainer import train
from pipelines.records_job import PreprocessSettings, preprocess
from pipelines.source_flags import Source

SEED = 0
SCENES = {"num_train": 1_200, "num_val": 160, "num_novel": 40}
FIRST_STEPS, SECOND_STEPS = 250, 300
SECOND = (
    ("learning_rate", 2e-4),
    # Rewards of a model without units dropped are those that count in the end.
    ("dropout", 0.0),
    ("schedule", "constant"),
    ("warmup_steps", 0),
    ("validation_split", "none"),
)


def main() -> None:
    """Measure and report."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        records = _make_records(Path(scratch))
        first = Path(scratch) / "first"
        _train(records, first, FIRST_STEPS, [("validation_split", "none")])
        before = evaluate(records, [first], VAL, None)["scores"]
        found = {}
        for stage in ("self_critical", "cross_entropy"):
            second = Path(scratch) / stage
            _train(records, second, SECOND_STEPS, [("stage", stage), *SECOND], init_from=first)
            found[stage] = evaluate(records, [second], VAL, None)["scores"]
    minutes = (time.monotonic() - started) / 60
    for stage, after in found.items():
        scores = ", ".join(
            f"{name} {before[name]:.4f} → {after[name]:.4f}"
            for name in ("cider", "bleu_4", "exact_match")
        )
        report(
            f"CIDEr-D after/before {SECOND_STEPS} steps of {stage}",
            after["cider"] / before["cider"],
            "> 1" if stage == "self_critical" else "for comparison",
            f"{scores}, {minutes:.1f} minutes for all",
        )


def _make_records(scratch: Path) -> Path:
    world = draw_world(scratch / "world", seed=SEED, **SCENES)
    sources = tuple(
        Source(split, str(world.annotations(split)), str(world.images(split)))
        for split in (TRAIN, VAL)
    )
    recipe, encoder = load_recipe("tiny"), EncoderSettings(f"random:{SEED}")
    settings = PreprocessSettings(
        sources, str(scratch / "records"), encoder=encoder, **recipe.preprocess
    )
    preprocess(settings, [], partial(Encoder, encoder))
    return scratch / "records"


def _train(
    records: Path,
    model_dir: Path,
    steps: int,
    changes: Sequence[tuple[str, object]],
    init_from: Path | None = None,
) -> None:
    config = load_recipe("tiny").config.updated(changes)
    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    train(Run(records, model_dir, config, strategy, steps, init_from))
