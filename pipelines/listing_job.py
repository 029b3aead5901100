"""Lists what is left of a large tree on the workers of a runner, as a pipeline of its own.

    groups of branches | (Reshuffle | ParDo(ListBranches)) … | CombineGlobally(ToList) | WriteIndex

A worker lists some of a group's nodes into a file below OUTPUT/_work/listing, and cuts what is
left into smaller groups, which the next round spreads anew; so a tree of any shape keeps all
workers busy. What is listed goes through the rounds as it is: one leaf, no tagged outputs, as
in all pipelines here. The index names the files that count, since a worker that an engine gave
up may leave others.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from time import monotonic
from uuid import uuid4

import apache_beam as beam
from apache_beam.transforms.combiners import ToListCombineFn

from model.errors import CheckFailed, InvalidInput
from model.progress import Progress
from pipelines import storage
from pipelines.jobs import WORK_DIR, Job
from pipelines.read_ahead import batches
from pipelines.runner import shares_process, spread_thinly
from pipelines.shards import (
    FileDoFn,
    carried_errors,
    check_made,
    hold_output,
    run_again,
    run_pipeline,
    write_errors,
)
from pipelines.tree_walk import Branch, Listed, Nodes, Walk
from pipelines.watch import refreshed

LISTING_DIR = f"{WORK_DIR}/listing"
# Groups that the first round spreads, and into which a worker cuts what it leaves.
_FIRST_GROUPS, _MORE_GROUPS = 64, 8
# Weight of the nodes that a worker lists of a group, but in the last round, which leaves nothing.
_ROUND_WEIGHT = 1000
_ROUNDS = 4
_LOOK_EVERY_S = 10.0
_DEPTH, _LISTED, _ERROR = "depth", "listed", "error"


@dataclass(frozen=True, order=True)
class _Stretch:
    """Nodes next to each other; one that comes from another comes after it, and before the next.

    Attributes:
      place: where it stands among all, in lexical order.
      path: the file of what was listed, or of the branches that are to be.
      left: of what was listed, how many stretches come from it; None where it is to be listed.
    """

    place: tuple[int, ...]
    path: str
    left: int | None = None


@dataclass(frozen=True)
class _Files:
    """The files of one listing, on a filesystem that all workers reach.

    Attributes:
      job: with the lease, whose token the names begin with: a launch that lost it may still write.
    """

    job: Job

    @property
    def index(self) -> str:
        """What names the files that count."""
        return self._path("index")

    @property
    def listed(self) -> str:
        """A pattern of the files of what was listed."""
        return self._path("listed-*")

    def stretch(self, place: tuple[int, ...], left: int | None = None) -> _Stretch:
        """A stretch with a file that no other attempt at it has: it may list another state."""
        kind = "branches" if left is None else "listed"
        name = f"{kind}-{'-'.join(map(str, place))}-{uuid4().hex}"
        return _Stretch(place, self._path(name), left)

    def write_groups(
        self, place: tuple[int, ...], branches: Sequence[Branch], most: int
    ) -> list[_Stretch]:
        """Cut branches into groups of about as many; files, since some hold thousands of names."""
        groups = []
        for number, group in enumerate(batches(branches, -(-len(branches) // most) or 1)):
            groups.append(self.stretch((*place, number)))
            storage.write_json(groups[-1].path, group)
        return groups

    def check(self) -> None:
        """Raise InvalidInput where another launch took over."""
        if self.job.lease is not None:
            self.job.lease.check()

    def delete(self) -> None:
        """Remove all."""
        with suppress(OSError):
            storage.delete_matching(self._path("*"))

    def _path(self, name: str) -> str:
        token = "" if self.job.lease is None else self.job.lease.token
        return self.job.path(LISTING_DIR, f"{token}-{name}.json")


@dataclass(frozen=True)
class ListingJob:
    """Lists branches on a runner's workers (tree_walk.Elsewhere).

    Args:
      job: whose OUTPUT the workers write to; held meanwhile.
      beam_args: Beam's flags.
    """

    job: Job
    beam_args: Sequence[str]

    def __call__(self, branches: Sequence[Branch], nodes: Nodes) -> Iterator[tuple[int, Listed]]:
        """Depths and contents of the branches' nodes, in the order of `tree_walk.Walk`.

        Raises:
          InvalidInput: as listing a node does, in its place; OUTPUT cannot be written or read, or
            another launch holds it.
        """
        print("a large input: the workers list what is left of it", file=sys.stderr)
        with hold_output(self.job, self.beam_args) as job:
            delete_listings(job)
            files = _Files(replace(job, specs=()))
            try:
                groups = files.write_groups((), branches, _FIRST_GROUPS)
                run_again(job, partial(self._run, files, groups, nodes), lambda: 0)
                for path in storage.read_json(files.index):
                    yield from _read_part(path)
                    storage.delete(path)
            finally:
                files.delete()

    def _run(self, files: _Files, groups: Sequence[_Stretch], nodes: Nodes) -> None:
        beam_args = spread_thinly(self.beam_args)
        with _shown(files), run_pipeline(beam_args) as pipeline:
            listed = pipeline | "Groups" >> beam.Create(groups)
            for number in range(_ROUNDS):
                most = None if number == _ROUNDS - 1 else _ROUND_WEIGHT
                listed = (
                    listed
                    | f"Spread {number}" >> beam.Reshuffle()
                    | f"List {number}" >> beam.ParDo(ListBranches(files, nodes, most, beam_args))
                )
            _ = (
                listed
                | "Collect" >> beam.CombineGlobally(ToListCombineFn())
                | "Index" >> beam.ParDo(WriteIndex(files, len(groups), beam_args))
            )
        check_made(files.index)


def listing_job(job: Job, beam_args: Sequence[str]) -> ListingJob | None:
    """What lists large trees for a job; None where the workers are threads of this process."""
    return None if shares_process(beam_args) else ListingJob(job, beam_args)


def delete_listings(job: Job) -> None:
    """Remove what launches that were killed listed; the job must be held."""
    storage.delete_matching(job.path(LISTING_DIR, "*"))


class ListBranches(FileDoFn):
    """Branches → what was listed of them, and the branches that are left.

    Args:
      files: of this listing.
      nodes: what lists a node.
      most: weight of the nodes to list; None for all.
      beam_args: Beam's flags.
    """

    def __init__(
        self, files: _Files, nodes: Nodes, most: int | None, beam_args: Sequence[str] = ()
    ) -> None:
        super().__init__(beam_args)
        self._files, self._nodes, self._most = files, nodes, most

    def process(self, stretch: _Stretch) -> Iterator[_Stretch]:
        """List some of the nodes; what is listed goes on as it is."""
        if stretch.left is not None:
            yield stretch
            return
        with carried_errors(self._files.job.output):
            self._files.check()
            branches = storage.read_json(stretch.path)
            if branches is None:
                raise InvalidInput(
                    f"{stretch.path}: gone while the inputs are listed, expected what this launch "
                    "wrote; repeat the command"
                )
            walk = Walk((Branch(*branch) for branch in branches), self._nodes)
            part = self._files.stretch(stretch.place, 0)
            with storage.replacing(part.path) as file:
                is_whole = self._write(walk, file)
            # What comes after an error is not asked for.
            left = walk.left if is_whole else []
            groups = self._files.write_groups(stretch.place, left, _MORE_GROUPS)
        yield replace(part, left=len(groups))
        yield from groups

    def _write(self, walk: Walk, file: storage.TemporaryFile) -> bool:
        """Whether the nodes could be listed; the launcher raises an error where it stands."""
        try:
            for depth, listed in walk:
                row = {_DEPTH: depth, _LISTED: vars(listed) | {"children": ()}}
                file.write(storage.json_line(row))
                if self._most is not None and walk.weight >= self._most:
                    break
        except InvalidInput as error:
            file.write(storage.json_line({_ERROR: str(error)}))
            return False
        return True


class WriteIndex(FileDoFn):
    """All that was listed → the file that names it in order.

    Args:
      files: of this listing.
      groups: how many the first round had.
      beam_args: Beam's flags.
    """

    def __init__(self, files: _Files, groups: int, beam_args: Sequence[str] = ()) -> None:
        super().__init__(beam_args)
        self._files, self._groups = files, groups

    def process(self, listed: list[_Stretch]) -> Iterator[int]:
        """Write it; yields the number of files."""
        with carried_errors(self._files.job.output):
            self._files.check()
            self._check_whole(listed)
            paths = [stretch.path for stretch in sorted(listed)]
            storage.write_json(self._files.index, paths)
        yield len(listed)

    def _check_whole(self, listed: list[_Stretch]) -> None:
        """Raise CheckFailed unless each stretch came once: some runners lose elements silently."""
        wanted: Counter[tuple[int, ...]] = Counter((number,) for number in range(self._groups))
        for stretch in listed:
            wanted.update((*stretch.place, number) for number in range(stretch.left or 0))
        if wanted != Counter(stretch.place for stretch in listed):
            raise CheckFailed(
                f"{self._files.job.output}: the runner brought {len(listed)} lists of inputs, "
                f"expected {wanted.total()}, each once; repeat the command, with another runner "
                "if it happens again"
            )


@contextmanager
def _shown(files: _Files) -> Iterator[None]:
    """Say what is listed while the block runs."""
    line = Progress("listing", None, "lists")
    looked_s = -_LOOK_EVERY_S
    done = 0

    def look() -> None:
        nonlocal looked_s, done
        if monotonic() >= looked_s + _LOOK_EVERY_S:
            # No reason to end a job; each filesystem's client raises errors of its own.
            with suppress(Exception):
                done = len(storage.match(files.listed))
            looked_s = monotonic()
        line.show(done)

    try:
        with refreshed(look):
            yield
    finally:
        line.close(len(storage.match(files.listed)))


def _read_part(path: str) -> Iterator[tuple[int, Listed]]:
    with write_errors(path), storage.open_read(path) as file:
        for line in file:
            row = json.loads(line)
            if _ERROR in row:
                raise InvalidInput(row[_ERROR])
            yield row[_DEPTH], Listed(**row[_LISTED])
