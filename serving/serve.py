"""Serve an exported model over TensorFlow Serving's gRPC API.

    captionbeam serve --model models/captioner

Loads MODELS/NAME (its highest version) or MODELS/NAME/VERSION and answers Predict,
GetModelMetadata and GetModelStatus. Prints one line when it is ready:

    serving captioner version 1 on 127.0.0.1:8500

SIGTERM or Ctrl-C let the calls under way finish, then it exits 0. For production, run the
tensorflow/serving image on the same directory.
"""

import argparse
import signal
import threading

from model.startup import import_tensorflow
from serving.contract import GRPC_PORT


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    parser.add_argument(
        "--model", required=True, metavar="MODELS/NAME", help="exported model, or one version of it"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument(
        "--port", type=int, default=GRPC_PORT, help="0 takes any free one (%(default)s)"
    )
    parser.add_argument(
        "--model_name",
        metavar="NAME",
        help="what clients call the model (default: the directory's, NAME)",
    )


def run(args: argparse.Namespace) -> int:
    """Serves until a signal; raises InvalidInput for a model or address that cannot be used."""
    import_tensorflow()
    from serving.loaded_model import LoadedModel
    from serving.server import Server

    model = LoadedModel(args.model)
    server = Server(model, name=args.model_name, host=args.host, port=args.port)
    stop = threading.Event()
    # Before the ready line: a launcher may stop the server as soon as it has read it.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    server.start()
    print(f"serving {server.name} version {server.version} on {server.address}", flush=True)
    stop.wait()
    server.stop()
    return 0
