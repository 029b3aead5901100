"""Fit the attention decoder to RECORDS.

Start again with the same command and it goes on where it stopped. MODEL_DIR keeps
config.json, vocabulary.json, manifest.json, checkpoints/, best/ (by CIDEr of free-running
captions of the validation split), TensorBoard events and history.jsonl. SIGTERM ends it within two
steps, with a checkpoint.

  captionbeam train --records RECORDS --model_dir MODEL --epochs 30
  captionbeam train --records RECORDS --model_dir MODEL --config grid14
  captionbeam train --records RECORDS --model_dir MODEL --steps 20000 --set dropout=0.3
  captionbeam train --records RECORDS --model_dir NEXT --init_from MODEL --set learning_rate=1e-4
  captionbeam train --records RECORDS --model_dir MODEL --images val2017
  captionbeam train --records IMAGES --model_dir NEXT --init_from MODEL --set trainable=from_block_4
"""

import argparse

from model.arguments import local_path, positive
from model.config import Config, parse_setting
from model.recipe import load_config, recipe_names
from model.startup import import_tensorflow

STRATEGIES = ("auto", "one", "mirrored", "multiworker")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `captionbeam train`."""
    recipes = ", ".join(recipe_names())
    parser.add_argument("--records", type=local_path, required=True, help="made by preprocess")
    parser.add_argument("--model_dir", type=local_path, required=True, help="what training keeps")
    parser.add_argument(
        "--config", metavar="RECIPE|FILE", help=f"{recipes}, or JSON of settings by section"
    )
    parser.add_argument(
        "--init_from",
        metavar="MODEL_DIR",
        type=local_path,
        help="begin with the best weights of an earlier run; a run that goes on keeps its own",
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=positive, help="steps in all, resumed runs included")
    length.add_argument("--epochs", type=positive, help="passes over the training split")
    parser.add_argument(
        "--encoder_weights",
        help="of an encoder to be fine-tuned, where its weights file lies now, if it was moved",
    )
    parser.add_argument("--strategy", choices=STRATEGIES, default="auto")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="one setting, e.g. learning_rate=1e-3; may be repeated",
    )
    parser.add_argument(
        "--images",
        type=local_path,
        metavar="DIR",
        help="photographs of the validation split, for TensorBoard's pictures of attention",
    )


def run(args: argparse.Namespace) -> int:
    """Train; returns the exit code."""
    config = Config() if args.config is None else load_config(args.config)
    config = config.updated(parse_setting(text) for text in args.set)
    if args.epochs:
        config = config.updated([("training.epochs", args.epochs)])

    import_tensorflow()
    from model.run import Run
    from model.strategies import make_strategy
    from model.trainer import train

    strategy = make_strategy(args.strategy)
    asked = Run(
        args.records,
        args.model_dir,
        config,
        strategy,
        args.steps,
        init_from=args.init_from,
        images=args.images,
        encoder_weights=args.encoder_weights,
    )
    train(asked)
    return 0
