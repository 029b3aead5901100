"""Serve an exported model over gRPC and REST, as TensorFlow Serving does.

    captionbeam serve --model models/captioner

Answers Predict, GetModelMetadata, GetModelStatus, health and reflection over gRPC, and
TensorFlow Serving's REST API with /metrics. Prints a line for each when it is ready:

    serving captioner version 1 on 127.0.0.1:8500
    REST on http://127.0.0.1:8501

Of MODELS/NAME it serves the highest version; a higher one that appears is loaded, warmed and
switched to while the old one answers, and one that cannot be loaded is refused. Batches are made
as batching_parameters.txt beside NAME says. SIGTERM or Ctrl-C let the calls under way finish, then
it exits 0. For production, run the tensorflow/serving image on the same directory.
"""

import argparse
import os
import queue
import signal
import sys
from pathlib import Path

from model.startup import import_tensorflow
from serving.contract import GRPC_PORT, MAX_MESSAGE_MIB, REST_PORT

_MIB = 2**20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    parser.add_argument(
        "--model", required=True, metavar="MODELS/NAME", help="exported model, or one version of it"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument(
        "--port", type=int, default=GRPC_PORT, help="of gRPC, 0 takes any free one (%(default)s)"
    )
    parser.add_argument(
        "--rest_port",
        type=int,
        default=REST_PORT,
        help="of REST, 0 takes any free one (%(default)s)",
    )
    parser.add_argument(
        "--model_name",
        metavar="NAME",
        help="what clients call the model (default: the directory's, NAME)",
    )
    parser.add_argument(
        "--tls_certificate", type=Path, metavar="PEM", help="certificate chain, for TLS"
    )
    parser.add_argument("--tls_key", type=Path, metavar="PEM", help="its key")
    parser.add_argument(
        "--max_message_mib",
        type=int,
        default=MAX_MESSAGE_MIB,
        metavar="MIB",
        help="the largest request and answer (%(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Serves until a signal; raises InvalidInput for a model or address that cannot be used."""
    import_tensorflow()
    from serving.server import Server
    from serving.server_settings import ServerSettings

    settings = ServerSettings(
        name=args.model_name,
        host=args.host,
        port=args.port,
        rest_port=args.rest_port,
        certificate=args.tls_certificate,
        key=args.tls_key,
        max_message_bytes=args.max_message_mib * _MIB,
    )
    server = Server(args.model, settings)
    # Unlike an Event's, its lock may be taken by a handler that interrupts the waiting thread.
    stop: queue.SimpleQueue[int] = queue.SimpleQueue()
    # Before the ready line: a launcher may stop the server as soon as it has read it.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda signum, _: stop.put(signum))
    server.start()
    scheme = "http" if args.tls_certificate is None else "https"
    print(f"serving {server.name} version {server.version} on {server.address}", flush=True)
    print(f"REST on {scheme}://{server.rest_address}", flush=True)
    stop.get()
    if not server.stop():
        print("calls under way have not ended in time and are cut off", file=sys.stderr, flush=True)
        # Their threads would keep the process.
        os._exit(1)
    return 0
