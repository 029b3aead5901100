"""Settings that belong together, by name: `--config seed`, `--config grid14`, `--config tiny`.

A recipe is a JSON file beside this module: what it is for, flags of `preprocess`, settings of
`train`, and where each value was published. docs/recipes.md shows them.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.config import Config
from model.errors import InvalidInput

_DIRECTORY = Path(__file__).with_name("recipes")


@dataclass(frozen=True)
class Recipe:
    """A named set of settings.

    Attributes:
      about: what it is for, a sentence.
      preprocess: value of each flag of `captionbeam preprocess`.
      config: of the training.
      sources: where each value comes from, by "section.field".
    """

    about: str
    preprocess: dict[str, Any]
    config: Config
    sources: dict[str, str]


def recipe_names() -> list[str]:
    """Names of all recipes."""
    return sorted(path.stem for path in _DIRECTORY.glob("*.json"))


def load_recipe(name: str) -> Recipe:
    """Read one of `recipe_names`."""
    path = _DIRECTORY / f"{name}.json"
    fields = json.loads(path.read_text(encoding="utf-8"))
    config = Config.from_dict(fields["config"], str(path))
    return Recipe(fields["about"], fields["preprocess"], config, fields["sources"])


def load_config(name_or_path: str) -> Config:
    """A recipe's settings, or those of a JSON file.

    Raises:
      InvalidInput: neither a recipe nor a readable file of settings.
    """
    names = recipe_names()
    if name_or_path in names:
        return load_recipe(name_or_path).config
    if not Path(name_or_path).exists():
        raise InvalidInput(
            f"--config {name_or_path}: no such file, expected a JSON file of settings or one of "
            f"the recipes {', '.join(names)}"
        )
    return Config.load(name_or_path)
