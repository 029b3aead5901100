"""What a dry run of bulk captioning found, in words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipelines.balance import listed_counts

_UNITS = ("B", "kB", "MB", "GB", "TB")
_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86400


@dataclass(frozen=True)
class Survey:
    """What the inputs hold.

    Attributes:
      images: those that would be taken.
      skipped: inputs passed over, by kind.
      kinds: of the images, by suffix.
      files: images whose size their listing tells.
      known_bytes: of these together.
    """

    images: int
    skipped: Mapping[str, int]
    kinds: Mapping[str, int]
    files: int
    known_bytes: int


@dataclass(frozen=True)
class Left:
    """What OUTPUT has, and what is left.

    Attributes:
      shards: of the job.
      shards_left: those to be made.
      images_left: in these.
      captioned: rows of captions that are there.
      failed: rows of failures that are there.
    """

    shards: int
    shards_left: int
    images_left: int
    captioned: int
    failed: int


@dataclass(frozen=True)
class Sample:
    """What became of the sample.

    Attributes:
      taken: its images.
      read_s: seconds to read and decode them.
      asked: those that were captioned, or refused by the model.
      caption_s: seconds of that.
      formats: of those that were read.
      failed: by reason.
      unlisted: sizes in bytes of those read whose listing tells none.
    """

    taken: int
    read_s: float
    asked: int
    caption_s: float
    formats: Mapping[str, int]
    failed: Mapping[str, int]
    unlisted: Sequence[int]

    @property
    def image_s(self) -> float | None:
        """Seconds an image of the job takes; None where none could be captioned.

        Reading and decoding overlap the model's work, so the slower of them counts.
        """
        if not self.asked:
            return None
        return max(self.read_s, self.caption_s) / self.taken


@dataclass(frozen=True)
class DryRun:
    """All of it.

    Attributes:
      model: "name" and "version".
      survey: the inputs.
      left: what is there and what is to be done.
      sample: what the estimates rest on.
      built: whether the runner has built the job.
    """

    model: Mapping[str, str | int]
    survey: Survey
    left: Left
    sample: Sample
    built: bool = False

    def __str__(self) -> str:
        lines = (
            "dry run: nothing was written",
            f"images: {self.survey.images} in {self.left.shards} shards; "
            f"{_counted(self.survey.skipped)} skipped",
            f"kinds: {listed_counts(self.survey.kinds)}",
            f"bytes: {self._bytes()}",
            f"output: {self._output()}",
            f"sample: {self.sample.taken} images drawn by their keys: "
            f"{_counted(self.sample.formats)} read, {_counted(self.sample.failed)} failed",
            f"time: {self._time()}",
            *(["runner: the job was built and not run"] if self.built else []),
        )
        return "\n".join(lines)

    def _bytes(self) -> str:
        known = f"{size_in_words(self.survey.known_bytes)} in {self.survey.files} files, as listed"
        unknown, sizes = self.survey.images - self.survey.files, self.sample.unlisted
        if not unknown:
            return known
        listed = f"{known}; " if self.survey.files else ""
        if not sizes:
            return f"{listed}{unknown} images of unknown size, none of them read in the sample"
        guess = size_in_words(unknown * sum(sizes) / len(sizes))
        return (
            f"{listed}about {guess} in {unknown} others, estimated from {len(sizes)} of the sample"
        )

    def _output(self) -> str:
        left = self.left
        if not left.captioned + left.failed:
            return "no rows there; all is to be done"
        rows = f"rows of {left.captioned} captions and {left.failed} failures are there"
        if not left.shards_left:
            return f"{rows}; nothing is to be done"
        return (
            f"{rows}; {left.shards_left} shards with {left.images_left} images are to be made, "
            "in which rows of images that are the same stay"
        )

    def _time(self) -> str:
        sample, image_s = self.sample, self.sample.image_s
        if image_s is None:
            return "unknown: no image of the sample could be read"
        return (
            f"about {time_in_words(image_s * self.left.images_left)} in one process on this "
            f"machine, from the sample: {_rate(sample.taken, sample.read_s)} read and decoded, "
            f"meanwhile {_rate(sample.asked, sample.caption_s)} captioned by {self.model['name']} "
            f"version {self.model['version']}"
        )


def size_in_words(size: float) -> str:
    """Bytes in the largest unit of 1,000 that leaves 1 or more: `1.5 MB`."""
    power = 0
    while size >= 999.5 and power < len(_UNITS) - 1:
        size, power = size / 1000, power + 1
    return f"{size:.3g} {_UNITS[power]}"


def time_in_words(seconds: float) -> str:
    """A span of time in its two largest units: `2 h 5 min`."""
    whole = round(seconds)
    if whole < _MINUTE_S:
        return f"{max(seconds, 0):.2g} s"
    if whole < _HOUR_S:
        return f"{whole // _MINUTE_S} min {whole % _MINUTE_S} s"
    if whole < _DAY_S:
        return f"{whole // _HOUR_S} h {whole % _HOUR_S // _MINUTE_S} min"
    return f"{whole // _DAY_S} days {whole % _DAY_S // _HOUR_S} h"


def _counted(counts: Mapping[str, int]) -> str:
    """`3 (JPEG 2, PNG 1)`."""
    named = f" ({listed_counts(counts)})" if counts else ""
    return f"{sum(counts.values())}{named}"


def _rate(images: int, seconds: float) -> str:
    return f"{images / max(seconds, 1e-9):.3g} images/s"
