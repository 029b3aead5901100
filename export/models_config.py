"""MODELS/models.config: which models and versions TensorFlow Serving loads, and their labels.

The file belongs to the operators of the server. An export changes its own model's entry alone,
and of that what it must: `canary` becomes the new version, and the entry begins to have what it
lacks. `stable` is moved by a person. What a running server would refuse is not written but said.
"""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath

from google.protobuf import text_format  # type: ignore[import-untyped]
from tensorflow_serving.config import (
    file_system_storage_path_source_pb2 as storage_path_pb2,
)
from tensorflow_serving.config import model_server_config_pb2

from model.errors import InvalidInput
from serving.labels import MODELS_CONFIG, read_config

STABLE, CANARY = "stable", "canary"
# Where the tensorflow/serving image expects MODELS to be mounted.
CONTAINER_ROOT = "/models"
_PLATFORM = "tensorflow"


def read(models: Path) -> model_server_config_pb2.ModelServerConfig:
    """As `serving.labels.read_config`, of a file to which a model can be added.

    Raises:
      InvalidInput: the file is not what the server reads, or lists no models.
    """
    path = models / MODELS_CONFIG
    config = read_config(path)
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
) -> tuple[str, list[str]]:
    """The file once a version is published.

    Args:
      config: what `read` gave; changed.
      name: of the model.
      version: the new one, which becomes `canary` where a server could follow.
      older: all others that there are.

    Returns:
      The text; a line for each thing that a person has to know or do.
    """
    entry = _entry(config, name)
    if entry is None:
        entry = config.model_config_list.config.add(
            name=name, base_path=f"{CONTAINER_ROOT}/{name}", model_platform=_PLATFORM
        )
    if PurePosixPath(entry.base_path).name == name:
        notes = _relabel(entry, version, older)
    else:
        notes = [
            f"{name} is served from {entry.base_path!r}, which is not where {version} is "
            "published: its labels and policy stay as they are"
        ]
    text = str(text_format.MessageToString(config))
    return text, [f"{MODELS_CONFIG}: {note}" for note in notes]


def _relabel(
    entry: model_server_config_pb2.ModelConfig, version: int, older: Collection[int]
) -> list[str]:
    """Give a version its label, and the others what they lack; returns what is to be said."""
    labels, policy = entry.version_labels, entry.model_version_policy
    if policy.WhichOneof("policy_choice") is None:
        policy.all.SetInParent()
    # A running server moves a label to versions alone that it has loaded, and refuses the whole
    # file until then. With `specific` it would have to read the file to load the new one.
    follows = not policy.HasField("specific")
    loaded = _loaded(policy, {*older, version} if follows else older)
    gone = {label: labelled for label, labelled in labels.items() if labelled not in older}
    for label in gone:
        del labels[label]
    if follows or CANARY not in {*labels, *gone}:
        labels[CANARY] = version
    if STABLE not in labels:
        vouched = loaded.intersection(older)
        if vouched or (not older and (follows or STABLE not in gone)):
            labels[STABLE] = max(vouched, default=version)
    if not follows:
        listed = {*policy.specific.versions, *labels.values()}.intersection(older)
        policy.specific.versions[:] = sorted({*listed, version})
    return [*_of_labels(labels, gone), *_of_policy(entry, version, loaded)]


def _loaded(
    policy: storage_path_pb2.FileSystemStoragePathSourceConfig.ServableVersionPolicy,
    versions: Collection[int],
) -> set[int]:
    """Those of the versions that a server has loaded."""
    if policy.HasField("specific"):
        return {*policy.specific.versions}.intersection(versions)
    if policy.HasField("latest"):
        return {*sorted(versions)[-max(policy.latest.num_versions, 1) :]}
    return {*versions}


def _of_labels(labels: Mapping[str, int], gone: Mapping[str, int]) -> Iterator[str]:
    for label, labelled in sorted(gone.items()):
        now = labels.get(label)
        if label != CANARY or now is None:
            became = "the label is removed" if now is None else f"the label names {now} now"
            yield f"{label} named {labelled}, which was deleted: {became}"
    if STABLE not in labels and STABLE not in gone:
        yield f"no {STABLE} yet, since no older version is loaded: add it by hand"


def _of_policy(
    entry: model_server_config_pb2.ModelConfig, version: int, loaded: Collection[int]
) -> Iterator[str]:
    labels, policy = entry.version_labels, entry.model_version_policy
    if policy.HasField("specific") and labels.get(CANARY) != version:
        yield (
            f"since it lists specific versions, set {CANARY} to {version} once {version} is "
            "AVAILABLE, or use `all {}`"
        )
    if policy.HasField("latest"):
        for label, labelled in sorted(labels.items()):
            if labelled not in loaded:
                yield (
                    f"{label} names {labelled}, which is not among the latest {len(loaded)} and "
                    "is not loaded: raise num_versions, or use `all {}`"
                )


def _entry(
    config: model_server_config_pb2.ModelServerConfig, name: str
) -> model_server_config_pb2.ModelConfig | None:
    entries = config.model_config_list.config
    return next((entry for entry in entries if entry.name == name), None)
