"""Where captions come from: an exported model in this process, or a server and how to reach it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from model.errors import InvalidInput
from serving import addresses
from serving.contract import DEFAULT_MODEL_NAME
from serving.errors import NotReady, ServerUnavailable

# Long enough for a server on another continent, short enough for a person who mistyped.
CONNECT_TIMEOUT_S = 5.0

# A field that only a server can use, and its flag's name → why.
FOR_A_SERVER: Mapping[str, str] = MappingProxyType(
    {
        "model_name": "which alone is asked for a model by name",
        "version_label": "which alone has labels",
        "wait_s": "which alone is waited for",
        "tls_ca": "which alone is reached over TLS",
        "tls_name": "which alone is reached over TLS",
    }
)


def without_server(name: str, value: object) -> InvalidInput:
    """That a field of FOR_A_SERVER is given, and no server."""
    return InvalidInput(f"--{name} {value}: without --server, {FOR_A_SERVER[name]}; leave it out")


@dataclass(frozen=True)
class Target:
    """Exactly one of model and server; what follows `server` is for a server alone.

    Attributes:
      model: MODELS/NAME or MODELS/NAME/VERSION to run in this process.
      server: HOST:PORT, or several with commas between them.
      model_name: what the server calls its model.
      wait_s: seconds to keep asking while nobody listens or the model is still loading.
      version_label: the version to ask for by the server's label; None asks for the newest.
      tls_ca: PEM file of the certificates to trust; None speaks without TLS.
      tls_name: the name in the certificate, where it is not the host's.
    """

    model: str | None
    server: str | None
    model_name: str = DEFAULT_MODEL_NAME
    wait_s: float = CONNECT_TIMEOUT_S
    version_label: str | None = None
    tls_ca: str | None = None
    tls_name: str | None = None

    def __post_init__(self) -> None:
        """Checks what can be checked without reading a file or asking anybody."""
        if (self.model is None) == (self.server is None):
            raise InvalidInput(
                f"{'neither' if self.model is None else 'both'} of --model and --server given; "
                "expected one: --model MODELS/NAME or --server HOST:PORT"
            )
        for name in ("version_label", "tls_ca"):
            if self.server is None and getattr(self, name) is not None:
                raise without_server(name, getattr(self, name))
        if not 0 < self.wait_s < math.inf:
            raise InvalidInput(f"--wait_s {self.wait_s:g}: expected seconds, more than 0")
        if self.tls_name is not None and self.tls_ca is None:
            raise InvalidInput(
                f"--tls_name {self.tls_name}: without --tls_ca, there is no certificate to look "
                "at; name the file, or leave it out"
            )
        if self.server is not None:
            self._check_names(self.server)

    def absence(self, error: ServerUnavailable) -> ServerUnavailable:
        """What to do about a server that did not answer within `wait_s`."""
        waited = f"({error}) after {self.wait_s:g} s; "
        if isinstance(error, NotReady):
            return NotReady(f"no model yet at {self.server} {waited}wait longer with --wait_s")
        return ServerUnavailable(
            f"no server at {self.server} {waited}start one with `captionbeam serve --model "
            f"MODELS/{self.model_name}`, wait longer with --wait_s, or use --model"
        )

    def _check_names(self, server: str) -> None:
        hosts = {address.host for address in addresses.parse(server)}
        # gRPC checks all certificates of a list against one name.
        if self.tls_ca is not None and self.tls_name is None and len(hosts) > 1:
            raise InvalidInput(
                f"--server {server}: {len(hosts)} hosts with --tls_ca; name with --tls_name the "
                "one name that their certificates have in common"
            )
