"""model/vocabulary: the reference's tokens, lossless ids, and files that say what is wrong."""

import itertools
import json
import pickle
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from model import tokeniser
from model.errors import InvalidInput
from model.tokeniser import (
    CLITIC_PATTERN,
    CLITIC_REPLACEMENT,
    detokenise,
    ptb_tokens,
    tokenise,
)
from model.vocabulary import SPECIALS, Vocabulary

DATA = Path(__file__).parents[1].parent / "shared" / "data"
needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="no `java` on the PATH")


@pytest.fixture(scope="module")
def real_captions() -> list[str]:
    files = sorted(DATA.glob("*/annotations/*.json"))
    if not files:
        pytest.skip(f"no photographs with captions under {DATA}")
    return [
        annotation["caption"]
        for file in files
        for annotation in json.loads(file.read_text(encoding="utf-8"))["annotations"]
    ]


def reference_tokens(captions: list[str]) -> list[list[str]]:
    """What coco-caption's Java tokeniser makes of each caption."""
    keyed = {index: [{"caption": caption}] for index, caption in enumerate(captions)}
    tokens = PTBTokenizer().tokenize(keyed)
    return [tokens[index][0].split() for index in range(len(captions))]


# Captions with what COCO's hundreds of thousands have and the shared ones lack.
HARD = [
    "A man (in a hat) sits [there].",
    "“It’s” the dog’s — not the men's — ‘bowl’…",
    "He can't, won't and cannot; she's gonna. They're I'm we've he'd it'll",
    "AT&T and R&B & more, $5.00 or 50% of 1,000 at 10:30 a.m.",
    "St. Louis, Mr. Smith and Dr. Who in the U.S.",
    '6 ft. tall, 12" wide, 5\'10" and 1/2 of it',
    "the '70s and the 1970's rock 'n' roll, o'clock o'neil",
    "a red/white bus w/ and/or #1 @home * + = | ~",
    "a 2-year-old in 3-D at 16:9 -- well-dressed --",
    "sitting on a bench.The dog a!b ?! !!",
    "café naïve jalapeño ½ £5",
    "'Tis 'twas the 's dog s' '",
    # Lower-casing beyond ASCII, scripts, and marks that no letter is composed with.
    "CAFÉ NAÏVE ÅNGSTRÖM Straßenschild ΟΔΟΣ МОСКВА İstanbul'da ﬁsh Route66 iPhone6s",
    "हिन्दी में कुत्ता กำลัง 一只狗 在 草地 犬が走る。 n̈ot naïve-looking café.The",
    # Digits.
    "3.5 km, 1,234.56 of 1,000,000 at 12:45pm 10am - 4pm, 1st 2nd, No.5 and no. 7, 5/6 5-6 3x4",
    "-5 degrees, 20°C, #42, ３ dogs, ٣ dogs, 20 m² and x³, 25¢ €20 £5, 10A.M., B12, the 1990s",
    # What the reference cannot read leaves nothing.
    "a dog \U0001f600 smiles \U0001f44d\U0001f3fd \U0001f1eb\U0001f1f7 I ❤\ufe0f ★",
    "a\u200bdog a\u00a0cat co\u00adoperate \U0001f468\u200d\U0001f467 end",
]


SPECIAL = (
    "cannot cannots can gonna gonnas wanna gotta lemme gimme not na n't 't 's is y' all o'neil st. "
    "no. 5 u.s. 3-inch '' . - -- / _ @ # & at&t http://x.y x@y.z </p> : ) [ é ² x²"
)


@needs_java
def test_tokens_are_those_of_the_reference_on_every_real_caption(real_captions: list[str]) -> None:
    assert len(real_captions) == 4650
    assert [ptb_tokens(caption) for caption in real_captions] == reference_tokens(real_captions)
    assert [tokenise(caption) for caption in real_captions] == reference_tokens(real_captions)


@needs_java
def test_tokens_are_those_of_the_reference_on_hard_captions() -> None:
    for caption, expected in zip(HARD, reference_tokens(HARD), strict=True):
        assert ptb_tokens(caption) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A man's T-shirt, isn’t it?", "a man 's t-shirt is n't it"),
        ("They cannot. Don't!", "they can not do n't"),
        ("Cats & dogs (two) for $5 -- 50%", "cats & dogs two for $ 5 50 %"),
        ("\"Two\" 1,000 ``dogs'' ... ; : -", "two 1,000 dogs"),
        ("  \t\n ", ""),
        (".", ""),
        ("cafe\u0301", "caf\u00e9"),
        ("half a pair \ud83d here", "half a pair here"),
        ("CAFÉ ΟΔΟΣ İstanbul", "café οδος i\u0307stanbul"),
        ("हिन्दी में कुत्ता", "हिन्दी में कुत्ता"),
        ("n\u0308ot q\u0323y", "n\u0308ot q\u0323y"),
        ("3.5 km, 1,000 at 12:45pm, B12 & 20 m²", "3.5 km 1,000 at 12:45 pm b12 & 20 m ²"),
        ("a dog \U0001f600 I ❤\ufe0f NY", "a dog i ❤ ny"),
        ("a\u200bdog co\u00adoperates\u2028here", "a dog cooperates here"),
    ],
)
def test_tokens_without_java(text: str, expected: str) -> None:
    assert " ".join(tokenise(text)) == expected


def test_the_short_cut_for_plain_words_changes_no_token(real_captions: list[str]) -> None:
    """Against the pattern without it, on captions and on everything special beside everything."""
    marked = f"\n    {tokeniser._PLAIN_WORD}\n  |"
    assert marked in tokeniser._TOKEN.pattern
    without = re.compile(tokeniser._TOKEN.pattern.replace(marked, "\n   "), re.VERBOSE)
    special = SPECIAL.split()
    pairs = ["".join(parts) for parts in itertools.product(special, ("", " ", ",", "\n"), special)]
    for text in map(str.lower, (*real_captions, *HARD, *pairs)):
        assert tokeniser._TOKEN.findall(text) == without.findall(text)


@pytest.mark.parametrize(
    ("joined", "expected"),
    [
        ("the man 's hat is n't the dogs '", "the man's hat isn't the dogs '"),
        ("she should n't 've said they 're 's", "she shouldn't've said they're's"),
        ("the '70s at o'clock", "the '70s at o'clock"),
        ("'s first", "'s first"),
        ("", ""),
    ],
)
def test_detokenise_attaches_clitics(joined: str, expected: str) -> None:
    assert detokenise(joined.split()) == expected


def test_text_of_words_has_those_words_again(real_captions: list[str]) -> None:
    for caption in [*real_captions, *HARD]:
        words = tokenise(caption)
        assert tokenise(detokenise(words)) == words


def test_detokenising_in_a_tensorflow_graph_is_the_same(real_captions: list[str]) -> None:
    tf = pytest.importorskip("tensorflow")
    joined = [" ".join(tokenise(caption)) for caption in real_captions] + ["should n't 've 's"]
    in_graph = tf.strings.regex_replace(joined, CLITIC_PATTERN, CLITIC_REPLACEMENT).numpy()
    assert [text.decode() for text in in_graph] == [detokenise(text.split()) for text in joined]


def test_build_orders_by_count_then_word_and_cuts_rare_words() -> None:
    vocabulary = Vocabulary.build({"b": 5, "a": 5, "c": 9, "d": 4, "<end>": 7}, min_count=5)
    assert vocabulary.words == ("<pad>", "<start>", "<end>", "<unk>", "c", "a", "b")
    assert vocabulary.pad_id == 0
    assert vocabulary.start_id == 1
    assert vocabulary.end_id == 2
    assert vocabulary.unk_id == 3


def test_specials_are_found_by_name_not_by_place() -> None:
    vocabulary = Vocabulary(("<pad>", "<unk>", "dog", "<end>", "<start>"))
    assert (vocabulary.unk_id, vocabulary.end_id, vocabulary.start_id) == (1, 3, 4)
    assert vocabulary.encode("Dog, cat.") == [2, 1]
    assert vocabulary.decode([4, 2, 1, 3, 2]) == "dog <unk>"


def test_decode_stops_at_end_and_skips_start_and_padding() -> None:
    vocabulary = Vocabulary.build({"a": 3, "man": 2, "'s": 2, "hat": 1}, min_count=1)
    ids = vocabulary.encode("A man's hat")
    assert vocabulary.decode([1, *ids, 2, 4, 4, 0, 0]) == "a man's hat"
    assert vocabulary.decode([0, *ids, 0]) == "a man's hat"
    with pytest.raises(IndexError, match="id 8, expected 0 to 7"):
        vocabulary.decode([8])


def test_a_caption_cannot_write_special_ids() -> None:
    vocabulary = Vocabulary.build({"dog": 3}, min_count=1)
    ids = vocabulary.encode("<end> dog <pad> <start>")
    assert ids == [3, 4, 3, 3]


def test_save_load_and_digest(tmp_path: Path) -> None:
    vocabulary = Vocabulary.build({"café": 3, "dog": 2}, min_count=1)
    vocabulary.save(tmp_path / "vocabulary.json")
    loaded = Vocabulary.load(tmp_path / "vocabulary.json")
    assert loaded == vocabulary
    assert [file.name for file in tmp_path.iterdir()] == ["vocabulary.json"]
    assert pickle.loads(pickle.dumps(loaded)).encode("dog") == vocabulary.encode("dog")
    # printf '%s' '["<pad>","<start>","<end>","<unk>","caf\\u00e9","dog"]' | sha256sum
    assert loaded.digest == "a6b7943690181dd0ecc154e2bc4f7520430746109d30d5393755aeaf1bce3ef6"
    assert Vocabulary((*SPECIALS, "dog", "café")).digest != loaded.digest


WORDS = '"<pad>", "<start>", "<end>", "<unk>"'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "JSON list, expected an object"),
        ('{"words": []}', "schema version None, expected 1"),
        ('{"schema_version": 2, "words": []}', "schema version 2, expected 1"),
        ('{"schema_version": 1, "words": "a"}', "no list of strings"),
        ('{"schema_version": 1, "words": [1]}', "no list of strings"),
        ('{"schema_version": 1, "words": ["<pad>", "<start>", "<end>"]}', "without <unk>"),
        (f'{{"schema_version": 1, "words": [{WORDS}, "dog", "dog"]}}', "'dog' twice"),
        (f'{{"schema_version": 1, "words": ["dog", {WORDS}]}}', "<pad> at 1, expected at 0"),
    ],
)
def test_a_file_that_is_no_vocabulary(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "vocabulary.json"
    path.write_text(text)
    with pytest.raises(InvalidInput) as raised:
        Vocabulary.load(path)
    assert message in str(raised.value)
    assert str(raised.value).startswith(str(path))
    assert "\n" not in str(raised.value)


def test_a_missing_or_binary_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot be read"):
        Vocabulary.load(tmp_path / "vocabulary.json")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidInput, match="cannot be read"):
        Vocabulary.load(tmp_path / "binary")


ALPHABET = "aZé\u0301ßİ09²½.,'-_&@#:/()[] \t\u00a0\u200b\u0937\u093f犬\U0001f600\ud83d❤\ufe0f"


def test_tokens_of_any_text_are_lower_case_words_that_stay_themselves() -> None:
    generator = random.Random(0)
    for _ in range(3000):
        text = "".join(generator.choices(ALPHABET, k=generator.randint(0, 12)))
        words = tokenise(text)
        for word in words:
            assert word
            assert word == word.lower(), text
            assert not re.search(r"\s", word), text
            word.encode()
        # The words of an upper-case text are those of the text, but for letters of one case.
        assert tokenise(text.lower()) == words or "İ" in text


def keras_json(word_index: dict[str, int], num_words: int | None) -> str:
    """`keras_preprocessing` 1.1's Tokenizer.to_json, which nests JSON text for its tables."""
    config = {"num_words": num_words, "oov_token": "<unk>", "word_index": json.dumps(word_index)}
    return json.dumps({"class_name": "Tokenizer", "config": config})


def test_a_keras_tokenizer_of_the_captioning_tutorial() -> None:
    index = {"<unk>": 1, "a": 2, "<start>": 3, "<end>": 4, "dog": 5, "rare": 6, "rarer": 7}
    by_hand = index | {"<pad>": 0}
    expected = ("<pad>", "<unk>", "a", "<start>", "<end>", "dog")
    assert Vocabulary.from_keras_tokenizer(keras_json(by_hand, 6)).words == expected
    assert Vocabulary.from_keras_tokenizer(keras_json(index, 6)).words == expected
    uncut = Vocabulary.from_keras_tokenizer(keras_json(index, None)).words
    assert uncut[5:] == ("dog", "rare", "rarer")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "no word_index"),
        ('{"config": {"word_index": "{"}}', "no word_index"),
        ('{"config": {"word_index": {}}}', "no word_index"),
        (keras_json({"<unk>": 1, "<start>": 2, "<end>": 4}, None), "gaps"),
        (keras_json({"<unk>": 1, "<start>": 2}, None), "without <end>"),
        (keras_json({"dog": 0, "<unk>": 1, "<start>": 2, "<end>": 3}, None), "without <pad>"),
    ],
)
def test_a_keras_file_that_cannot_be_used(text: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as raised:
        Vocabulary.from_keras_tokenizer(text, "tokenizer.json")
    assert str(raised.value).startswith("tokenizer.json: ")


def test_importing_it_imports_nothing_heavy() -> None:
    code = (
        "import sys, model.vocabulary; print({'numpy', 'tensorflow', 'keras'} & set(sys.modules))"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    "words",
    [
        ("<pad>", "<unk>", "a", "<start>", "<end>", "dog", "café"),
        ("<pad>", "<start>", "<end>", "<unk>", "'s", "n't", "1,000"),
        ("<pad>", "<start>", "<end>", "<unk>"),
    ],
)
def test_a_vocabulary_survives_the_json_of_a_keras_tokenizer(words: tuple[str, ...]) -> None:
    vocabulary = Vocabulary(words)
    text = vocabulary.to_keras_tokenizer()
    assert Vocabulary.from_keras_tokenizer(text) == vocabulary
    assert Vocabulary.from_text(text) == vocabulary
    assert Vocabulary.from_text(vocabulary.to_json()) == vocabulary


@pytest.mark.parametrize("num_words", [6, None])
def test_a_tokenizer_of_the_tutorial_survives_keras_itself(num_words: int | None) -> None:
    keras = pytest.importorskip("keras.src.legacy.preprocessing.text")
    captions = ["<start> A red dog . <end>", "<start> a dog runs <end>", "<start> dog <end>"]
    filters = r"!\"#$%&()*+.,-/:;=?@[\]^_`{|}~ "
    # As TensorFlow's captioning tutorial made and saved it.
    original = keras.Tokenizer(num_words=num_words, oov_token="<unk>", filters=filters)
    original.fit_on_texts(captions)
    original.word_index["<pad>"] = 0
    original.index_word[0] = "<pad>"

    vocabulary = Vocabulary.from_keras_tokenizer(original.to_json())
    again = keras.tokenizer_from_json(vocabulary.to_keras_tokenizer())
    # The words that the original can produce, at their ids.
    index = original.word_index
    kept = {word: number for word, number in index.items() if number < (num_words or len(index))}
    assert again.word_index == kept == {word: n for n, word in enumerate(vocabulary.words)}
    assert again.index_word == {number: word for word, number in kept.items()}
    for caption in [*captions, "a zebra runs red"]:
        ids = original.texts_to_sequences([caption])[0]
        assert again.texts_to_sequences([caption.lower().replace(" .", "")])[0] == ids
        inner = [number for number in ids if number not in (index["<start>"], index["<end>"])]
        assert vocabulary.encode(caption.replace("<start>", "").replace("<end>", "")) == inner


def test_keras_gives_the_ids_of_our_words(real_captions: list[str]) -> None:
    keras = pytest.importorskip("keras.src.legacy.preprocessing.text")
    counts = Counter(word for caption in real_captions for word in tokenise(caption))
    vocabulary = Vocabulary.build(counts, min_count=5)
    again = keras.tokenizer_from_json(vocabulary.to_keras_tokenizer())
    joined = [" ".join(tokenise(caption)) for caption in real_captions[:500]]
    expected = [vocabulary.encode(caption) for caption in real_captions[:500]]
    assert again.texts_to_sequences(joined) == expected
    assert any(vocabulary.unk_id in ids for ids in expected)


def test_a_file_is_told_from_the_other_kind() -> None:
    for text, message in (
        ("{", "given.json: not JSON"),
        ('{"config": {}}', "given.json: schema version None"),
        ('{"config": {"word_index": "{"}}', "given.json: no word_index"),
    ):
        with pytest.raises(InvalidInput, match=message):
            Vocabulary.from_text(text, "given.json")
