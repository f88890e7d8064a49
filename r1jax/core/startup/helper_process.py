"""Environment of helper processes: what an interpreter needs to start, and no secret of ours."""

import os
from collections.abc import Mapping

# Names that interpreters, the loader of libraries and C libraries read. Keys of services (HF_TOKEN, WANDB_API_KEY,
# OPENAI_API_KEY, ...) are in none of them.
KEPT = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TMPDIR",
    "TZ",
    "LD_LIBRARY_PATH",
    "PYTHONPATH",
    "PYTHONHOME",
    "PYTHONUSERBASE",
    "PYTHONNOUSERSITE",
    "PYTHONUTF8",
    "VIRTUAL_ENV",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "SYSTEMROOT",
)


def minimal_environment(**more: str) -> Mapping[str, str]:
    """The variables of `KEPT` that are set here, and `more`."""
    return {name: os.environ[name] for name in KEPT if name in os.environ} | more
