"""One command for every stage: `captionbeam STAGE …`.

A stage is a module with `add_arguments(parser)` and `run(args) -> exit code`. It is
imported when it is asked for, and imports what is heavy (TensorFlow, Beam) inside
`run`, so that help and a wrong flag answer at once.

Exit codes: 0 done; 1 the job ran and a check or threshold failed; 2 the arguments or
inputs are unusable (one line on stderr).
"""

import argparse
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from model.errors import CaptionbeamError

# Where Beam declares pipeline options; read as text, since importing Beam takes seconds.
_BEAM_OPTION_FILES = ("options/pipeline_options.py", "runners/dask/dask_runner.py")


@dataclass(frozen=True)
class Stage:
    """A subcommand.

    Attributes:
      module: where it is.
      help: one line.
      beam: whether Beam's own flags follow.
      asks: whether it asks a server.
    """

    module: str
    help: str
    beam: bool = False
    asks: bool = False


STAGES = {
    "preprocess": Stage(
        "pipelines.preprocess", "COCO annotations and images → TFRecords of grids", beam=True
    ),
    "records": Stage(
        "pipelines.show_records", "show what preprocess made, with a picture", beam=True
    ),
    "train": Stage("model.train", "fit the attention decoder to records"),
    "evaluate": Stage("model.evaluate", "caption a split and score it as COCO does"),
    "export": Stage("export.export_model", "publish a SavedModel for TensorFlow Serving"),
    "serve": Stage("serving.serve", "serve an exported model over TensorFlow Serving's gRPC API"),
    "caption": Stage("serving.caption", "caption a few images or URLs", asks=True),
    "bulk": Stage(
        "pipelines.bulk", "caption a directory, a glob or a URL manifest", beam=True, asks=True
    ),
    "demo": Stage("demo.run", "run every stage on a small drawn world"),
    "doctor": Stage(
        "serving.doctor", "check versions, devices, disk, weights and server", asks=True
    ),
}


class _Parser(argparse.ArgumentParser):
    """Answers a wrong flag with one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see `{self.prog} --help`\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one stage; returns the process's exit code."""
    # TensorFlow's start-up chatter hides our one line; a user's own setting wins.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    # Else export's process takes a GPU's whole memory, and the one that verifies gets none.
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] not in STAGES:
        parser = _stage_parser()
        parser.parse_args(arguments[:1] or ["--help"])
        parser.error(f"no stage {arguments[0]!r}, expected one of {', '.join(STAGES)}")
    name, stage = arguments[0], STAGES[arguments[0]]
    if stage.asks:
        # gRPC tells of every server without a health service, which need not have one. What it
        # tells a server's operator, such as why a key is refused, nobody else does.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    module = importlib.import_module(stage.module)
    parser = _Parser(
        prog=f"captionbeam {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    args, unknown = parser.parse_known_args(arguments[1:])
    if stage.beam:
        args.beam_args = unknown
        unknown = _unknown_beam_flags(unknown)
    if unknown:
        parser.error(f"unknown argument {unknown[0]}")
    try:
        return int(module.run(args))
    except CaptionbeamError as error:
        print(f"captionbeam {name}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"captionbeam {name}: interrupted", file=sys.stderr)
        return 130


def _stage_parser() -> argparse.ArgumentParser:
    width = max(map(len, STAGES))
    table = "\n".join(f"  {name:{width}}  {stage.help}" for name, stage in STAGES.items())
    parser = _Parser(
        prog="captionbeam",
        description=f"Image captioning, from COCO to a captioned bucket.\n\nstages:\n{table}",
        epilog="`captionbeam STAGE --help` lists a stage's flags.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stage", choices=STAGES, metavar="STAGE")
    return parser


def _unknown_beam_flags(arguments: Sequence[str]) -> list[str]:
    """Flags that neither we nor Beam declare, and stray words that follow no flag."""
    package = importlib.util.find_spec("apache_beam")
    if package is None or package.origin is None:
        return []
    declared: set[str] = set()
    for file in _BEAM_OPTION_FILES:
        source = (Path(package.origin).parent / file).read_text(encoding="utf-8")
        declared.update(re.findall(r"""['"](--\w+)['"]""", source))
    unknown = []
    previous_takes_value = False
    for argument in arguments:
        if argument.startswith("--"):
            flag = argument.partition("=")[0]
            previous_takes_value = "=" not in argument
            if flag not in declared:
                unknown.append(flag)
        else:
            if not previous_takes_value:
                unknown.append(argument)
            previous_takes_value = False
    return unknown


if __name__ == "__main__":
    sys.exit(main())
