"""What TensorFlow Serving is started with, beside NAME in MODELS.

models.config is rewritten by each export. The other files are written where they are not there,
and are the operators' from then on: delete one to have it written anew.
"""

import json
from urllib.parse import quote

from export.models_config import CONTAINER_ROOT
from serving.batching_parameters import BATCHING_FILE, BatchingParameters
from serving.contract import GRPC_PORT, METRICS_PATH, REST_PORT
from serving.labels import MODELS_CONFIG

MONITORING_FILE = "monitoring.config"
SSL_EXAMPLE_FILE = "ssl.config.example"
COMPOSE_FILE = "docker-compose.yml"
_BATCHING = BatchingParameters()
BATCH_SIZES = _BATCHING.allowed_batch_sizes

IMAGE = "tensorflow/serving:2.20.0"
FLAGS = (
    f"--port={GRPC_PORT}",
    f"--rest_api_port={REST_PORT}",
    f"--model_config_file={CONTAINER_ROOT}/{MODELS_CONFIG}",
    # An export or a promotion is seen within that time.
    "--model_config_file_poll_wait_seconds=10",
    # Else a server that starts refuses labels, since nothing is loaded yet.
    "--allow_version_labels_for_unavailable_models=true",
    "--enable_batching=true",
    f"--batching_parameters_file={CONTAINER_ROOT}/{BATCHING_FILE}",
    f"--monitoring_config_file={CONTAINER_ROOT}/{MONITORING_FILE}",
)


def once_written(name: str) -> dict[str, str]:
    """Texts by file name.

    Args:
      name: of the model whose state is the container's health.
    """
    return {
        BATCHING_FILE: _BATCHING.to_text(),
        MONITORING_FILE: f'prometheus_config {{ enable: true path: "{METRICS_PATH}" }}\n',
        SSL_EXAMPLE_FILE: _SSL_EXAMPLE,
        COMPOSE_FILE: _compose(name),
    }


# Fields of SSLConfig in tensorflow_serving/config/ssl_config.proto: the PEM text itself.
_SSL_EXAMPLE = r"""# TLS of the gRPC port: copy this to ssl.config, put your PEM files in the
# strings' place, and start the server with --ssl_config_file=/models/ssl.config (docs/serving.md).
# The REST port stays without TLS: leave it out, or put a proxy before it.
server_key:
  "-----BEGIN PRIVATE KEY-----\n"
  "(each line of the key, ended by a backslash and n)\n"
  "-----END PRIVATE KEY-----\n"
server_cert:
  "-----BEGIN CERTIFICATE-----\n"
  "(the server's certificate, then those that lead to its authority)\n"
  "-----END CERTIFICATE-----\n"
# The authority of the clients' certificates; they must have one where client_verify is true.
custom_ca: ""
client_verify: false
"""


def _compose(name: str) -> str:
    # The image has no curl, but bash, whose /dev/tcp is a connection.
    health = (
        f"exec 3<>/dev/tcp/127.0.0.1/{REST_PORT} && "
        f"printf 'GET %s HTTP/1.0\\r\\n\\r\\n' '/v1/models/{quote(name)}' >&3 && "
        "grep -q '\"AVAILABLE\"' <&3"
    )
    flags = "".join(f"      - {flag}\n" for flag in FLAGS)
    return (
        "# Written by `captionbeam export`, and yours since: `docker compose up -d` here.\n"
        "services:\n"
        "  serving:\n"
        f"    image: {IMAGE}\n"
        "    restart: unless-stopped\n"
        "    # Whoever reaches the ports may use the models: there are no passwords.\n"
        "    ports:\n"
        f'      - "127.0.0.1:{GRPC_PORT}:{GRPC_PORT}"\n'
        f'      - "127.0.0.1:{REST_PORT}:{REST_PORT}"\n'
        "    volumes:\n"
        f'      - ".:{CONTAINER_ROOT}:ro"\n'
        "    command:\n"
        f"{flags}"
        "    healthcheck:\n"
        f"      test: {json.dumps(['CMD', 'bash', '-c', health])}\n"
        "      interval: 10s\n"
        "      timeout: 5s\n"
        "      retries: 3\n"
        "      # Loading and warming up take longer than an answer.\n"
        "      start_period: 120s\n"
    )
