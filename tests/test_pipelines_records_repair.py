"""--repair: what is faulty is made again, byte for byte, and nothing else is touched."""

import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import captionbeam
from model.records import Manifest
from model.vocabulary import Vocabulary
from pipelines.plan import Plan, find_plan
from pipelines.records_check import check_records
from pipelines.records_job import preprocess
from pipelines.records_repair import repair_records
from tests.preprocess_fixtures import FakeEncoder, calls, jpeg, published, settings
from tests.records_fixtures import (
    FIRST,
    SECOND,
    THIRD,
    VAL,
    Answer,
    copy_records,
    edit_json,
    edit_result,
    edit_shard_info,
    forge_first,
    make_records,
    read_shard,
    run_command,
    shard,
)

ALL = (FIRST, SECOND, THIRD, VAL)

Repair = Callable[..., Answer]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_records(tmp_path_factory.mktemp("world"))


@pytest.fixture
def output(made: Path, tmp_path: Path) -> Path:
    return copy_records(made, tmp_path / "out")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Where the encoder of the command notes its calls."""
    return tmp_path / "repair.log"


@pytest.fixture
def repair(
    output: Path, log: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Repair:
    """Runs the command with the fake encoder."""
    monkeypatch.setattr("pipelines.records_repair.Encoder", lambda _: FakeEncoder(log))
    command = ("preprocess", "--check", str(output), "--repair")
    return lambda *flags: run_command(capsys, *command, *flags)


def work(output: Path, *parts: str) -> Path:
    return output.joinpath("_work", *parts)


def flip_byte(output: Path) -> None:
    path = shard(output, SECOND)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 8
    path.write_bytes(data)


def cut(output: Path) -> None:
    path = shard(output, VAL)
    path.write_bytes(path.read_bytes()[:-20])


def swap(output: Path) -> None:
    one, two = shard(output, FIRST), shard(output, THIRD)
    kept = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(kept)


def hide_nan(output: Path) -> None:
    grid = np.array(read_shard(output, VAL)[0].grid)
    grid[0, 0] = np.nan
    forge_first(output, VAL, grid=grid)


def lose_papers(output: Path) -> None:
    (output / "manifest.json").write_text("[]")
    work(output, "vocabulary.json").unlink()
    work(output, "annotation_failures.jsonl").unlink()
    work(output, "done", f"{VAL}.json").write_text("")


def edit_vocabularies(output: Path) -> None:
    for path in (output / "vocabulary.json", work(output, "vocabulary.json")):
        path.write_text(path.read_text().replace("dog", "cat"))


def cut_the_papers_of_failures(output: Path) -> None:
    for name in ALL:
        work(output, "failures", f"{name}.jsonl").write_text("")


DAMAGES = [
    (flip_byte, [SECOND], 1),
    (cut, [VAL], 1),
    (swap, [FIRST, THIRD], 2),
    (lambda output: shard(output, FIRST).unlink(), [FIRST], 1),
    (lambda output: [shard(output, name).write_bytes(b"") for name in ALL], [*ALL], 4),
    (lambda output: (output / "vocabulary.json").unlink(), ["vocabulary.json"], 0),
    (edit_vocabularies, ["vocabulary.json", "_work/vocabulary.json"], 0),
    (lambda output: (output / "failures.jsonl").write_text("{}"), ["failures.jsonl"], 0),
    (lambda output: edit_shard_info(output, VAL, records=9), ["manifest.json"], 0),
    (lambda output: edit_result(output, VAL, digest="x"), [VAL], 1),
    (
        lose_papers,
        [VAL, "manifest.json", "_work/vocabulary.json", "_work/annotation_failures.jsonl"],
        1,
    ),
]


@pytest.mark.parametrize(("damage", "names", "encoded"), DAMAGES)
def test_what_is_faulty_and_nothing_else_is_made_again_byte_for_byte(
    output: Path,
    log: Path,
    repair: Repair,
    damage: Callable[[Path], object],
    names: list[str],
    encoded: int,
) -> None:
    before = published(output)
    damage(output)
    untouched = {
        path: path.stat().st_mtime_ns
        for path in output.glob("*.tfrecord")
        if path.stem not in names
    }
    code, lines, err = repair()
    assert (code, err) == (0, "")
    assert lines[-1] == f"{output}: made again: {', '.join(names)}"
    assert len(lines) == len(names) + 1
    assert published(output) == before
    assert calls(log) == encoded
    assert all(path.stat().st_mtime_ns == then for path, then in untouched.items())
    assert repair()[1][-1].startswith(f"{output} is sound, nothing to do: 4 shards, 25 images")
    assert calls(log) == encoded


def test_a_forged_shard_is_made_again_as_it_was_before_the_forgery(
    output: Path, log: Path, repair: Repair
) -> None:
    before = published(output)
    hide_nan(output)
    code, lines, _ = repair()
    # The forged manifest vouched for other bytes.
    assert (code, len(lines)) == (0, 3)
    assert lines[-1].startswith(f"{VAL}.tfrecord: other bytes than before, so that")
    assert published(output) == before
    assert calls(log) == 1


def test_lost_failure_rows_of_shards_are_found_and_made_again(output: Path, repair: Repair) -> None:
    before = published(output)
    with_rows = [name for name in ALL if work(output, "failures", f"{name}.jsonl").stat().st_size]
    cut_the_papers_of_failures(output)
    (output / "failures.jsonl").unlink()
    _, lines, _ = repair()
    assert with_rows
    assert lines[-1] == f"{output}: made again: {', '.join([*with_rows, 'failures.jsonl'])}"
    assert published(output) == before


def test_sound_records_need_no_encoder(output: Path, log: Path, repair: Repair) -> None:
    before = published(output)
    size = sum(path.stat().st_size for path in output.glob("*.tfrecord"))
    assert repair() == (
        0,
        [f"{output} is sound, nothing to do: 4 shards, 25 images, 48 captions, {size} bytes"],
        "",
    )
    assert published(output) == before
    assert not log.exists()


def test_a_repair_follows_the_plan_of_compression_and_mirror_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = make_records(tmp_path, flip_copies=True, compression="zlib")
    before = published(output)
    monkeypatch.setattr("pipelines.records_repair.Encoder", lambda _: FakeEncoder(tmp_path / "l"))
    flip_byte(output)
    assert captionbeam.main(["preprocess", "--check", str(output), "--repair"]) == 0
    assert published(output) == before


def test_annotation_files_are_not_needed(made: Path, output: Path, repair: Repair) -> None:
    before = published(output)
    flip_byte(output)
    hidden = [path.rename(path.with_suffix(".away")) for path in made.parent.glob("*.json")]
    try:
        assert len(hidden) == 2
        assert repair()[0] == 0
    finally:
        for path in hidden:
            path.rename(path.with_suffix(".json"))
    assert published(output) == before


def test_too_many_failures_end_a_repair_with_1(output: Path, repair: Repair) -> None:
    before = published(output)
    flip_byte(output)
    code, lines, err = repair("--max_failure_rate=0.01")
    assert (code, err) == (
        1,
        "captionbeam preprocess: 1 of 26 images failed (3.8%), expected at most 1.0%: empty 1 "
        f"(empty: copy or download the files again); see {output}/failures.jsonl, mend what it "
        "names and take another --output, or raise "
        "--max_failure_rate\n",
    )
    assert lines[-1] == f"{output}: made again: {SECOND}"
    assert published(output) == before
    flip_byte(output)
    assert repair("--max_failure_rate=0.04")[0] == 0


def test_a_failure_rate_beside_a_check_is_one(
    output: Path, repair: Repair, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "captionbeam preprocess: max_failure_rate 1.5, expected 0 to 1\n"
    code, lines, err = repair("--max_failure_rate=1.5")
    assert (code, lines, err) == (2, [], line)
    flags = ["--check", str(output), "--max_failure_rate=1.5"]
    assert captionbeam.main(["preprocess", *flags]) == 2
    assert capsys.readouterr() == ("", line)


@pytest.fixture
def changed_photograph(made: Path) -> Iterator[str]:
    """The key of a photograph of VAL that is another one meanwhile."""
    path = made.parent / "val" / f"{101:012d}.jpg"
    kept = path.read_bytes()
    path.write_bytes(jpeg(7))
    yield path.name
    path.write_bytes(kept)


def test_a_photograph_that_changed_gives_other_bytes_and_a_manifest_that_says_so(
    output: Path, repair: Repair, changed_photograph: str
) -> None:
    old = {row.key: np.asarray(row.grid) for row in read_shard(output, VAL)}
    before = Manifest.load(output)
    cut(output)
    code, lines, _ = repair()
    assert code == 0
    assert lines[1:] == [
        f"{output}: made again: {VAL}",
        f"{VAL}.tfrecord: other bytes than before, so that a photograph or the machine has "
        "changed since; manifest.json says what is there now",
    ]
    now = {row.key: np.asarray(row.grid) for row in read_shard(output, VAL)}
    assert [key for key in now if not np.array_equal(now[key], old[key])] == [changed_photograph]
    assert Manifest.load(output).shards("train") == before.shards("train")
    assert Manifest.load(output).shards("val") != before.shards("val")
    assert check_records(str(output)).faults == ()


def test_an_encoder_of_other_weights_is_refused(
    output: Path, log: Path, repair: Repair, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip_byte(output)
    before = published(output)
    monkeypatch.setattr(FakeEncoder, "digest", "another encoder's digest")
    code, _, err = repair()
    assert (code, err) == (
        2,
        "captionbeam preprocess: encoder weights random:0: digest another enco, expected fake as "
        "of the other shards; bring the first weights back\n",
    )
    assert published(output) == before
    assert not log.exists()


def test_a_damaged_spec_is_refused_and_written_again_by_the_first_command(
    made: Path, output: Path, repair: Repair, tmp_path: Path
) -> None:
    before = published(made)
    flip_byte(output)
    spec = work(output, "specs", f"{SECOND}.jsonl")
    for damage in (lambda: spec.write_text(spec.read_text().replace("red", "rad")), spec.unlink):
        damage()
        code, _, err = repair()
        assert (code, err) == (
            2,
            f"captionbeam preprocess: {spec} is not what its job wrote; run `captionbeam "
            f"preprocess` with the flags of the first run and --output {output}, which writes it "
            "again, then repeat this command\n",
        )
        assert (output / "manifest.json").exists()
        again = settings(made.parent, str(output))
        preprocess(again, (), partial(FakeEncoder, tmp_path / "unused"))
    assert not (tmp_path / "unused").exists()
    assert repair()[0] == 0
    assert published(output) == before


def test_a_damaged_spec_of_a_sound_shard_does_not_matter(output: Path, repair: Repair) -> None:
    before = published(output)
    flip_byte(output)
    work(output, "specs", f"{VAL}.jsonl").unlink()
    assert repair()[0] == 0
    assert published(output) == before


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (
            lambda output: shutil.rmtree(work(output)),
            "no readable _work/job.json, from which a shard could be made again; make the records "
            "again in another --output",
        ),
        (
            lambda output: edit_json(
                work(output, "job.json"), lambda job: job["settings"].update(fingerprint="0")
            ),
            "made by other preprocessing than that of this version of captionbeam; make the "
            "records again in another --output",
        ),
    ],
)
def test_records_that_cannot_be_mended(
    output: Path, repair: Repair, damage: Callable[[Path], object], line: str
) -> None:
    flip_byte(output)
    damage(output)
    before = published(output)
    code, _, err = repair()
    assert (code, err) == (2, f"captionbeam preprocess: {output}: {line}\n")
    assert published(output) == before


def test_orphans_that_are_nowhere_left_are_refused(output: Path, repair: Repair) -> None:
    path = work(output, "annotation_failures.jsonl")
    path.unlink()
    (output / "failures.jsonl").unlink()
    code, _, err = repair()
    assert code == 2
    assert err.startswith(f"captionbeam preprocess: {path} is not what its job wrote; run ")


def test_a_repair_that_is_cut_short_is_carried_on(
    output: Path, log: Path, repair: Repair, tmp_path: Path
) -> None:
    before = published(output)
    swap(output)
    flip_byte(output)
    with pytest.raises(RuntimeError, match="the machine went away"):
        repair_records(
            check_records(str(output)), (), partial(FakeEncoder, tmp_path / "log", stop_at=2)
        )
    assert not (output / "manifest.json").exists()
    code, lines, _ = repair()
    assert code == 0
    assert lines[0] == "2 of 4 shards are not made yet"
    assert lines[-1] == f"{output}: made again: {lines[-1].rpartition('again: ')[2]}"
    assert calls(log) == 2
    assert published(output) == before


def test_an_interrupted_run_is_carried_on_without_its_flags(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "new"
    with pytest.raises(RuntimeError, match="the machine went away"):
        preprocess(
            settings(made.parent, str(output)),
            (),
            partial(FakeEncoder, tmp_path / "log", stop_at=3),
        )
    monkeypatch.setattr("pipelines.records_repair.Encoder", lambda _: FakeEncoder(tmp_path / "log"))
    assert captionbeam.main(["preprocess", "--check", str(output), "--repair"]) == 0
    assert published(output) == published(made)
    assert calls(tmp_path / "log") == 3 + 2


def test_beams_own_flags_reach_the_repair(output: Path, repair: Repair) -> None:
    before = published(output)
    swap(output)
    flags = ("--direct_running_mode=multi_threading", "--direct_num_workers=2")
    assert repair(*flags)[0] == 0
    assert published(output) == before
    swap(output)
    code, _, err = repair("--direct_running_mode=nonsense")
    assert (code, err.startswith("captionbeam preprocess: Beam: ")) == (2, True)


def test_the_plan_that_was_kept_is_the_plan(made: Path, output: Path) -> None:
    found = find_plan(str(output))
    assert found is not None
    job, plan = found
    assert Plan.from_settings(json.loads(json.dumps(plan.to_settings()))) == plan
    assert (plan.encoder, plan.max_words, plan.shards) == (
        settings(made.parent, "out").encoder,
        20,
        {"train": 3, "val": 1},
    )
    assert (plan.images, plan.captions, plan.orphans, plan.encoder_digest) == (26, 53, 1, "fake")
    assert [spec.name for spec in job.specs] == [*ALL]
    assert find_plan(str(output.parent)) is None


def test_a_vocabulary_that_was_given_is_taken_from_its_published_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = Vocabulary.build({"a": 9, "red": 8, "dog": 7}, 1)
    output = make_records(tmp_path, vocabulary=given)
    before = published(output)
    assert Vocabulary.load(output / "vocabulary.json") == given
    monkeypatch.setattr("pipelines.records_repair.Encoder", lambda _: FakeEncoder(tmp_path / "l"))
    command = ["preprocess", "--check", str(output), "--repair"]
    work(output, "vocabulary.json").unlink()
    assert captionbeam.main(command) == 0
    assert published(output) == before
    (output / "vocabulary.json").write_text("{}")
    assert captionbeam.main(command) == 0
    assert published(output) == before
    work(output, "vocabulary.json").unlink()
    (output / "vocabulary.json").write_text("{}")
    capsys.readouterr()
    assert captionbeam.main(command) == 2
    assert "_work/vocabulary.json is not what its job wrote; run" in capsys.readouterr().err
