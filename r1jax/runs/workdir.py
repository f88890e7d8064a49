"""The workdir of a run, besides metrics and checkpoints: its config, and a before-and-after table from its rows."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from r1jax.core.atomic_file import find_full_disk, replace_file
from r1jax.core.buckets.staging import locate, move
from r1jax.core.errors import UserError
from r1jax.core.metrics import METRICS_FILE, SAMPLES_FILE, read_rows
from r1jax.core.resolution import resolve
from r1jax.core.sections import flatten, to_json, to_values
from r1jax.eval.headline import find_rewards, format_value
from r1jax.eval.prompting import make_prompting
from r1jax.eval.saved_config import CONFIG_FILE, FORMAT, read_config_file
from r1jax.runs.model_setup import describe_model
from r1jax.text.tokenizer import Tokenizer
from r1jax.weights.export import mark_folder
from r1jax.weights.pretrained import DESCRIPTION, PROMPTING_FILE

log = logging.getLogger(__name__)

# Commands that would make an absent model, which a run that has it does not use.
MAKERS = ("model.fetch", "teacher.fetch", "student.fetch")

# Keys that a resumed run may change, with everything below them: earlier steps do not depend on them.
FREE_KEYS = (
    "steps",
    "eval",
    "checkpoint",
    "log",
    "profile",
    "model.scan_layers",
    "model.remat",
    "rollout.mesh",
    "rollout.rules",
    "harness.workers",  # programs at once change no reply
    *MAKERS,
    "guards",
    "watchdog_minutes",
)

# Files that the loop of a run writes into its workdir besides checkpoints; other files there belong to the stage.
RECORDS = (CONFIG_FILE, METRICS_FILE, SAMPLES_FILE, "tensorboard", "profile", "report.html", DESCRIPTION)


def write_config(settings: Any, workdir: pathlib.Path) -> None:
    """Writes config.json, every value of a run's settings, atomically, and model/, the description of the model for
    readers of its checkpoints, with how the run asks it (eval/prompting.py).
    """
    workdir.mkdir(parents=True, exist_ok=True)
    values = to_values(settings)
    replace_file(workdir / CONFIG_FILE, to_json({"format": FORMAT, **values}))
    model = getattr(settings, "model", None) or getattr(settings, "student", None)
    description = workdir / DESCRIPTION
    if model and not (description / "config.json").exists():
        describe_model(model, description)
        if getattr(settings, "SCORED", False):
            mark_folder(description)
    if model:
        _write_prompting(values, description)


def _write_prompting(values: Mapping[str, Any], description: pathlib.Path) -> None:
    tokenizer = Tokenizer.from_path(description)
    prompting = make_prompting(values, () if tokenizer is None else tokenizer.eos_ids)
    if prompting is None:  # that of the model which the run started from is not this run's
        (description / PROMPTING_FILE).unlink(missing_ok=True)
    else:
        replace_file(description / PROMPTING_FILE, prompting.to_text())


@contextlib.contextmanager
def name_faults(workdir: pathlib.Path) -> Iterator[None]:
    """Context that raises a UserError for a file of the workdir that cannot be read or written; full disks are left to
    the command (core/commands.py).
    """
    try:
        yield
    except OSError as error:
        named = pathlib.Path(str(error.filename)).absolute()
        if error.filename is None or not named.is_relative_to(workdir.absolute()) or find_full_disk(error):
            raise
        raise UserError(
            f"{error.filename}: {error.strerror}; a run must be able to read and write the files of its --workdir"
        ) from error


def set_aside(workdir: pathlib.Path) -> None:
    """Moves files of an earlier start without a checkpoint to WORKDIR.earlier-N, and logs it."""
    if not any(_has_rows(workdir / name) for name in (METRICS_FILE, SAMPLES_FILE)):
        return
    place = find_earlier(workdir)
    place.mkdir()
    move(workdir, RECORDS, place)
    log.warning("%s has rows of a run without a checkpoint; they were moved to %s", locate(workdir), locate(place))


def compare_records(workdir: pathlib.Path, step: int, sizes: Mapping[str, int], *, pending: bool) -> None:
    """Logs a warning for each file of rows that lost some from before a checkpoint: they cannot be made again.

    sizes: bytes of the files when the checkpoint was saved ({}: not known). pending: the row of `step` was not written.
    """
    steps = {row["step"] for row in read_rows(workdir / METRICS_FILE)}
    lost = sorted({*range(1, step + (not pending))} - steps)
    for name in (METRICS_FILE, SAMPLES_FILE):
        file = workdir / name
        short = sizes.get(name, 0) - (file.stat().st_size if file.exists() else 0)
        if short > 0 or (lost and name == METRICS_FILE):
            which = f" (steps {', '.join(map(str, lost[:8]))}{', …' * (len(lost) > 8)})" if lost else ""
            log.warning(
                "%s has lost rows%s since step %d was saved%s; training goes on, and the record stays incomplete",
                locate(file),
                which if name == METRICS_FILE else "",
                step,
                f", {short} bytes" if short > 0 else "",
            )


def check_folders(workdir: pathlib.Path) -> None:
    """Raises UserError if a file stands where the run keeps a folder: found now, and not at the first save."""
    for name in ("tensorboard", "profile", DESCRIPTION):
        if (workdir / name).exists() and not (workdir / name).is_dir():
            raise UserError(f"{workdir / name} must be a folder, but is a file: move it away (--workdir)")


def find_earlier(folder: pathlib.Path) -> pathlib.Path:
    """The first of FOLDER.earlier-1, FOLDER.earlier-2, … that does not exist, here or in a bucket."""
    places = (folder.with_name(f"{folder.name}.earlier-{n}") for n in itertools.count(1))
    return next(place for place in places if not locate(place).exists() and not place.exists())


def _has_rows(file: pathlib.Path) -> bool:
    return file.is_file() and file.stat().st_size > 0


def check_config(settings: Any, workdir: pathlib.Path) -> None:
    """Raises UserError if the workdir was written with settings that differ outside `FREE_KEYS`."""
    before = _bind_example(read_config(settings, workdir))
    now = _bind_example(flatten(json.loads(to_json(drop_free(to_values(settings))))))
    for key in sorted({*before, *now} if before else ()):
        if before.get(key) != now.get(key):
            raise UserError(
                f"{workdir} has a run with config.{key} = {before.get(key)!r}, this one has {now.get(key)!r}; "
                "resume with the same config or name another --workdir"
            )


def _bind_example(values: dict[str, Any]) -> dict[str, Any]:
    """The values with an example of any source as one of the run's source: it is shown alike (data/tasks.py)."""
    if values.get("data.example.source") == "":
        values["data.example.source"] = values["data.source"]
    return values


def read_config(settings: Any, workdir: pathlib.Path) -> dict[str, Any]:
    """Dotted key -> value of the settings of the run in `workdir`, without `FREE_KEYS` and in the form of the dataclass
    of `settings`; {} if their file is missing or torn, with a warning. Values of a run of another stage are returned
    as in its file.
    """
    try:
        values, _ = read_config_file(workdir / CONFIG_FILE)
    except (FileNotFoundError, ValueError) as error:
        state = "missing" if isinstance(error, FileNotFoundError) else "torn"
        log.warning("%s is %s: resuming without comparing configs", workdir / CONFIG_FILE, state)
        return {}
    values = drop_free(values)
    if all(values.get(key) == getattr(settings, key, None) for key in ("stage", "method")):
        own = to_values(settings)
        free = {key: own[key] for key in FREE_KEYS if key in own}  # some of them have no default
        values = resolve(type(settings), {**free, **values}).values
    return flatten(json.loads(to_json(drop_free(values))))


def drop_free(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values without those that a resumed run may change."""
    kept: dict[str, Any] = {}
    for key, value in values.items():
        free = {name.partition(".")[2] for name in FREE_KEYS if name.partition(".")[0] == key}
        if isinstance(value, Mapping) and "" not in free:
            kept[key] = {name: item for name, item in value.items() if name not in free}
        elif "" not in free:
            kept[key] = value
    return kept


def describe_change(workdir: pathlib.Path, benchmark: str) -> list[dict[str, Any]]:
    """First and last evaluation as table rows: one per score, in percent, and one per reward, with standard errors."""
    prefix = f"eval/{benchmark}/"
    rows = [row for row in read_rows(workdir / "metrics.jsonl") if f"{prefix}problems" in row]
    if not rows:
        return []
    labels = {
        "pass@1": "strict pass@1, sampled",
        "greedy": "strict, greedy",
        "lenient": "lenient (last number), sampled",
        "greedy_lenient": "lenient, greedy",
        "format_rate": "format, sampled",
        "greedy_format_rate": "format, greedy",
    }
    own = find_rewards(list(rows[-1]), benchmark)
    table = []
    for name, label in {**labels, **{name: f"{name}, sampled" for name in own}}.items():
        key, is_rate = prefix + name, name in labels
        if key in rows[0] and key in rows[-1]:
            line = {f"{rows[0][prefix + 'problems']} held-out problems": label}
            for when, row in (("before", rows[0]), ("after", rows[-1])):
                line[f"{when} (step {row['step']})"] = format_value(row[key], row[f"{key}_stderr"], is_rate)
            change = rows[-1][key] - rows[0][key]
            line["change"] = f"{100 * change:+.1f}" if is_rate else f"{change:+.3g}"
            table.append(line)
    return table
