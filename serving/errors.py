"""What can go wrong between a client and a model, by what the caller can do about it.

CaptionbeamError
  InvalidInput
    ServerUnavailable     nobody answers within the deadline: start it, or try later
      NotReady            a server answers that its model is still loading
    ModelMismatch         a model answers that is not ours, or not of this version
  InvalidRequest          the model refuses these images; others may pass
  ServerError             the server failed, or its answer cannot be trusted
    AnswerTooLarge        the answer is beyond a message limit; that to fewer images may not be
CallFailed                one attempt, by gRPC status; `serving.client` turns it into the above
  ServableNotFound
  ModelLoading
  OversizedAnswer
"""

from model.errors import CaptionbeamError, InvalidInput

INVALID_ARGUMENT = "INVALID_ARGUMENT"
NOT_FOUND = "NOT_FOUND"
DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
UNAVAILABLE = "UNAVAILABLE"
OUT_OF_RANGE = "OUT_OF_RANGE"
# Statuses that may pass by themselves; all others answer the same when asked again.
TRANSIENT = frozenset({UNAVAILABLE, RESOURCE_EXHAUSTED, DEADLINE_EXCEEDED})
# Not FAILED_PRECONDITION: so TensorFlow Serving answers an unknown signature, whatever the images.
REFUSED = frozenset({INVALID_ARGUMENT, OUT_OF_RANGE})


class ServerUnavailable(InvalidInput):
    """No attempt was answered before the deadline or the last retry."""


class NotReady(ServerUnavailable):
    """The server's model was still loading at the deadline or the last retry."""


class ModelMismatch(InvalidInput):
    """The model that answers does not have the signatures of `serving.contract`."""


class InvalidRequest(CaptionbeamError):
    """The model refuses the request, or has no caption for one of its images."""


class ServerError(CaptionbeamError):
    """The server failed for a reason that a retry does not mend, or answered other rows."""

    exit_code = 1


class AnswerTooLarge(ServerError):
    """The answer is larger than client or server let pass."""


class CallFailed(Exception):
    """One call failed.

    Attributes:
      code: name of a gRPC status ("INVALID_ARGUMENT").
      message: the callee's own words, on one line.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class ServableNotFound(CallFailed):
    """The server has no such model, or no such version of it loaded; TensorFlow Serving's words."""

    def __init__(self, name: str, version: int | None) -> None:
        asked = f"Latest({name})" if version is None else f"Specific({name}, {version})"
        super().__init__(NOT_FOUND, f"Servable not found for request: {asked}")


class ModelLoading(CallFailed):
    """The server knows the model and cannot run it yet."""

    def __init__(self, message: str) -> None:
        super().__init__(UNAVAILABLE, message)


class OversizedAnswer(CallFailed):
    """The answer was dropped for its size; gRPC calls this RESOURCE_EXHAUSTED."""

    def __init__(self, message: str) -> None:
        super().__init__(OUT_OF_RANGE, message)


def meaning(failed: CallFailed) -> CaptionbeamError:
    """What the caller of a client can do about a failed call."""
    if isinstance(failed, ModelLoading):
        return NotReady(failed.message)
    if isinstance(failed, OversizedAnswer):
        return AnswerTooLarge(
            f"the answer to one image is beyond a message limit ({failed.message}); "
            "raise the limit that is named"
        )
    if failed.code in TRANSIENT:
        return ServerUnavailable(str(failed))
    if failed.code in REFUSED:
        return InvalidRequest(failed.message)
    if failed.code == NOT_FOUND:
        return ModelMismatch(
            f"{failed.message}; expected the name that the server gives its model (--model_name), "
            "and a label that it knows (--version_label) if any"
        )
    return ServerError(f"the model failed ({failed})")
