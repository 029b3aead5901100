"""Which names are tar files', and what to say of compressed ones."""

from model.errors import InvalidInput

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.z")


def is_tar(path: str) -> bool:
    """Whether a path or pattern names tar files.

    Raises:
      InvalidInput: compressed ones.
    """
    if path.lower().endswith(_COMPRESSED):
        raise compressed_tar(path)
    return path.lower().endswith(".tar")


def compressed_tar(path: str) -> InvalidInput:
    """What to say of a compressed tar."""
    return InvalidInput(
        f"{path}: a compressed tar, in which no image can be found without unpacking all "
        "before it, expected a plain .tar; unpack it once with gunzip or the like (photographs are "
        "compressed already)"
    )
