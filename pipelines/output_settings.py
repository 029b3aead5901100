"""What a bulk job leaves besides failures and summary, and the flags that say it."""

import argparse
from dataclasses import dataclass

from model.errors import InvalidInput

JSON_LINES, CSV, PARQUET = FORMATS = ("jsonl", "csv", "parquet")


@dataclass(frozen=True)
class OutputSettings:
    """What is written of the captions.

    Attributes:
      format: of the rows, one of `FORMATS`; a shard's file has it as its suffix.
      sidecars: directory of a small text for each caption; None for none.
      coco_results: whether captions.json is written, as pycocotools reads it.
      copies: whether the images lie beside their sidecars.
    """

    format: str = JSON_LINES
    sidecars: str | None = None
    coco_results: bool = False
    copies: bool = False

    def __post_init__(self) -> None:
        """Checks format and copies; raises InvalidInput."""
        if self.format not in FORMATS:
            raise InvalidInput(
                f"--format {self.format}: no format of rows, expected one of {', '.join(FORMATS)}"
            )
        if self.copies and self.sidecars is None:
            raise InvalidInput("--copies: beside the sidecars, expected --sidecars DIR, too")

    @property
    def captions_file(self) -> str:
        """A shard's file of rows below OUTPUT, with {name}."""
        return captions_file(self.format)


def captions_file(format: str) -> str:
    """What a shard's file of rows is called in a format, with {name}."""
    return f"captions-{{name}}.{format}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    group = parser.add_argument_group("outputs")
    group.add_argument(
        "--format",
        default=JSON_LINES,
        metavar="|".join(FORMATS),
        help="of the rows of captions (default: %(default)s)",
    )
    group.add_argument(
        "--coco_results",
        action="store_true",
        help="write OUTPUT/captions.json as well, COCO's results for pycocotools",
    )
    group.add_argument(
        "--sidecars", metavar="DIR", help="write each caption to DIR/KEY.txt as well"
    )
    group.add_argument(
        "--copies", action="store_true", help="with --sidecars: and its image to DIR/KEY"
    )


def from_arguments(args: argparse.Namespace) -> OutputSettings:
    """The settings of a command's flags; raises InvalidInput."""
    return OutputSettings(args.format, args.sidecars, args.coco_results, args.copies)
