"""Caption a split with the best checkpoint and score it as COCO does.

BLEU-1..4, ROUGE-L and CIDEr-D need nothing more; METEOR and SPICE are computed where Java
and their data are there, otherwise the report says why they are missing. It tells of each
caption how good it is, whether training had the very same, and how far attention was spread
(docs/evaluation.md). With --boxes the pointing score tells how often attention peaks in a box of
the object that a word names. Several models, each with a --model_dir, caption together: a word's
score is the mean of their log-probabilities.

  captionbeam evaluate --records RECORDS --model_dir MODEL --split val --output REPORT.json
  captionbeam evaluate --records RECORDS --model_dir ONE --model_dir OTHER --output REPORT.json
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from typing import Any

from model.arguments import local_path, positive
from model.directories import make_directory
from model.errors import InvalidInput
from model.startup import import_tensorflow


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `captionbeam evaluate`."""
    parser.add_argument("--records", type=local_path, required=True, help="made by preprocess")
    parser.add_argument(
        "--model_dir",
        dest="model_dirs",
        metavar="MODEL_DIR",
        action="append",
        type=local_path,
        required=True,
        help="made by train; several caption together, searched as the first one's settings say",
    )
    parser.add_argument("--split", default="val", help="split to caption (default: %(default)s)")
    parser.add_argument("--output", type=local_path, required=True, help="the report, JSON")
    parser.add_argument("--beam_width", type=positive, help="instead of the model's own")
    parser.add_argument(
        "--boxes",
        type=local_path,
        metavar="FILE",
        help="COCO instances JSON of the split; adds the pointing score",
    )


def run(args: argparse.Namespace) -> int:
    """Evaluate; returns the exit code."""
    if args.output.is_dir():
        raise InvalidInput(f"--output {args.output} is a directory, expected a file to write")
    make_directory(args.output.parent)

    import_tensorflow()
    from model.evaluation import evaluate

    report = evaluate(args.records, args.model_dirs, args.split, args.beam_width, args.boxes)
    args.output.write_text(
        json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    print(f"{report['images']} images of {report['split']}, beam width {report['beam_width']}")
    for name, value in report["scores"].items():
        print(f"  {name:12} {value:.4f}")
    for name, reason in report["missing"].items():
        print(f"  {name:12} missing: {reason}")
    for name, text in _summary_lines(report["summary"]):
        print(f"  {name:12} {text}")
    print(f"report: {args.output}")
    return 0


def _summary_lines(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Name and text of what a person should read of a summary; what is not known is left out."""
    words, references = summary["mean_words"], summary["mean_reference_words"]
    yield "words", f"{words:.4f} a caption, {references:.4f} a reference"
    if summary["unseen"] is not None:
        yield "unseen", f"{summary['unseen']:.4f} of the captions were not in training"
    written, known = summary["vocabulary_written"], summary["references_known"]
    yield "vocabulary", f"{written:.4f} of it written, {known:.4f} of the references' words in it"
    entropy, most = summary["mean_attention_entropy"], summary["max_attention_entropy"]
    if entropy is not None:
        yield "attention", f"{entropy:.4f} nats of entropy a word, at most {most:.4f}"
    if pointing := summary.get("pointing"):
        yield "named", _pointing_line(pointing)
    for name in ("best", "worst"):
        row = summary[name][0]
        yield name, f"{row['cider']:.4f} {row['key']}: {row['caption']}"


def _pointing_line(pointing: Mapping[str, Any]) -> str:
    line = f"{pointing['named']} objects that have boxes, in {pointing['images']} images"
    if not pointing["named"]:
        return line
    chance, reachable = pointing["chance"], pointing["reachable"]
    return f"{line}; pointing by chance {chance:.4f}, at most {reachable:.4f}"
