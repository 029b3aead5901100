"""history.jsonl of MODEL_DIR: a row for each validation, each once however often a run stopped."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HISTORY_FILE = "history.jsonl"


class History:
    """The rows of a run.

    Args:
      model_dir: MODEL_DIR.
    """

    def __init__(self, model_dir: Path) -> None:
        self._path = model_dir / HISTORY_FILE

    def keep_until(self, step: int) -> None:
        """Drop the rows after a checkpoint, and half a row; the resumed run writes them again."""
        if not self._path.exists():
            return
        rows = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [row for row in rows if row.endswith("\n") and json.loads(row)["step"] <= step]
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text("".join(kept), encoding="utf-8")
        temporary.replace(self._path)

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one row."""
        with self._path.open("a", encoding="utf-8") as history:
            history.write(json.dumps(row) + "\n")
