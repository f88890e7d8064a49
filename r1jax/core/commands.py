"""Shared argument handling of all commands: help text, flags, and one error line with exit code 2 for a mistake.

A main keeps its flags separate from absl's global ones, so that importing it defines none, and is a function of `argv`
that returns the exit code, so that tests can call it.
"""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence

from absl import flags

from r1jax.core.atomic_file import find_full_disk
from r1jax.core.errors import (
    DIVERGED,
    DONE,
    INTERRUPTED,
    MISTAKE,
    DivergedError,
    PreemptedError,
    UserError,
    stop_at_signal,
)
from r1jax.core.processes import failures
from r1jax.core.startup import program_cache
from r1jax.core.startup.voice import Voice

HELP = {"--help", "-help", "-h", "--helpfull", "--helpshort"}


def run_command(
    document: str,
    values: flags.FlagValues,
    arguments: Sequence[str],
    action: Callable[[list[str]], None],
    *,
    positional: bool = False,
    stopped: str = "stopped",
    computes: bool = True,
    keeps_programs: bool = True,
) -> int:
    """Parses `arguments` into `values`, calls `action` with the positional arguments, and returns the exit code.

    0 on success, 2 with `error: ...` for a user's mistake or a full disk, 75 after SIGTERM, 130 with `stopped` for
    Ctrl-C (core/errors.py). Help consists of `document`, the main's docstring, and the flags. Positional arguments are
    a mistake unless the command is `positional`. A command that `computes` says what it does where it would be silent
    for long and, if it `keeps_programs`, gets the flag --compile_cache: compiled programs are kept for the next start.
    """
    keeps_programs &= computes
    if keeps_programs and program_cache.FLAG not in values:
        flags.DEFINE_string(program_cache.FLAG, None, program_cache.HELP, flag_values=values)
    try:
        if HELP & set(arguments):
            print(f"{document}\nFlags:")
            print(*(f"  --{name}: {values[name].help}" for name in values), sep="\n")
            return DONE
        given = _parse(values, arguments, positional)
        if keeps_programs:
            program_cache.keep_programs(values[program_cache.FLAG].value)
        with _stop_at_sigterm(), Voice("loading r1jax and jax") if computes else contextlib.nullcontext():
            action(given)
    except UserError as error:
        return _end(MISTAKE, " ".join(str(error).split()), "error: ")
    except DivergedError as error:
        return _end(DIVERGED, str(error), "error: ")
    except PreemptedError as error:
        return _end(int(error.code or 0), str(error), "stopped by SIGTERM: ")
    except KeyboardInterrupt:
        return _end(INTERRUPTED, stopped, "\n")
    except Exception as error:
        if full := find_full_disk(error):
            return _end(MISTAKE, f"{full}: make room and repeat the command; what is on file is kept", "error: ")
        from r1jax.core.startup.memory import describe_shortage  # imports jax

        if shortage := describe_shortage(error):
            return _end(MISTAKE, shortage, "error: ")
        failures.leave_by_error(error)
        raise
    return DONE


@contextlib.contextmanager
def _stop_at_sigterm() -> Iterator[None]:
    """Context in which SIGTERM ends the command with its documented code, also before and after a loop of steps. A
    program that has ended keeps its exit code: while Python shuts down, SIGTERM does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop_at_signal)
    try:
        yield
    finally:
        if getattr(sys.modules["__main__"], "__package__", None) == "r1jax":  # python -m r1jax.COMMAND
            before = signal.SIG_IGN
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)  # None: a handler outside Python


def _end(code: int, cause: str, head: str) -> int:
    """Prints why the command ends, tells the other processes of the run if there are any, and returns the code."""
    print(f"{head}{cause}", file=sys.stderr)
    failures.leave(code, cause)
    return code


def _parse(values: flags.FlagValues, arguments: Sequence[str], positional: bool) -> list[str]:
    try:
        _, *rest = values(["command", *arguments])
    except flags.Error as error:
        raise UserError(f"{error} (see --help)") from error
    if rest and not positional:
        raise UserError(f'unexpected argument "{rest[0]}": flags are written --name=value (see --help)')
    return rest
