"""--check: every way to damage records has its line; what is sound is said to be."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import captionbeam
from model.records import Manifest, Record
from pipelines import records_check
from tests.preprocess_fixtures import published
from tests.records_fixtures import (
    FIRST,
    GRID_SHAPE,
    SECOND,
    THIRD,
    VAL,
    Answer,
    copy_records,
    edit_json,
    edit_result,
    edit_shard_info,
    forge,
    forge_first,
    make_records,
    read_shard,
    run_command,
    sha256,
    shard,
)

# SHA-256 of nothing.
EMPTY = "e3b0c44298fc"

Check = Callable[[], Answer]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_records(tmp_path_factory.mktemp("world"))


@pytest.fixture
def output(made: Path, tmp_path: Path) -> Path:
    return copy_records(made, tmp_path / "out")


@pytest.fixture
def check(output: Path, capsys: pytest.CaptureFixture[str]) -> Check:
    """Runs the command."""
    return lambda: run_command(capsys, "preprocess", "--check", str(output))


def info(output: Path, name: str) -> dict[str, str]:
    infos = json.loads((output / "manifest.json").read_text())["splits"][name.partition("-")[0]]
    return next(info for info in infos if info["file"] == f"{name}.tfrecord")


def short(path: Path) -> str:
    return sha256(path)[:12]


def test_sound_records_are_said_to_be_sound(output: Path, check: Check) -> None:
    before = published(output)
    size = sum(path.stat().st_size for path in output.glob("*.tfrecord"))
    assert check() == (
        0,
        [f"{output} is sound: 4 shards, 25 images, 48 captions, {size} bytes"],
        "",
    )
    assert published(output) == before


def test_records_without_their_job_are_checked_against_the_manifest(
    output: Path, check: Check
) -> None:
    shutil.rmtree(output / "_work")
    assert check()[0] == 0
    path = shard(output, VAL)
    expected = short(path)
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    code, lines, err = check()
    assert (code, len(lines)) == (1, 1)
    assert lines[0].endswith(f"SHA-256 {short(path)}, expected {expected}")
    assert err == (
        f"captionbeam preprocess: {output}: faulty: {VAL}; they cannot be mended: make the "
        "records again in another --output\n"
    )


def test_compressed_records_with_mirror_images_are_checked_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = make_records(tmp_path, flip_copies=True, compression="zlib")
    manifest = Manifest.load(output)
    assert manifest.flip_copies == 19
    command = ["preprocess", "--check", str(output)]
    assert captionbeam.main(command) == 0
    assert capsys.readouterr().out.startswith(f"{output} is sound: 4 shards, 44 images, ")
    shutil.rmtree(output / "_work")
    assert captionbeam.main(command) == 0
    edit_json(output / "manifest.json", lambda fields: fields.update(flip_copies=18))
    assert captionbeam.main(command) == 1
    assert "shards of 44 records, expected 43 as the ledger says" in capsys.readouterr().out
    edit_json(output / "manifest.json", lambda fields: fields.update(compression="none"))
    assert captionbeam.main(command) == 1
    assert "bytes, expected 64 (4×8 float16)" in capsys.readouterr().out


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", [FIRST, SECOND, THIRD, VAL])
def test_a_flipped_byte_of_a_grid(output: Path, check: Check, name: str) -> None:
    path = shard(output, name)
    expected = short(path)
    grid = np.asarray(read_shard(output, name)[1].grid).tobytes()
    flip(path, path.read_bytes().index(grid) + 3)
    length = path.read_bytes()[0] + 16
    code, lines, err = check()
    assert lines == [
        f"{name}.tfrecord: record 2 at byte {length}: the CRC of its content does not match; "
        f"SHA-256 {short(path)}, expected {expected}"
    ]
    assert err == (
        f"captionbeam preprocess: {output}: faulty: {name}; mend them with "
        f"`captionbeam preprocess --check {output} --repair`\n"
    )
    assert code == 1


def test_a_cut_file(output: Path, check: Check) -> None:
    path = shard(output, SECOND)
    whole, expected = path.read_bytes(), short(path)
    path.write_bytes(whole[:-1])
    size = len(whole)
    last = whole[0] + 16
    code, lines, _ = check()
    assert code == 1
    (line,) = lines
    assert line.startswith(f"{SECOND}.tfrecord: {size - 1} bytes, expected {size}; record ")
    assert line.endswith(f"SHA-256 {short(path)}, expected {expected}")
    assert " is said to have " in line
    assert last < size


def test_a_file_cut_between_records(output: Path, check: Check) -> None:
    path = shard(output, VAL)
    whole, expected = path.read_bytes(), short(path)
    path.write_bytes(b"")
    assert check()[1] == [
        f"{VAL}.tfrecord: 0 bytes, expected {len(whole)}; 0 records, expected 6; "
        f"0 captions, expected 12; SHA-256 {short(path)}, expected {expected}"
    ]


def test_a_lost_file(output: Path, check: Check) -> None:
    size = shard(output, VAL).stat().st_size
    shard(output, VAL).unlink()
    assert check()[1] == [f"{VAL}.tfrecord: no such file, expected one of {size} bytes"]


def test_swapped_shards(output: Path, check: Check) -> None:
    one, two = shard(output, FIRST), shard(output, SECOND)
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    code, lines, err = check()
    assert code == 1
    assert [line.partition(": ")[0] for line in lines] == [one.name, two.name]
    assert lines[0].startswith(f"{one.name}: {len(second)} bytes, expected {len(first)}; ")
    assert lines[0].endswith(f"SHA-256 {short(one)}, expected {short(two)}")
    assert f"faulty: {FIRST}, {SECOND}; mend" in err


def nan(grid: np.ndarray) -> np.ndarray:
    changed = grid.copy()
    changed[2, 5] = np.nan
    return changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda row: {"grid": nan(row.grid)},
            "grid with 1 values that are not finite, expected none",
        ),
        (lambda row: {"grid": row.grid[:3]}, "grid of 48 bytes, expected 64 (4×8 float16)"),
        (
            lambda row: {"tokens": (row.tokens[0], (99,))},
            "token 99, expected 1 to 12",
        ),
        (
            lambda row: {"tokens": (row.tokens[0], (4,) * 21)},
            "a caption of 21 tokens, expected 1 to 20",
        ),
        (lambda row: {"tokens": row.tokens[:1]}, "1 token_counts, expected 2, one a caption"),
    ],
)
def test_a_record_that_cannot_be_is_found_although_all_digests_fit(
    output: Path, check: Check, change: Callable[[Record], dict[str, object]], message: str
) -> None:
    first = read_shard(output, VAL)[0]
    forge_first(output, VAL, **change(first))
    code, lines, _ = check()
    assert code == 1
    # A record whose form is wrong has no key that could be believed.
    named = "" if "float16" in message or "token_counts" in message else f" ({first.key})"
    assert lines == [f"{VAL}.tfrecord: record 1{named}: {message}"]


def test_a_record_twice_although_all_digests_fit(output: Path, check: Check) -> None:
    rows = read_shard(output, VAL)
    forge(output, VAL, [*rows, rows[1]])
    assert check()[1] == [
        f"{VAL}.tfrecord: 7 records, expected 6; 14 captions, expected 12",
    ]
    # In the place of another record, so that the counts fit, too.
    forge(output, VAL, [*rows[:-1], rows[1]])
    assert check()[1] == [
        f"{VAL}.tfrecord: record 6 is the key {rows[1].key} of record 2 of {VAL}.tfrecord, "
        "expected each key once"
    ]


def test_a_key_of_two_shards_although_all_digests_fit(output: Path, check: Check) -> None:
    one, two = (read_shard(output, name) for name in (FIRST, THIRD))
    twice = [replace(row, key=other.key) for row, other in zip(two[:2], one, strict=False)]
    forge(output, THIRD, [*twice, *two[2:]])
    assert check()[1] == [
        f"{THIRD}.tfrecord: record 1 is the key {one[0].key} of record 1 of {FIRST}.tfrecord "
        "(and 1 more), expected each key once"
    ]


def test_an_image_of_two_splits_although_all_digests_fit(output: Path, check: Check) -> None:
    train, val = read_shard(output, SECOND), read_shard(output, VAL)
    forge(output, VAL, [*val[:5], train[2]])
    assert check()[1] == [
        f"{VAL}.tfrecord: record 6 is the image {train[2].key} of record 3 of {SECOND}.tfrecord, "
        "expected each image in one split"
    ]
    # A file name that two data sets share is no image of two splits.
    forge_first(output, SECOND, key=val[0].key)
    forge(output, VAL, val)
    assert check()[0] == 0


def test_a_damaged_shard_casts_no_suspicion_on_a_sound_one(output: Path, check: Check) -> None:
    shutil.copy(shard(output, SECOND), shard(output, FIRST))
    _, lines, err = check()
    assert len(lines) == 1
    assert f"faulty: {FIRST}; mend" in err


def test_wrong_counts_in_the_manifest(output: Path, check: Check) -> None:
    edit_shard_info(output, VAL, records=7, captions=13)
    code, lines, err = check()
    assert lines == ["manifest.json: splits.val.0.captions is 13, expected 12"]
    assert (
        code,
        f"faulty: manifest.json; mend them with `captionbeam preprocess --check {output}"
        " --repair`" in err,
    ) == (1, True)
    # Without the job, the shard and the ledger speak against it.
    shutil.rmtree(output / "_work")
    assert check()[1] == [
        f"{VAL}.tfrecord: 6 records, expected 7; 12 captions, expected 13",
        "manifest.json: shards of 26 records, expected 25 as the ledger says",
    ]


@pytest.mark.parametrize(
    ("edit", "line"),
    [
        (
            lambda manifest: manifest["ledger"].update(inputs=27),
            "the ledger of records accounts for 26, expected 27",
        ),
        (
            lambda manifest: manifest["caption_ledger"]["failed"].update(empty=7),
            "the ledger of captions accounts for 58, expected 53",
        ),
        (
            lambda manifest: manifest["caption_ledger"].update(written=47, skipped=1),
            "shards of 48 captions, expected 47 as the ledger says",
        ),
    ],
)
def test_a_ledger_that_does_not_balance(
    output: Path, check: Check, edit: Callable[[Any], None], line: str
) -> None:
    shutil.rmtree(output / "_work")
    edit_json(output / "manifest.json", edit)
    assert check()[1] == [f"manifest.json: {line}"]


def test_a_manifest_of_other_preprocessing(output: Path, check: Check) -> None:
    fingerprint = Manifest.load(output).fingerprint
    for path in (output / "manifest.json", output / "_work" / "job.json"):
        path.write_text(path.read_text().replace(fingerprint, "0" * 64))
    code, lines, err = check()
    assert lines == [
        "manifest.json: preprocessing 000000000000 is not that of this version of captionbeam; "
        "make the records again in another --output"
    ]
    assert code == 1
    assert err.endswith(
        "faulty: manifest.json; they cannot be mended: make the records again in another --output\n"
    )


def test_a_manifest_that_cannot_be_read(output: Path, check: Check) -> None:
    (output / "manifest.json").write_text("{")
    flip(shard(output, VAL), 40)
    code, lines, err = check()
    assert (code, len(lines)) == (1, 2)
    assert lines[0].startswith(f"{VAL}.tfrecord: record 1 at byte 0: the CRC of its content")
    assert lines[1].startswith("manifest.json: not a manifest of captionbeam (")
    assert f"faulty: {VAL}, manifest.json; mend" in err


def test_a_lost_vocabulary(output: Path, check: Check) -> None:
    (output / "vocabulary.json").unlink()
    assert check()[:2] == (1, ["vocabulary.json: no such file"])


def test_another_vocabulary(output: Path, check: Check) -> None:
    path = output / "vocabulary.json"
    digest = Manifest.load(output).vocabulary["digest"]
    edit_json(path, lambda vocabulary: vocabulary["words"].reverse())
    assert check()[1][0].startswith("vocabulary.json: vocabulary has <pad> at ")
    shutil.copy(output / "_work" / "vocabulary.json", path)
    path.write_text(path.read_text().replace("dog", "cat"))
    (line,) = check()[1]
    assert line.startswith("vocabulary.json: digest ")
    assert line.endswith(f", expected {digest[:12]}")
    shutil.copy(path, output / "_work" / "vocabulary.json")
    assert [each.partition(":")[0] for each in check()[1]] == [
        "vocabulary.json",
        "_work/vocabulary.json",
    ]


FAILURES = [
    (lambda text: text.replace('"empty"', '"truncated"'), "0 rows of empty, expected 1 as the"),
    (lambda text: "".join(text.splitlines(True)[1:]), "0 rows of unknown_image, expected 1 as"),
    (lambda text: text * 2, "2 rows of empty, expected 1 as the ledgers say"),
    (lambda text: text + "{}\n", "line 5 is no row of a failure"),
    (lambda text: text.replace('"empty"', '"boredom"'), " is no row of a failure"),
    (lambda text: text.replace("0 bytes", "1 bytes"), "SHA-256 "),
]


@pytest.mark.parametrize(("edit", "line"), FAILURES)
def test_edited_failures(output: Path, check: Check, edit: Callable[[str], str], line: str) -> None:
    path = output / "failures.jsonl"
    path.write_text(edit(path.read_text()))
    code, lines, err = check()
    assert (code, len(lines)) == (1, 1)
    assert lines[0].startswith("failures.jsonl: ")
    assert line in lines[0]
    assert "faulty: failures.jsonl; mend" in err


def test_a_stray_shard_is_named_and_does_no_harm(output: Path, check: Check) -> None:
    shutil.copy(shard(output, VAL), output / "val-00000-of-00002.tfrecord")
    (output / "notes.txt").write_text("no record")
    code, lines, err = check()
    assert (code, err) == (0, "")
    assert lines[0] == (
        "val-00000-of-00002.tfrecord: not in manifest.json, so nothing reads it; remove it"
    )
    assert lines[1].startswith(f"{output} is sound: 4 shards")


def test_papers_of_the_job_are_checked_since_a_repair_needs_them(
    output: Path, check: Check
) -> None:
    work = output / "_work"
    failed = next(path for path in sorted((work / "failures").iterdir()) if path.stat().st_size)
    name, digest = failed.stem, short(failed)
    failed.write_text("")
    others = [each for each in (FIRST, SECOND, THIRD) if each != name]
    (work / "done" / f"{others[0]}.json").unlink()
    edit_result(output, others[1], digest="another spec's")
    orphans = short(work / "annotation_failures.jsonl")
    (work / "annotation_failures.jsonl").unlink()
    lines = check()[1]
    assert lines[:3] == sorted(
        [
            f"{name}.tfrecord: _work/failures/{name}.jsonl: SHA-256 {EMPTY}, expected {digest}",
            *(
                f"{each}.tfrecord: _work/done/{each}.json does not say what it was made from"
                for each in others
            ),
        ]
    )
    assert lines[3:] == [f"_work/annotation_failures.jsonl: cannot be read, expected {orphans}"]


def test_a_plan_that_cannot_be_read(output: Path, check: Check) -> None:
    edit_json(output / "_work" / "job.json", lambda job: job["settings"].pop("max_words"))
    code, lines, err = check()
    assert (code, len(lines)) == (1, 1)
    assert lines[0].startswith("_work/job.json: not the plan of a job of this version (")
    assert "cannot be mended" in err


def test_an_unfinished_run_says_how_to_go_on(output: Path, check: Check) -> None:
    (output / "manifest.json").unlink()
    (output / "_work" / "done" / f"{VAL}.json").unlink()
    assert check() == (
        1,
        [],
        f"captionbeam preprocess: {output} is not finished: 3 of 4 shards are there and no "
        f"manifest.json; go on with `captionbeam preprocess --check {output} --repair`\n",
    )


def test_what_holds_no_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place in (tmp_path, tmp_path / "none"):
        assert captionbeam.main(["preprocess", "--check", str(place)]) == 2
        assert capsys.readouterr().err == (
            f"captionbeam preprocess: {place}: no manifest.json and no _work/job.json of this "
            "version, expected what captionbeam preprocess made; run it again with its flags\n"
        )


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--check=x", "--split=train=a.json:b"], "--check and --split, expected --check RECORDS"),
        (["--check=x", "--output=y"], "--check and --output, expected --check RECORDS alone or"),
        (["--check=x", "--repair", "--image_size=224"], "--check and --image_size, expected"),
        (["--repair"], "--repair, expected --check RECORDS with it"),
        (["--check=foo://x"], "records foo://x: no filesystem for this scheme"),
        ([], "no --output, expected --output RECORDS, or --check RECORDS"),
        (["--output=x"], "no source; expected --split NAME=FILE:IMAGES or --karpathy FILE:IMAGES"),
    ],
)
def test_flags_that_do_not_go_together(
    flags: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert captionbeam.main(["preprocess", *flags]) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"captionbeam preprocess: {line}")
    assert (err.count("\n"), out) == (1, "")


def test_a_check_holds_one_record_of_a_shard_at_a_time(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    opened = records_check.storage.open_read

    class Watched:
        def __init__(self, file: Any) -> None:
            self.file = file

        def read(self, size: int) -> bytes:
            data: bytes = self.file.read(size)
            asked.append(len(data))
            return data

    @contextmanager
    def watched(path: str) -> Iterator[Any]:
        with opened(path) as file:
            yield Watched(file) if path.endswith(".tfrecord") else file

    monkeypatch.setattr("pipelines.shard_check.storage.open_read", watched)
    assert records_check.check_records(str(output)).faults == ()
    size = GRID_SHAPE[0] * GRID_SHAPE[1] * 2
    assert size < max(asked) < 5 * size
    assert sum(asked) == sum(path.stat().st_size for path in output.glob("*.tfrecord"))
