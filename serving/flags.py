"""Flags that several commands share: where captions come from, and which URLs may be read."""

import argparse

from serving.contract import DEFAULT_MODEL_NAME, GRPC_PORT


def add_target(parser: argparse.ArgumentParser) -> None:
    """Declare --model or --server, one of which must be given, and --model_name."""
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--model", metavar="MODELS/NAME", help="exported model to run here")
    where.add_argument("--server", metavar="HOST:PORT", help=f"server to ask (port {GRPC_PORT})")
    add_model_name(parser)


def add_model_name(parser: argparse.ArgumentParser) -> None:
    """Declare --model_name."""
    parser.add_argument(
        "--model_name",
        metavar="NAME",
        default=DEFAULT_MODEL_NAME,
        help="what the server calls its model (default: %(default)s)",
    )


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
