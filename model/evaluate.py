"""Caption a split with the best checkpoint and score it as COCO does.

BLEU-1..4, ROUGE-L and CIDEr-D need nothing more; METEOR and SPICE are computed where Java
and their data are there, otherwise the report says why they are missing.

  captionbeam evaluate --records RECORDS --model_dir MODEL --split val --output REPORT.json
"""

import argparse
import json

from model.arguments import local_path, positive
from model.directories import make_directory
from model.errors import InvalidInput
from model.startup import import_tensorflow


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `captionbeam evaluate`."""
    parser.add_argument("--records", type=local_path, required=True, help="made by preprocess")
    parser.add_argument("--model_dir", type=local_path, required=True, help="made by train")
    parser.add_argument("--split", default="val", help="split to caption (default: %(default)s)")
    parser.add_argument("--output", type=local_path, required=True, help="the report, JSON")
    parser.add_argument("--beam_width", type=positive, help="instead of the model's own")


def run(args: argparse.Namespace) -> int:
    """Evaluate; returns the exit code."""
    if args.output.is_dir():
        raise InvalidInput(f"--output {args.output} is a directory, expected a file to write")
    make_directory(args.output.parent)

    import_tensorflow()
    from model.evaluation import evaluate

    report = evaluate(args.records, args.model_dir, args.split, args.beam_width)
    args.output.write_text(
        json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    print(f"{report['images']} images of {report['split']}, beam width {report['beam_width']}")
    for name, value in report["scores"].items():
        print(f"  {name:12} {value:.4f}")
    for name, reason in report["missing"].items():
        print(f"  {name:12} missing: {reason}")
    print(f"report: {args.output}")
    return 0
