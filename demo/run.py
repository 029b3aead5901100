"""Run every stage on a small world that is drawn first, each as a user would.

    captionbeam demo [--output DIR]

draw → preprocess → train → evaluate → export → serve → bulk over a directory → bulk over a
manifest of URLs → caption --explain. Takes about five minutes on two cores. DIR keeps everything:
logs/STAGE.log, summary.json, the captions, pictures of the attention, and a model that
TensorFlow Serving can load. A demo that is run again starts anew.
"""

import argparse
import json
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from model.errors import CheckFailed, InvalidInput

DEFAULT_OUTPUT = "demo-output"
SUMMARY_FILE = "summary.json"
# Says that a directory is a demo's own, to be emptied by the next one.
_MARKER = ".captionbeam-demo"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `captionbeam demo`."""
    parser.add_argument(
        "--output", type=Path, default=Path(DEFAULT_OUTPUT), metavar="DIR", help="(%(default)s)"
    )
    parser.add_argument("--scenes", type=int, default=3000, help="to train on (%(default)s)")
    parser.add_argument("--steps", type=int, default=1300, help="of training (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the world (%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Run the demo; CheckFailed when a stage fails or captions differ between stages."""
    for flag in ("scenes", "steps"):
        if getattr(args, flag) < 1:
            raise InvalidInput(f"--{flag} {getattr(args, flag)}, expected at least 1")
    if args.seed < 0:
        raise InvalidInput(f"--seed {args.seed}, expected at least 0")
    _make_room(args.output)

    from demo.journey import Journey
    from demo.stages import Stages

    settings = {"scenes": args.scenes, "steps": args.steps, "seed": args.seed}
    with _stopped_by_sigterm():
        summary = Journey(args.output, Stages(args.output / "logs"), **settings).run()
    (args.output / SUMMARY_FILE).write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    _show(summary, args.output / SUMMARY_FILE)
    for name, lines in summary["differs_from_evaluate"].items():
        if lines:
            raise CheckFailed(f"bulk_{name} differs from evaluate: " + "\n".join(lines))
    print("captions of both bulk runs: the same strings as evaluate's")
    return 0


def _make_room(output: Path) -> None:
    """Take an empty directory, or empty one that an earlier demo filled, and no other."""
    marker = output / _MARKER
    try:
        if output.exists() and any(output.iterdir()):
            if not marker.exists():
                raise InvalidInput(
                    f"--output {output} holds files that no demo wrote, expected an empty or "
                    "missing directory"
                )
            shutil.rmtree(output)
        output.mkdir(parents=True, exist_ok=True)
        marker.touch()
    except OSError as error:
        raise InvalidInput(
            f"--output {output}: {error.strerror or error}; name a directory that can be written"
        ) from error


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the demo as Ctrl-C does, so that it leaves no server behind."""

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _show(summary: dict[str, Any], path: Path) -> None:
    """Print table, scores, ledgers and where things are."""
    from demo.report import ledger_line, stage_table

    lines = [*stage_table(summary["stages"]), ""]
    lines += [f"{name:18} {value:.4f}" for name, value in summary["scores"].items()]
    lines += ["", *(ledger_line(name, ledger) for name, ledger in summary["ledger"].items())]
    paths = summary["paths"]
    lines.append("")
    lines += [f"captions   {where}" for where in paths["captions"].values()]
    lines += [f"{name:10} {paths[name]}" for name in ("attention", "model", "logs")]
    lines += [f"summary    {path}"]
    print("\n".join(["", *lines]))
