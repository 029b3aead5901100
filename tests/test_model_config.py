"""Settings: validated once, with the field, the value and what is allowed."""

from pathlib import Path

import pytest

from model.config import Config, SearchConfig, parse_setting
from model.errors import InvalidInput


def test_round_trip(tmp_path: Path) -> None:
    config = Config().updated(
        [("dropout", 0.25), ("training.seed", 7), ("beam_width", 5), ("tie_embeddings", True)]
    )
    path = tmp_path / "config.json"
    path.write_text(config.to_json(), encoding="utf-8")
    assert Config.load(path) == config != Config()
    assert config.decoder.tie_embeddings
    assert (config.decoder.dropout, config.training.seed, config.search.beam_width) == (0.25, 7, 5)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("dropout=2", "decoder.dropout 2.0, expected 0.0 to 0.95"),
        ("learning_rate=NaN", "training.learning_rate nan, expected 1e-09 to 10.0"),
        ("clip_norm=Infinity", "training.clip_norm inf, expected at least 0.0"),
        ("tie_embeddings=1", "decoder.tie_embeddings 1, expected bool"),
        ("ema_decay=1", "training.ema_decay 1.0, expected 0.0 to 0.99999"),
        ("num_layers=1", "decoder.num_layers 1, expected 2 to 16"),
        ("batch_size=0", "training.batch_size 0, expected at least 1"),
        ("batch_size=1.5", "training.batch_size 1.5, expected int"),
        ("length_penalty=-1", "search.length_penalty -1.0, expected 0.0 to 10.0"),
        ("min_length=21", "search.min_length 21, expected 0 to 20"),
        ("block_ngrams=17", "search.block_ngrams 17, expected 0 to 16"),
        ("seed=3000000000", "training.seed 3000000000, expected 0 to 1000000"),
        ("seed=true", "training.seed True, expected int"),
        (
            "schedule=linear",
            "training.schedule 'linear', expected one of constant, cosine, step, plateau",
        ),
        (
            "encoder.trainable=from_block_1",
            "encoder.trainable 'from_block_1', expected one of none, from_block_2, from_block_3, "
            "from_block_4, from_block_5",
        ),
        ("encoder.learning_rate=0", "encoder.learning_rate 0.0, expected 1e-09 to 10.0"),
        ("nonsense=1", "no setting 'nonsense', expected one of decoder."),
        ("dropout", "--set 'dropout', expected FIELD=VALUE"),
    ],
)
def test_wrong_setting_names_field_value_and_range(setting: str, message: str) -> None:
    with pytest.raises(InvalidInput) as error:
        Config().updated([parse_setting(setting)])
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "got list, expected an object"),
        ('{"decoders": {}}', "section 'decoders', expected objects named decoder"),
        ('{"decoder": 3}', "section 'decoder', expected objects"),
    ],
)
def test_wrong_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidInput, match=r"config\.json") as error:
        Config.load(path)
    assert message in str(error.value)


def test_a_file_of_before_the_search_had_rules(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"search": {"beam_width": 2, "max_length": 9}}', encoding="utf-8")
    assert Config.load(path).search == SearchConfig(2, 9, 0.0, 0, 0)


def test_a_learning_rate_without_a_section_is_trainings() -> None:
    config = Config().updated([("learning_rate", 0.5), ("trainable", "from_block_4")])
    assert (config.training.learning_rate, config.encoder.learning_rate) == (0.5, 1e-5)
    assert config.encoder.is_trained
    own = config.updated([("encoder.learning_rate", 0.25)])
    assert (own.training.learning_rate, own.encoder.learning_rate) == (0.5, 0.25)
    assert not Config.from_dict({"decoder": {}}, "of before").encoder.is_trained


@pytest.mark.parametrize("other", [("xla", True), ("precision", "bfloat16")])
def test_an_encoder_is_fine_tuned_in_float32_without_xla(other: tuple[str, object]) -> None:
    tuned = ("trainable", "from_block_4")
    with pytest.raises(InvalidInput, match=r"encoder\.trainable from_block_4 with training\.prec"):
        Config().updated([tuned, other])
    with pytest.raises(InvalidInput, match="expected precision float32 and xla false"):
        Config().updated([other]).updated([tuned])


def test_settings_that_limit_each_other_come_in_any_order() -> None:
    changes = [("min_length", 30), ("max_length", 40)]
    assert Config().updated(changes) == Config().updated(reversed(changes))
    assert Config().updated(changes).search == SearchConfig(max_length=40, min_length=30)
    with pytest.raises(InvalidInput, match=r"search\.min_length 30, expected 0 to 29"):
        Config().updated(changes).updated([("max_length", 29)])


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot be read"):
        Config.load(tmp_path / "none.json")
