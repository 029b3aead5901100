"""What a server counts, in Prometheus' format."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from serving.graph import Account

# From a tiny picture on a GPU to a full queue on a laptop.
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Monitor:
    """Counters of one server, in a registry of its own."""

    def __init__(self) -> None:
        """All at zero."""
        self._registry = CollectorRegistry()

        into = self._registry
        self._requests = Counter(
            "captionbeam_requests",
            "Requests by how they ended.",
            ("api", "method", "code"),
            registry=into,
        )
        self._images = Counter(
            "captionbeam_images", "Images computed.", ("signature",), registry=into
        )
        self._batch_size = Histogram(
            "captionbeam_batch_size",
            "Images computed in a batch.",
            buckets=_SIZES,
            registry=into,
        )
        self._queue = Histogram(
            "captionbeam_queue_seconds",
            "Time from a request's arrival to the beginning of its batch.",
            buckets=_SECONDS,
            registry=into,
        )
        self._compute = Histogram(
            "captionbeam_compute_seconds",
            "Time that a request's batch took.",
            buckets=_SECONDS,
            registry=into,
        )
        self._under_way = Gauge(
            "captionbeam_images_under_way", "Images that wait or are computed.", registry=into
        )
        self._version = Gauge(
            "captionbeam_model_version",
            "The version that answers by default.",
            ("model",),
            registry=into,
        )

    def count(self, api: str, method: str, code: str) -> None:
        """A request has ended.

        Args:
          api: "grpc" or "rest".
          method: name of the RPC.
          code: name of its gRPC status.
        """
        self._requests.labels(api, method, code).inc()

    def computed(self, signature: str, asked_s: float, account: Account) -> None:
        """A request has been computed.

        Args:
          signature: its name.
          asked_s: when it arrived, in seconds since 1970.
          account: of its rows.
        """
        count = len(account.batch_row)
        self._images.labels(signature).inc(count)
        if not count:
            return
        self._queue.observe(max(0.0, float(account.started_s[0]) - asked_s))
        self._compute.observe(float(account.ended_s[0] - account.started_s[0]))
        # One of the requests in a batch has its first row.
        if account.batch_row[0] == 0:
            self._batch_size.observe(int(account.batch_size[0]))

    def under_way(self, images: int) -> None:
        """How many images wait or are computed now."""
        self._under_way.set(images)

    def serves(self, model: str, version: int | None) -> None:
        """Which version answers by default; 0 for none."""
        self._version.labels(model).set(version or 0)

    def to_text(self) -> bytes:
        """All of it, in the text format of Prometheus."""
        return generate_latest(self._registry)
