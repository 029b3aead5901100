"""Flags that several commands share: where captions come from, and which URLs may be read."""

import argparse

from model.errors import InvalidInput
from serving.contract import DEFAULT_MODEL_NAME, GRPC_PORT


def add_target(parser: argparse.ArgumentParser) -> None:
    """Declare --model or --server, one of which must be given, and --model_name."""
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--model", metavar="MODELS/NAME", help="exported model to run here")
    where.add_argument("--server", metavar="HOST:PORT", help=f"server to ask (port {GRPC_PORT})")
    add_model_name(parser)


def add_model_name(parser: argparse.ArgumentParser) -> None:
    """Declare --model_name, to be read through `model_name`."""
    parser.add_argument(
        "--model_name",
        metavar="NAME",
        help=f"what the server calls its model, with --server (default: {DEFAULT_MODEL_NAME})",
    )


def model_name(args: argparse.Namespace) -> str:
    """The model to ask a server for; raises InvalidInput where no server is asked."""
    if args.model_name is not None and args.server is None:
        raise InvalidInput(
            f"--model_name {args.model_name}: without --server, which alone is asked for a model "
            "by name; leave it out"
        )
    return args.model_name or DEFAULT_MODEL_NAME


def add_allow_private(parser: argparse.ArgumentParser) -> None:
    """Declare --allow_private."""
    parser.add_argument(
        "--allow_private",
        metavar="NETWORK",
        nargs="+",
        action="extend",
        default=[],
        help="private networks that URLs may lead to, such as 127.0.0.0/8",
    )
