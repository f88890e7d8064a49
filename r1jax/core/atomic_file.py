"""Atomic writing of files: readers, and a restart after a kill or a power cut, see the old or the new content; and
the full disk among errors.
"""

from __future__ import annotations

import errno
import os
import pathlib
import re
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
    except BaseException as error:
        if isinstance(error, OSError):
            error.filename = error.filename or os.fspath(path)
        draft.unlink(missing_ok=True)
        raise


FULL = {errno.ENOSPC: "no space is left on the disk", errno.EDQUOT: "no space is left in the quota"}
_WORDS = {"No space left on device": errno.ENOSPC, "Disk quota exceeded": errno.EDQUOT}  # in errors of libraries


def find_full_disk(error: BaseException) -> str:
    """Words for the full disk, with the file if it is known, that is the cause of an error; "" if none is."""
    seen: BaseException | None = error
    while seen is not None:
        number = seen.errno if isinstance(seen, OSError) else None
        number = number or next((number for words, number in _WORDS.items() if words in str(seen)), None)
        if number in FULL:
            quoted = re.search(r'"(/[^"]+)"', str(seen))
            file = seen.filename if isinstance(seen, OSError) else quoted[1] if quoted else ""
            return FULL[number] + (f" for {file}" if file else "")
        seen = seen.__cause__ or seen.__context__
    return ""
