"""An output folder that exists whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ground.errors import UserError


@contextmanager
def new_folder(target: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `target`; on success it is renamed to `target`.

    A run that is killed or fails leaves nothing under the final name. With `force` an existing
    folder of that name is replaced, after the new one is complete.

    Raises:
        UserError: `target` exists (without `force`), is a file, or its parent cannot be written.
    """
    target = Path(os.path.abspath(target))
    refuse_existing(target, force=force)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror})") from error
    try:
        partial.chmod(0o755)
        yield partial
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def open_folder(folder: Path, name: str, text: str) -> None:
    """Make `folder` the one whose file `name` says `text`, unless it is already.

    Raises:
        UserError: it holds something else, or was made for another text; or it cannot be written.
    """
    path = folder / name
    if path.is_file():
        if path.read_text(encoding="utf-8") != text:
            raise UserError(f"{folder}: holds another {path.stem}; choose another folder for this one")
        return
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder}: holds something else; expected a new folder, or that of this {path.stem}")
    with new_folder(folder) as partial:
        (partial / name).write_text(text, encoding="utf-8")


def refuse_existing(target: Path, *, force: bool = False) -> None:
    """What `new_folder` would refuse, so that long work can ask before it begins.

    Raises:
        UserError: `target` is a file, or a folder that holds something (without `force`).
    """
    if target.exists() and not target.is_dir():
        raise UserError(f"{target}: is a file; expected a folder to create")
    if target.exists() and not force and any(target.iterdir()):
        raise UserError(f"{target}: exists and is not empty; choose another folder or pass --force")
