"""Imports TensorFlow without the lines its native code writes while it starts."""

import os
import sys
import tempfile


def import_tensorflow() -> None:
    """Import TensorFlow and look for GPUs, so that a command's own line stands alone.

    Native code writes to the file descriptor, past Python's logging; what it wrote is
    shown after all when the import fails.
    """
    if "tensorflow" in sys.modules:
        return
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as chatter:
        os.dup2(chatter.fileno(), 2)
        try:
            import tensorflow as tf

            tf.config.list_physical_devices("GPU")
        except BaseException:
            chatter.seek(0)
            os.write(kept, chatter.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
