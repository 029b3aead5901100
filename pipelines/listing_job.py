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
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import apache_beam as beam
from apache_beam.transforms.combiners import ToListCombineFn

from model.errors import InvalidInput
from pipelines import storage
from pipelines.jobs import WORK_DIR, Job
from pipelines.read_ahead import batches
from pipelines.runner import shares_process
from pipelines.shards import (
    FileDoFn,
    carried_errors,
    check_made,
    hold_output,
    run_pipeline,
    write_errors,
)
from pipelines.tree_walk import Branch, Listed, Nodes, Walk

LISTING_DIR = f"{WORK_DIR}/listing"
_INDEX = "index.json"
# Groups that the first round spreads, and into which a worker cuts what it leaves.
_FIRST_GROUPS, _MORE_GROUPS = 64, 8
# Weight of the nodes that a worker lists of a group, but in the last round, which leaves nothing.
_ROUND_WEIGHT = 1000
_ROUNDS = 4
_DEPTH, _LISTED, _ERROR = "depth", "listed", "error"


@dataclass(frozen=True, order=True)
class _Stretch:
    """Nodes next to each other; one that comes from another comes after it, and before the next.

    Attributes:
      place: where it stands among all, in lexical order.
      path: the file of what was listed, or of the branches that are to be.
      is_listed: which of these it is.
    """

    place: tuple[int, ...]
    path: str
    is_listed: bool


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
            directory = job.path(LISTING_DIR)
            # Of a launch that was killed, or of a worker that an engine gave up.
            storage.delete_matching(f"{directory}/*")
            try:
                self._run(job, directory, branches, nodes)
                for path in storage.read_json(f"{directory}/{_INDEX}"):
                    yield from _read_part(path)
                    storage.delete(path)
            finally:
                with suppress(OSError):
                    storage.delete_matching(f"{directory}/*")

    def _run(self, job: Job, directory: str, branches: Sequence[Branch], nodes: Nodes) -> None:
        groups = _write_groups(directory, (), branches, _FIRST_GROUPS)
        with run_pipeline(self.beam_args) as pipeline:
            listed = pipeline | "Groups" >> beam.Create(groups)
            for number in range(_ROUNDS):
                most = None if number == _ROUNDS - 1 else _ROUND_WEIGHT
                work = ListBranches(job.output, directory, nodes, most, self.beam_args)
                listed = (
                    listed
                    | f"Spread {number}" >> beam.Reshuffle()
                    | f"List {number}" >> beam.ParDo(work)
                )
            _ = (
                listed
                | "Collect" >> beam.CombineGlobally(ToListCombineFn())
                | "Index" >> beam.ParDo(WriteIndex(job.output, directory, self.beam_args))
            )
        check_made(f"{directory}/{_INDEX}")


def listing_job(job: Job, beam_args: Sequence[str]) -> ListingJob | None:
    """What lists large trees for a job; None where the workers are threads of this process."""
    return None if shares_process(beam_args) else ListingJob(job, beam_args)


class ListBranches(FileDoFn):
    """Branches → what was listed of them, and the branches that are left.

    Args:
      output: OUTPUT.
      directory: where the files lie.
      nodes: what lists a node.
      most: weight of the nodes to list; None for all.
      beam_args: Beam's flags.
    """

    def __init__(
        self,
        output: str,
        directory: str,
        nodes: Nodes,
        most: int | None,
        beam_args: Sequence[str] = (),
    ) -> None:
        super().__init__(beam_args)
        self._output, self._directory, self._nodes, self._most = output, directory, nodes, most

    def process(self, stretch: _Stretch) -> Iterator[_Stretch]:
        """List some of the nodes; what is listed goes on as it is."""
        if stretch.is_listed:
            yield stretch
            return
        with carried_errors(self._output):
            branches = [Branch(*branch) for branch in storage.read_json(stretch.path)]
            walk = Walk(branches, self._nodes)
            part = _stretch(self._directory, stretch.place, is_listed=True)
            with storage.replacing(part.path) as file:
                for row in self._rows(walk):
                    file.write(storage.json_line(row))
            left = _write_groups(self._directory, stretch.place, walk.left, _MORE_GROUPS)
        yield part
        yield from left

    def _rows(self, walk: Walk) -> Iterator[dict[str, Any]]:
        try:
            for depth, listed in walk:
                yield {_DEPTH: depth, _LISTED: vars(listed) | {"children": ()}}
                if self._most is not None and walk.weight >= self._most:
                    return
        # The launcher raises it where it stands, after what comes before.
        except InvalidInput as error:
            yield {_ERROR: str(error)}


class WriteIndex(FileDoFn):
    """All parts → the file that names them in order.

    Args:
      output: OUTPUT.
      directory: where the files lie.
      beam_args: Beam's flags.
    """

    def __init__(self, output: str, directory: str, beam_args: Sequence[str] = ()) -> None:
        super().__init__(beam_args)
        self._output, self._directory = output, directory

    def process(self, parts: list[_Stretch]) -> Iterator[int]:
        """Write it; yields the number of parts."""
        with carried_errors(self._output):
            paths = [part.path for part in sorted(parts)]
            storage.write_json(f"{self._directory}/{_INDEX}", paths)
        yield len(parts)


def _write_groups(
    directory: str, place: tuple[int, ...], branches: Sequence[Branch], most: int
) -> list[_Stretch]:
    """Cut branches into groups of about as many; files, since some hold thousands of names."""
    groups = []
    for number, group in enumerate(batches(branches, -(-len(branches) // most) or 1)):
        groups.append(_stretch(directory, (*place, number), is_listed=False))
        storage.write_json(groups[-1].path, group)
    return groups


def _stretch(directory: str, place: tuple[int, ...], *, is_listed: bool) -> _Stretch:
    # Another attempt at the same branches may list another state of the tree, into another file.
    name = f"{'listed' if is_listed else 'branches'}-{'-'.join(map(str, place))}-{uuid4().hex}.json"
    return _Stretch(place, f"{directory}/{name}", is_listed)


def _read_part(path: str) -> Iterator[tuple[int, Listed]]:
    with write_errors(path), storage.open_read(path) as file:
        for line in file:
            row = json.loads(line)
            if _ERROR in row:
                raise InvalidInput(row[_ERROR])
            yield row[_DEPTH], Listed(**row[_LISTED])
