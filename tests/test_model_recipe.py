"""Recipes: each value says where it comes from, and the documentation shows them all."""

from dataclasses import asdict
from pathlib import Path

import pytest

import captionbeam
from model.config import Config
from model.errors import InvalidInput
from model.recipe import load_config, load_recipe, recipe_names
from pipelines import preprocess

DOCUMENT = Path(__file__).parents[1] / "docs" / "recipes.md"


def test_there_is_one_for_a_start_two_phases_to_win_and_one_for_tests() -> None:
    assert recipe_names() == ["grid14", "seed", "self_critical", "tiny"]


def named(name: str) -> dict[str, object]:
    """Every value that the recipe's file names, by section and field."""
    recipe = load_recipe(name)
    values: dict[str, object] = {f"preprocess.{k}": v for k, v in recipe.preprocess.items()}
    for section, fields in asdict(recipe.config).items():
        defaults = getattr(Config(), section)
        for field, value in fields.items():
            key = f"{section}.{field}"
            if key in recipe.sources:
                values[key] = value
            else:
                assert value == getattr(defaults, field), key
    return values


@pytest.mark.parametrize("name", recipe_names())
def test_every_value_has_its_source_in_the_documentation(name: str) -> None:
    recipe, values = load_recipe(name), named(name)
    assert set(recipe.sources) == set(values)
    _, _, chapter = DOCUMENT.read_text(encoding="utf-8").partition(f"## {name}\n")
    chapter, _, _ = chapter.partition("\n## ")
    rows = [line for line in chapter.splitlines() if line.startswith("| `")]
    assert rows == [
        f"| `{key}` | {value} | {recipe.sources[key]} |" for key, value in values.items()
    ]
    assert recipe.about in chapter


@pytest.mark.parametrize("name", recipe_names())
def test_records_and_search_go_with_the_training(name: str) -> None:
    recipe = load_recipe(name)
    parser = captionbeam._Parser()
    preprocess.add_arguments(parser)
    flags = [f"--{flag}={value}" for flag, value in recipe.preprocess.items()]
    args = parser.parse_args(["--split", "train=a.json:images", "--output", "records", *flags])
    # A caption that was cut at another length teaches an end that is never reached.
    assert recipe.config.search.max_length >= args.max_words
    for flag, value in recipe.preprocess.items():
        assert getattr(args, flag) == value


def test_a_name_or_a_file(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_text('{"training": {"batch_size": 7}}', encoding="utf-8")
    assert load_config(str(path)).training.batch_size == 7
    assert load_config("grid14") == load_recipe("grid14").config != Config()
    with pytest.raises(InvalidInput, match="one of the recipes grid14, seed, self_critical, tiny"):
        load_config("grid41")
