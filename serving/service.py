"""What the server does with a request, whichever way it came."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from serving import contract
from serving.batching_parameters import BatchingParameters
from serving.errors import (
    INVALID_ARGUMENT,
    NOT_FOUND,
    RESOURCE_EXHAUSTED,
    CallFailed,
    ServableNotFound,
)
from serving.loaded_model import LoadedModel
from serving.metadata import TensorSpec
from serving.monitoring import Monitor
from serving.versions import Versions, VersionStatus, Wanted

_Tensors = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Asked:
    """A request to run a signature.

    Attributes:
      model: name of the model.
      wanted: version of it.
      signature: its name, empty for the default.
      specs: type and shape of each input, as the request declares them.
      decode: gives the inputs; called once their specs are known to fit.
      outputs: names of those wanted, empty for all.
      deadline_s: seconds since 1970.
    """

    model: str
    wanted: Wanted
    signature: str
    specs: Mapping[str, TensorSpec]
    decode: Callable[[], _Tensors]
    outputs: Sequence[str]
    deadline_s: float


@dataclass(frozen=True)
class Predicted:
    """The answer to Asked."""

    version: int
    signature: str
    outputs: _Tensors


class Service:
    """Predictions, metadata and status of one model.

    Every method raises CallFailed with TensorFlow Serving's own code and message, except that an
    unknown signature is INVALID_ARGUMENT (there FAILED_PRECONDITION).

    Args:
      versions: those of the model.
      batching: sizes of a batch, and so of a request, and of the queue; beyond that a request is
        refused at once.
      monitor: what is counted where.
    """

    def __init__(self, versions: Versions, batching: BatchingParameters, monitor: Monitor) -> None:
        self.versions = versions
        self.monitor = monitor
        self._batching = batching
        self._under_way = 0
        self._counting = threading.Lock()

    def predict(self, asked: Asked) -> Predicted:
        """Runs a signature."""
        asked_s = time.time()
        self._check_model(asked.model, asked.wanted)
        with self.versions.using(asked.wanted) as model:
            signature = asked.signature or contract.SERVING_DEFAULT
            outputs = _checked_outputs(asked.outputs, model, signature)
            # Before decoding: a wrong type or rank may declare more elements than memory holds.
            model.verify(signature, asked.specs)
            dims = asked.specs[contract.IMAGE_BYTES].dims or ()
            with self._admitted(dims[0] or 0):
                ran = model.run(signature, asked.decode(), asked.deadline_s)
            self.monitor.computed(signature, asked_s, ran.account)
            found = {name: ran.outputs[name] for name in outputs}
            return Predicted(model.metadata.version, signature, found)

    def metadata(self, name: str, wanted: Wanted) -> tuple[int, Mapping[str, Any]]:
        """Version and `SignatureDef` messages of the version asked for."""
        self._check_model(name, wanted)
        with self.versions.using(wanted) as model:
            return model.metadata.version, model.signature_defs

    def status(self, name: str, wanted: Wanted) -> list[VersionStatus]:
        """Every version known, or the one asked for."""
        number = self.versions.number(wanted) if name == self.versions.name else wanted.version
        found = self.versions.status(number) if name == self.versions.name else []
        if not found:
            which = "any versions" if number is None else f"version {number}"
            raise CallFailed(NOT_FOUND, f"Could not find {which} of model {name}")
        return found

    def _check_model(self, name: str, wanted: Wanted) -> None:
        if name != self.versions.name:
            raise ServableNotFound(name, wanted.version)

    @contextlib.contextmanager
    def _admitted(self, images: int) -> Iterator[None]:
        most, capacity = self._batching.max_batch_size, self._batching.capacity
        if images > most:
            raise CallFailed(
                INVALID_ARGUMENT,
                f"Task size {images} is larger than maximum input batch size {most}",
            )
        with self._counting:
            if self._under_way + images > capacity:
                raise CallFailed(
                    RESOURCE_EXHAUSTED,
                    f"{self._under_way} images wait or are computed, at most {capacity} may; "
                    "try again later",
                )
            self._under_way += images
            self.monitor.under_way(self._under_way)
        try:
            yield
        finally:
            with self._counting:
                self._under_way -= images
                self.monitor.under_way(self._under_way)


def _checked_outputs(wanted: Sequence[str], model: LoadedModel, signature: str) -> Sequence[str]:
    known = model.signature(signature).outputs
    for position, name in enumerate(wanted):
        if name not in known:
            raise CallFailed(
                INVALID_ARGUMENT,
                f"output tensor alias not found in signature: {name} "
                f"Outputs expected to be in the set {{{','.join(sorted(known))}}}.",
            )
        if name in wanted[:position]:
            raise CallFailed(INVALID_ARGUMENT, f"duplicate output tensor alias: {name}")
    return wanted or list(known)
