"""One arena of the C library's heap for all threads of a long run, and its free pages given back.

glibc gives new threads arenas of their own in turn. Each save starts some thirty threads, which leave holes in all of
them: resident memory of a small run grew by 0.2 MB a save. In one arena the holes are filled again, but its end moves
up while the memory in use stays the same (by 1.7 MB a minute at 180 steps a minute), so a save gives free pages back.
"""

import ctypes
import os

ARENA_MAX = -8  # M_ARENA_MAX of mallopt(3)
VARIABLE = "MALLOC_ARENA_MAX"


def share_arena() -> bool:
    """Limits the heap to one arena, if the C library has arenas and the user has set no limit; returns whether it did.
    Call it before threads start.
    """
    limit = getattr(ctypes.CDLL(None), "mallopt", None)
    return limit is not None and VARIABLE not in os.environ and bool(limit(ARENA_MAX, 1))


def give_back() -> None:
    """Gives free pages of the heap back to the system, if the C library can; a few milliseconds."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
