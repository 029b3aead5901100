"""OUTPUT must not lie where the next run would take its files for inputs."""

from fnmatch import fnmatchcase
from glob import has_magic
from pathlib import Path

from model.errors import InvalidInput
from pipelines.listing import scheme
from pipelines.manifest_rows import manifest_kind


def check_apart(where: str, output: str, flag: str = "--output") -> None:
    """Raises InvalidInput where results would become inputs of the next run.

    Args:
      where: an --input.
      output: where results are written.
      flag: what names it.
    """
    if scheme(where) is None:
        if Path(where).is_dir():
            inside = Path(output).resolve().is_relative_to(Path(where).resolve())
        else:
            inside = has_magic(where) and not Path(where).exists() and _reaches(where, output)
    elif has_magic(where):
        inside = _reaches(where, output)
    else:
        inside = not manifest_kind(where) and f"{output}/".startswith(f"{where.rstrip('/')}/")
    if inside:
        raise InvalidInput(f"{flag} {output}: lies in --input {where}; take one outside it")


def _reaches(pattern: str, output: str) -> bool:
    """Whether a glob can match OUTPUT or what lies in it."""
    there, wanted = _parts(output), _parts(pattern)
    for part, name in zip(wanted, there, strict=False):
        if "**" in part:
            return True
        if not fnmatchcase(name, part):
            return False
    return len(wanted) >= len(there)


def _parts(path: str) -> list[str]:
    """The names in a path or URL; those of a local path from the root, without links."""
    if "://" in path:
        return path.rstrip("/").split("/")
    parts = Path(path).absolute().parts
    literal = next((i for i, part in enumerate(parts) if has_magic(part)), len(parts))
    return [*Path(*parts[:literal]).resolve().parts, *parts[literal:]]
