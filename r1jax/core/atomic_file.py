"""Atomic writing of files: readers, and a restart after a kill or a power cut, see the old or the new content."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterable


def replace_file(path: str | os.PathLike[str], content: str | Iterable[bytes]) -> None:
    """Writes a text (UTF-8) or byte chunks to `path`, on disk when this returns; the folder must exist.

    The content goes into NAME.draft, which is then renamed. Only one process at a time may write a file. Raises
    OSError, and any error of the chunks; the old file is then unchanged, and no draft is left.
    """
    path = pathlib.Path(path)
    draft = path.with_name(path.name + ".draft")
    try:
        with open(draft, "wb") as file:
            file.writelines([content.encode("utf-8")] if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
