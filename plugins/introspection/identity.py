"""The daemon's uuid: made by the first call that asks for it, and kept in a file as long as the root folder lasts."""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from pathlib import Path

from moored.kernel.errors import DataLoss

FILE = "uuid"
FOLDER_MODE = 0o700
FILE_MODE = 0o644


def stored_uuid(folder: Path) -> str:
    """The uuid in `<folder>/uuid`, made if there is none. Blocks; not for two threads at once.

    An empty file counts as none. Raises DataLoss for one that holds something else, OSError.
    """
    path = folder / FILE
    try:
        text = path.read_text(encoding="utf-8", errors="replace").strip()
    except FileNotFoundError:
        text = ""
    if not text:
        return _make(path)
    try:
        return str(uuid.UUID(text))
    except ValueError as error:
        raise DataLoss(f"file {str(path)!r} holds {text[:64]!r}, it must hold a uuid") from error


def _make(path: Path) -> str:
    made = str(uuid.uuid4())
    path.parent.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
    temporary = path.with_name(f".{FILE}.{os.getpid()}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, FILE_MODE)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, FILE_MODE)
            file.write(made.encode())
            file.flush()
            os.fsync(descriptor)
        temporary.rename(path)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise
    _sync_folder(path.parent)
    return made


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
