"""Version labels of models.config, the file that `export` writes beside MODELS/NAME."""

from collections.abc import Callable, Mapping
from pathlib import Path

from google.protobuf import text_format  # type: ignore[import-untyped]
from tensorflow_serving.config import model_server_config_pb2

from model.errors import InvalidInput

MODELS_CONFIG = "models.config"


def read_labels(file: Path, name: str) -> dict[str, int]:
    """The version that each label of the model `name` stands for; none without the file.

    Raises:
      InvalidInput: the file cannot be read.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{file}: cannot be read ({error}); mend or remove it") from error
    try:
        config = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    except text_format.ParseError as error:
        raise InvalidInput(
            f"{file}: {error}; expected a ModelServerConfig, as `captionbeam export` writes it"
        ) from error
    return {
        label: int(version)
        for entry in config.model_config_list.config
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
