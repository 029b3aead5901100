"""MODELS/models.config: which models and versions TensorFlow Serving loads, and their labels.

The file belongs to the operators of the server. An export changes its own model's entry alone,
and of that what it must: `canary` becomes the new version, and the entry begins to have what it
lacks. `stable` is moved by a person.
"""

from collections.abc import Collection
from pathlib import Path

from google.protobuf import text_format  # type: ignore[import-untyped]
from tensorflow_serving.config import model_server_config_pb2

from model.errors import InvalidInput
from serving.labels import MODELS_CONFIG

STABLE, CANARY = "stable", "canary"
# Where the tensorflow/serving image expects MODELS to be mounted.
CONTAINER_ROOT = "/models"
_PLATFORM = "tensorflow"


def read(models: Path) -> model_server_config_pb2.ModelServerConfig:
    """The server's models; none where there is no file.

    Raises:
      InvalidInput: the file is not what the server reads.
    """
    path = models / MODELS_CONFIG
    config = model_server_config_pb2.ModelServerConfig()
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return config
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path}: cannot be read ({error}); mend it, or move it away") from error
    try:
        text_format.Parse(text, config)
    except text_format.ParseError as error:
        raise InvalidInput(
            f"{path}: not a ModelServerConfig of TensorFlow Serving ({error}); mend it, or move it "
            "away and have it written anew"
        ) from error
    if config.WhichOneof("config") == "custom_model_config":
        raise InvalidInput(
            f"{path}: has a custom_model_config, expected a model_config_list, to which a model "
            "can be added; export to another folder"
        )
    return config


def named(config: model_server_config_pb2.ModelServerConfig, name: str) -> set[int]:
    """The versions of a model that the file names, whether they are there or not."""
    entry = _entry(config, name)
    if entry is None:
        return set()
    return {*entry.version_labels.values(), *entry.model_version_policy.specific.versions}


def updated(
    config: model_server_config_pb2.ModelServerConfig,
    name: str,
    version: int,
    older: Collection[int],
) -> str:
    """The file's text once a version is published.

    Args:
      config: what `read` gave; changed.
      name: of the model.
      version: the new one, which becomes `canary`.
      older: all others that there are.
    """
    entry = _entry(config, name)
    if entry is None:
        entry = config.model_config_list.config.add(
            name=name, base_path=f"{CONTAINER_ROOT}/{name}", model_platform=_PLATFORM
        )
    labels = entry.version_labels
    for label in [label for label, labelled in labels.items() if labelled not in older]:
        # Its version was deleted: a server would refuse the file for it.
        del labels[label]
    labels[CANARY] = version
    if STABLE not in labels:
        labels[STABLE] = max(older, default=version)
    policy = entry.model_version_policy
    if policy.HasField("specific"):
        listed = {*policy.specific.versions, *labels.values()} & {*older, version}
        policy.specific.versions[:] = sorted(listed)
    elif policy.WhichOneof("policy_choice") is None:
        # A running server moves a label to versions alone that it has loaded, and refuses the
        # whole file until then: `specific` would keep it from ever loading the new one.
        policy.all.SetInParent()
    return str(text_format.MessageToString(config))


def _entry(
    config: model_server_config_pb2.ModelServerConfig, name: str
) -> model_server_config_pb2.ModelConfig | None:
    entries = config.model_config_list.config
    return next((entry for entry in entries if entry.name == name), None)
