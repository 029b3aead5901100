"""Published versions on disk: MODELS/NAME/VERSION, and what each says of itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from tensorflow.core.protobuf import saved_model_pb2

from model.errors import InvalidInput
from serving import metadata
from serving.layout import SAVED_MODEL_FILE, is_version
from serving.metadata import ModelMetadata


@dataclass(frozen=True)
class ModelVersion:
    """A published version: MODELS/NAME/VERSION."""

    path: Path
    name: str
    version: int


@dataclass(frozen=True)
class Source:
    """Where versions come from.

    Attributes:
      name_dir: MODELS/NAME.
      version: the only one that is meant, None for all.
    """

    name_dir: Path
    version: int | None = None

    def versions(self) -> dict[int, ModelVersion]:
        """Those that are there now, by number; none where the directory cannot be read."""
        try:
            paths = [path for path in self.name_dir.iterdir() if is_version(path)]
            found = {int(path.name): path for path in paths if path.is_dir()}
        except OSError:
            return {}
        return {
            version: ModelVersion(path, self.name_dir.name, version)
            for version, path in found.items()
            if self.version in (None, version)
        }


def find_source(model_dir: str | Path) -> Source:
    """MODELS/NAME with all its versions, or one MODELS/NAME/VERSION.

    Raises:
      InvalidInput: there is no such directory, or no version in it.
    """
    path = Path(model_dir).resolve()
    if not path.is_dir():
        raise InvalidInput(f"{model_dir}: no such directory; expected MODELS/NAME of `export`")
    if (path / SAVED_MODEL_FILE).is_file():
        if not is_version(path):
            raise InvalidInput(
                f"{model_dir}: a SavedModel outside a version directory; "
                "expected a number as its name (MODELS/NAME/VERSION)"
            )
        return Source(path.parent, int(path.name))
    source = Source(path)
    if not source.versions():
        raise InvalidInput(
            f"{model_dir}: no version in it; expected MODELS/NAME/VERSION/{SAVED_MODEL_FILE}, "
            "as `captionbeam export --output MODELS/NAME` publishes it"
        )
    return source


def find_version(model_dir: str | Path) -> ModelVersion:
    """The version directory itself, or the highest version under MODELS/NAME.

    Raises:
      InvalidInput: as `find_source`.
    """
    versions = find_source(model_dir).versions()
    return versions[max(versions)]


def describe(found: ModelVersion) -> tuple[ModelMetadata, Mapping[str, Any]]:
    """Its metadata and `SignatureDef` messages, without loading it.

    Raises:
      InvalidInput: it is no readable SavedModel.
      ModelMismatch: it is not a captionbeam model.
    """
    definitions = _signature_defs(found.path)
    described = ModelMetadata(found.name, found.version, metadata.from_signature_defs(definitions))
    metadata.check(described)
    return described, definitions


def _signature_defs(path: Path) -> dict[str, Any]:
    file = path / SAVED_MODEL_FILE
    try:
        saved_model = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    except (OSError, DecodeError) as error:
        raise InvalidInput(f"{file}: no readable SavedModel ({error}); export it again") from error
    for graph in saved_model.meta_graphs:
        if tf.saved_model.SERVING in graph.meta_info_def.tags:
            return dict(graph.signature_def)
    raise InvalidInput(f'{file}: no graph tagged "{tf.saved_model.SERVING}"; export it again')
