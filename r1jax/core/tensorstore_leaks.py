"""Two leaks of tensorstore (0.1.80 to 0.1.86) that every save would meet, kept out of orbax's way.

`KvStore.Spec.to_json` never frees the strings of its answer, and orbax asks for the same answer once an array;
`experimental_collect_matching_metrics` never frees some lists, and orbax asks twice a save, to log how many bytes were
written. An hour with 400 saves of 70 arrays grew by 17 MB. A store is therefore described once a save, and the bytes
are not counted.
"""

import copy
import functools
from typing import Any

from orbax.checkpoint._src.serialization import tensorstore_utils

COUNT, DESCRIBE = "get_tensorstore_raw_bytes", "build_kvstore_tspec"  # the functions of orbax that ask
KEPT = 16  # descriptions; a save needs three


@functools.cache
def avoid() -> None:
    """Puts the two functions in the place of orbax's, if this version of orbax has them."""
    if hasattr(tensorstore_utils, COUNT):
        setattr(tensorstore_utils, COUNT, lambda *args, **options: 0)
    if describe := getattr(tensorstore_utils, DESCRIBE, None):
        setattr(tensorstore_utils, DESCRIBE, _remember(describe))


def _remember(describe: Any) -> Any:
    """The function that describes an array's store, asked once for all arrays of a folder, which differ by `path`."""
    kept: dict[str, Any] = {}

    @functools.wraps(describe)
    def remembered(directory: str, name: str | None = None, *, use_ocdbt: bool = True, **options: Any) -> Any:
        if not use_ocdbt:
            return describe(directory, name, use_ocdbt=False, **options)
        key = repr((directory, sorted(options.items())))
        if key not in kept:
            if len(kept) >= KEPT:
                kept.pop(next(iter(kept)))
            kept[key] = describe(directory, None, **options)
        return copy.deepcopy(kept[key]) | ({} if name is None else {"path": name})

    return remembered
