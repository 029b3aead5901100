"""How the local server listens."""

import ssl
from dataclasses import dataclass
from pathlib import Path

from model.errors import InvalidInput
from serving.channel import MAX_MESSAGE_BYTES


@dataclass(frozen=True)
class ServerSettings:
    """How a server listens.

    Attributes:
      name: what clients call the model; the directory's by default.
      host: address to listen on.
      port: of gRPC; 0 takes any free one.
      rest_port: of REST, likewise; None for no REST.
      certificate: PEM file of the certificate chain, for TLS on both ports.
      key: PEM file of its key.
      max_message_bytes: the largest request and answer.
    """

    name: str | None = None
    host: str = "127.0.0.1"
    port: int = 0
    rest_port: int | None = None
    certificate: Path | None = None
    key: Path | None = None
    max_message_bytes: int = MAX_MESSAGE_BYTES

    def __post_init__(self) -> None:
        """Checks ports, sizes, and that the certificate fits its key."""
        for flag, port in (("--port", self.port), ("--rest_port", self.rest_port or 0)):
            if not 0 <= port <= 65535:
                raise InvalidInput(f"{flag} {port}: expected 0 (any free one) to 65535")
        if not 1 <= self.max_message_bytes < 2**31:
            raise InvalidInput(
                f"--max_message_mib for {self.max_message_bytes} bytes: expected 1 to 2047 MiB"
            )
        if (self.certificate is None) != (self.key is None):
            raise InvalidInput(
                "a certificate without its key, or a key alone; expected both --tls_certificate "
                "and --tls_key, or neither"
            )
        if self.certificate is not None:
            try:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                # Asked for on the terminal otherwise.
                context.load_cert_chain(self.certificate, self.key, password=lambda: "")
            except (OSError, ssl.SSLError) as error:
                raise InvalidInput(
                    f"{self.certificate}, {self.key}: {error}; expected PEM files of a certificate "
                    "and its key, which has no passphrase"
                ) from error
