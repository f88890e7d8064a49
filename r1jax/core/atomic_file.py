"""Files written whole or not at all: readers, and a restart after a kill or a power cut, see the old or the new."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterable


def replace_file(path: str | os.PathLike[str], content: str | Iterable[bytes]) -> None:
    """Writes a text (UTF-8) or byte pieces to `path`, on disk when this returns; the folder must be there.

    They go into NAME.draft beside it, which then takes the name. One process at a time may write a file. Raises
    OSError, and whatever the pieces raise; the old file is untouched then, and no draft is left.
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
