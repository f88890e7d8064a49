"""Environment of the tests and of the programs that they start: pretend devices, quick compiling, caches.

Most of the suite's time is XLA compiling programs that run once, for milliseconds. So the programs are compiled without
LLVM's optimizations and by the older emitters: a quarter of the compile time, the same operations in the same types.
Rounding may differ in the last bits from a program compiled for speed. To test such programs: R1JAX_TEST_OPTIMIZED=1.
"""

import os
import re
import sys
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEVICES = "--xla_force_host_platform_device_count"

# Eight pretend devices on two cores take turns, so the time after which XLA takes a collective for dead is raised.
PATIENT = {
    "--xla_cpu_collective_call_warn_stuck_timeout_seconds": "120",
    "--xla_cpu_collective_call_terminate_timeout_seconds": "600",
}
# XLA ends a process that names a flag which it does not know: these are in every jaxlib that setup.py allows.
QUICK = {
    "--xla_backend_optimization_level": "0",
    "--xla_cpu_parallel_codegen_split_count": "1",
}
# jaxlib 0.11.1 has the newer emitters only.
if tuple(int(part) for part in re.findall(r"\d+", version("jaxlib"))[:3]) < (0, 11, 1):
    QUICK["--xla_cpu_use_fusion_emitters"] = "false"


def make_xla_flags(devices: int = 8) -> str:
    """XLA_FLAGS for so many pretend devices; what the caller's environment sets stays, but for the devices."""
    flags = {DEVICES: "8", **PATIENT, **({} if os.environ.get("R1JAX_TEST_OPTIMIZED") else QUICK)}
    present = dict(flag.partition("=")[::2] for flag in os.environ.get("XLA_FLAGS", "").split())
    flags |= present | {DEVICES: str(devices)}
    return " ".join(f"{flag}={value}" if value else flag for flag, value in flags.items())


def set_environment() -> None:
    """Sets what jax reads when it is imported, and keeps byte code, also where the caller's environment says not to.

    Without byte code every process that a test starts compiles the sources of jax and sympy anew, for 5 s of CPU time.
    It lies under .cache, beside the compiled programs, and not among the sources.
    """
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = make_xla_flags()
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    os.environ.setdefault("R1JAX_SILENCE_SECONDS", "0")  # on a slow machine a test would read lines of its waiting
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    sys.pycache_prefix = os.environ.setdefault("PYTHONPYCACHEPREFIX", str(ROOT / ".cache" / "python"))
