"""The name of a small file that belongs to a key: of each its own, and never outside its directory.

A key that can be a path below a directory on every filesystem names its file itself: KEY.txt. Any
other (a URL, an absolute path, one with `..`, with characters that a filesystem or Beam's patterns
refuse, too long) gives `_keys/HH/NAME-HASH.txt`: HASH is the first 32 hexadecimal digits of the
SHA-256 of the key in UTF-8, HH the first two of them, and NAME what is readable of its end.
"""

import hashlib
import re
from pathlib import PurePosixPath

from pipelines.keys import root_of
from pipelines.listing import is_image

# No key that names its file itself begins so.
_HASHED = "_keys"
_HASH_DIGITS, _NAME_LENGTH = 32, 40
# Of most filesystems, and of a bucket's objects with room for the directory.
_MOST_BYTES_OF_PART, _MOST_BYTES = 255, 700
# Control characters, Windows' own, and what Beam takes for a pattern.
_ODD = re.compile(r'[\x00-\x1f\x7f\\:*?"<>|\[]')


def file_of(key: str, suffix: str) -> str:
    """The path of a key's file, relative to its directory.

    Args:
      key: of an item.
      suffix: with its dot.

    Returns:
      A path with `/`; two keys never have the same, nor one the other's for a directory.
    """
    path = key + suffix
    *directories, name = path.split("/")
    plain = (
        len(path.encode(errors="surrogatepass")) <= _MOST_BYTES
        and all(map(_is_plain, (*directories, name)))
        # Where another key's file may lie.
        and not any(directory.endswith(suffix) for directory in directories)
        and name != suffix
        and path.split("/")[0] != _HASHED
    )
    return path if plain else _hashed(key, suffix)


def copy_of(key: str, suffix: str) -> str:
    """The path of an image's copy, relative to its directory, beside `PATH` + suffix.

    Args:
      key: of the image.
      suffix: of the file beside it, with its dot.

    Returns:
      The key, where it ends as an image's and its file could have its name; else a name as of
      `file_of`, with the suffix of an image where the key has one. No two keys have a file in
      common, nor one the other's for a directory.
    """
    path = PurePosixPath(key)
    alone = file_of(key, suffix) == key + suffix and is_image(key)
    # Where another image may lie.
    if alone and not any(map(is_image, path.parts[:-1])):
        return key
    # Of a URL, or one that came again.
    name = root_of(key.partition("?")[0])
    return _hashed(key, PurePosixPath(name).suffix.lower() if is_image(name) else "")


def _is_plain(part: str) -> bool:
    try:
        length = len(part.encode())
    except UnicodeEncodeError:
        return False
    return (
        0 < length <= _MOST_BYTES_OF_PART
        # With a dot, "." and ".." and what is hidden.
        and not part.startswith((".", " "))
        and not part.endswith((".", " "))
        and _ODD.search(part) is None
    )


def _hashed(key: str, suffix: str) -> str:
    digest = hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()[:_HASH_DIGITS]
    readable = re.sub(r"[^A-Za-z0-9._-]+", "_", key.rstrip("/").rpartition("/")[2])
    name = readable.lstrip("._-")[:_NAME_LENGTH] or "key"
    return f"{_HASHED}/{digest[:2]}/{name}-{digest}{suffix}"
