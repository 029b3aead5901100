"""A gRPC channel to one server or several replicas: balance, health, keepalive, TLS."""

import json
from pathlib import Path

import grpc

from model.errors import InvalidInput
from serving import addresses
from serving.contract import MAX_MESSAGE_MIB
from serving.target import Target

MAX_MESSAGE_BYTES = MAX_MESSAGE_MIB * 2**20

_SERVICE_CONFIG = {
    # The default, pick_first, would give one replica everything.
    "loadBalancingConfig": [{"round_robin": {}}],
    # A replica whose health service says NOT_SERVING gets nothing; one that has no such
    # service, as TensorFlow Serving unless told otherwise, is taken as healthy.
    "healthCheckConfig": {"serviceName": ""},
}

CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    # One retry policy, that of serving.client.
    ("grpc.enable_retries", 0),
    # A captioning server is reached directly, on loopback above all.
    ("grpc.enable_http_proxy", 0),
    # The default waits a second after a refused connection, longer than our first retries.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # Finds out about a machine that went away without a word. gRPC's servers, TensorFlow Serving
    # among them, hang up with too_many_pings on a few pings in less than five minutes without
    # data between, and a watch over health is a call that is silent for hours: with a minute
    # here, an idle client's next call fails. What was sent and not acknowledged ends a
    # connection after the 20 s anyway (TCP_USER_TIMEOUT).
    ("grpc.keepalive_time_ms", 330_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 0),
)


def open_channel(target: Target) -> grpc.Channel:
    """A channel to `target.server`; nothing is sent before the first call.

    Raises:
      InvalidInput: a name of several, or the file of certificates, cannot be used.
    """
    places = addresses.parse(str(target.server))
    where = addresses.target(places)
    # The name that servers are told, and that their certificates must have. gRPC's own would
    # be the list of IP addresses.
    options = (*CHANNEL_OPTIONS, ("grpc.default_authority", target.tls_name or str(places[0])))
    if target.tls_ca is None:
        return grpc.insecure_channel(where, options=options)
    credentials = grpc.ssl_channel_credentials(_read_certificates(Path(target.tls_ca)))
    return grpc.secure_channel(where, credentials, options=options)


def _read_certificates(path: Path) -> bytes:
    wanted = "expected a PEM file with the certificates to trust"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InvalidInput(
            f"--tls_ca {path}: cannot be read ({error.strerror}); {wanted}"
        ) from error
    # gRPC would say no more than that it cannot connect.
    if b"-----BEGIN CERTIFICATE-----" not in data:
        raise InvalidInput(f"--tls_ca {path}: has no certificate; {wanted}")
    return data
