"""Flags that several commands share: where captions come from."""

import argparse
from typing import Any

from serving.contract import DEFAULT_MODEL_NAME, GRPC_PORT
from serving.target import CONNECT_TIMEOUT_S, FOR_A_SERVER, Target, without_server

SERVER_METAVAR = "HOST:PORT[,…]"


def add_target(parser: argparse.ArgumentParser) -> None:
    """Declare --model or --server, one of which must be given, and the server's flags."""
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--model", metavar="MODELS/NAME", help="exported model to run here")
    where.add_argument(
        "--server",
        metavar=SERVER_METAVAR,
        help=f"server to ask (port {GRPC_PORT}), or replicas that take turns",
    )
    add_server_flags(parser)


def add_server_flags(parser: argparse.ArgumentParser) -> None:
    """Declare how a server is asked, to be read through `target` or `server`."""
    parser.add_argument(
        "--model_name",
        metavar="NAME",
        help=f"what the server calls its model (default: {DEFAULT_MODEL_NAME})",
    )
    parser.add_argument(
        "--version_label",
        metavar="LABEL",
        help="version to ask for by the server's label, such as stable (default: the newest)",
    )
    parser.add_argument(
        "--wait_s",
        type=float,
        metavar="SECONDS",
        help="ask so long while the server does not listen or loads its model "
        f"(default: {CONNECT_TIMEOUT_S:g})",
    )
    parser.add_argument(
        "--tls_ca", metavar="FILE.pem", help="speak TLS, and trust these certificates"
    )
    parser.add_argument(
        "--tls_name", metavar="NAME", help="name in the certificate (default: the server's host)"
    )


def target(args: argparse.Namespace) -> Target:
    """Where captions come from; raises InvalidInput for flags that do not go together."""
    return Target(args.model, args.server, **_given(args))


def server(args: argparse.Namespace) -> Target | None:
    """The server to ask, None without --server; raises InvalidInput as `target`."""
    given = _given(args)
    return None if args.server is None else Target(None, args.server, **given)


def _given(args: argparse.Namespace) -> dict[str, Any]:
    given = {name: getattr(args, name) for name in FOR_A_SERVER}
    given = {name: value for name, value in given.items() if value is not None}
    if given and args.server is None:
        raise without_server(*next(iter(given.items())))
    return given
