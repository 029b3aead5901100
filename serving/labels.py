"""Version labels of models.config, the file that `export` writes beside MODELS/NAME."""

from collections.abc import Callable, Mapping
from pathlib import Path

from google.protobuf import text_format  # type: ignore[import-untyped]
from tensorflow_serving.config import model_server_config_pb2

from model.errors import InvalidInput

MODELS_CONFIG = "models.config"


def read_config(file: Path) -> model_server_config_pb2.ModelServerConfig:
    """The server's models; none where there is no file.

    Raises:
      InvalidInput: the file is not what the server reads.
    """
    config = model_server_config_pb2.ModelServerConfig()
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return config
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{file}: cannot be read ({error}); mend it, or move it away") from error
    try:
        text_format.Parse(text, config)
    except text_format.ParseError as error:
        raise InvalidInput(
            f"{file}: not a ModelServerConfig of TensorFlow Serving ({error}), expected a "
            "ModelServerConfig in text form; mend it, or move it away and have it written anew by "
            "`captionbeam export`"
        ) from error
    return config


def read_labels(file: Path, name: str) -> dict[str, int]:
    """The version that each label of the model `name` stands for; raises as `read_config`."""
    return {
        label: int(version)
        for entry in read_config(file).model_config_list.config
        if entry.name == name
        for label, version in entry.version_labels.items()
    }


class LabelFile:
    """Labels as they stand in the file now; those read last where it cannot be read."""

    def __init__(self, file: Path, name: str, log: Callable[[str], None]) -> None:
        """Reads nothing yet.

        Args:
          file: MODELS/models.config.
          name: of the model, as in MODELS/NAME.
          log: takes a line when the file cannot be read, once for each state of it.
        """
        self._file = file
        self._name = name
        self._log = log
        self._last: Mapping[str, int] = {}
        self._complaint = ""

    def __call__(self) -> Mapping[str, int]:
        """Label → version."""
        try:
            self._last = read_labels(self._file, self._name)
            self._complaint = ""
        except InvalidInput as error:
            if str(error) != self._complaint:
                self._log(f"labels stay as they are: {error}")
            self._complaint = str(error)
        return self._last
