"""What was measured so far, on disk at once: a killed calibration goes on where it stopped."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ground.errors import UserError

Record = dict[str, Any]


class Journal:
    """A folder with `settings.json` and `points.jsonl`, one line a finished point.

    Raises:
        UserError: the folder holds a calibration with other settings, or cannot be written.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self._path = folder / "points.jsonl"
        settings = json.loads(json.dumps(settings))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stated = folder / "settings.json"
            if stated.is_file():
                _check_same(folder, json.loads(stated.read_text(encoding="utf-8")), settings)
            else:
                stated.write_text(json.dumps(settings), encoding="utf-8")
            self.records = self._read()
            self._file = self._path.open("a", encoding="utf-8")
        except OSError as error:
            raise UserError(f"{folder}: cannot be written ({error.strerror})") from error

    def append(self, record: Record) -> None:
        """Add a record; when this returns it is on the disk."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.records.append(record)

    def close(self) -> None:
        self._file.close()

    def _read(self) -> list[Record]:
        if not self._path.is_file():
            return []
        text = self._path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        if len(whole) < len(text):  # killed while it wrote a line
            self._path.write_bytes(whole)
        return [json.loads(line) for line in whole.splitlines()]


def _check_same(folder: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    for key in wanted:
        if found.get(key) != wanted[key]:
            raise UserError(
                f"{folder}: an unfinished calibration with other settings ({key} differs); "
                "finish it with the same options, or delete that folder"
            )
