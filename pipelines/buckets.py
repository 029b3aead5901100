"""What Beam's filesystems for buckets (2.77) lack.

Their clients raise errors of their own classes, none of them an OSError: `os_errors` and
`Writer` turn them into it.

Beam makes a boto3 client for every call to S3, at 0.19 CPU-seconds each: more than encoding an
image costs. It writes an object as an upload in parts, which S3 does not complete where there
are none, so that no empty file can be written. And it asks again for ten minutes where there
are no credentials. `mend_s3` puts another client in its place.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from http import HTTPStatus
from typing import Any

from apache_beam.io.aws import s3io
from apache_beam.options.pipeline_options import PipelineOptions, S3Options

# Packages whose errors are a bucket's; the clients' own need not be installed.
_CLIENTS = frozenset(("apache_beam", "boto3", "botocore", "google"))


def is_os_error(error: Exception) -> bool:
    """Whether it is an OSError or comes from a bucket's client."""
    return isinstance(error, OSError) or type(error).__module__.split(".")[0] in _CLIENTS


@contextmanager
def os_errors() -> Iterator[None]:
    """Raise what a bucket's client raises as OSError; FileNotFoundError where nothing is there."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) or not is_os_error(error):
            raise
        missing = getattr(error, "code", None) == HTTPStatus.NOT_FOUND
        said = f"{type(error).__name__}: {getattr(error, 'message', error)}"
        raise (FileNotFoundError if missing else OSError)(said) from error


class Writer:
    """A binary file that is being written; raises OSError."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return bool(self._file.closed)

    @os_errors()
    def write(self, data: bytes) -> int:
        """Append bytes; returns their number."""
        return int(self._file.write(data))

    @os_errors()
    def flush(self) -> None:
        """Hand on what is buffered."""
        self._file.flush()

    def fileno(self) -> int:
        """Of a local file; others raise AttributeError or io.UnsupportedOperation."""
        return int(self._file.fileno())

    @os_errors()
    def close(self) -> None:
        """Finish the file."""
        try:
            self._file.close()
        except Exception:
            # Else Google's writer uploads again when it is collected, and that for two minutes
            # where nothing answers.
            if hasattr(self._file, "terminate"):
                with suppress(Exception):
                    self._file.terminate()
            raise


def mend_s3() -> None:
    """Give Beam our S3 client in this process; nothing happens without the extra `aws`."""
    if s3io.BOTO3_INSTALLED:
        s3io.boto3_client.Client = _s3_client()


@lru_cache(maxsize=1)
def _s3_client() -> type:
    import boto3
    from apache_beam.io.aws.clients.s3.boto3_client import Client as BeamClient

    @lru_cache(maxsize=1)
    def fresh(flags: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
        """A client's fields: the boto3 client, which threads may share, and an idle download."""
        if not dict(flags)["s3_access_key_id"] and not boto3.session.Session().get_credentials():
            raise PermissionError(
                "no AWS credentials, expected AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the "
                "environment, a profile or a role of this machine"
            )
        try:
            return dict(vars(BeamClient(dict(flags))))
        # An endpoint without http:// is one.
        except ValueError as error:
            raise OSError(f"S3: {error}") from error

    class Client(BeamClient):
        """Beam's client over one boto3 client a process; completes uploads without parts."""

        def __init__(self, options: PipelineOptions) -> None:
            flags = options.view_as(S3Options).get_all_options(current_only=True)
            self.__dict__.update(fresh(tuple(sorted(flags.items()))))

        def complete_multipart_upload(self, request: Any) -> None:
            if request.parts:
                super().complete_multipart_upload(request)
                return
            where = {"Bucket": request.bucket, "Key": request.object}
            self.client.abort_multipart_upload(UploadId=request.upload_id, **where)
            self.client.put_object(**where)

    return Client
