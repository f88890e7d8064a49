"""Bad inputs of `python -m r1jax.compile_check`, which compiles nothing before they are found."""

from typing import Any

from tests.inputs.case import NONE, Case, Files, folder


def case(name: str, *argv: str, words: tuple[str, ...] = (), files: Files = NONE, **options: Any) -> Case:
    given = {argument.partition("=")[0] for argument in argv}
    usual = {"--config": "{root}/configs/grpo_zero.py", "--topology": "v6e-4"}
    whole = [f"{flag}={value}" for flag, value in usual.items() if flag not in given]
    return Case(name, (*whole, *(a for a in argv if not a.endswith("="))), words, files, **options)


CASES = [
    case("no config", "--config=", words=("--config",)),
    case("config missing", "--config={here}/none.py", words=("none.py",)),
    case("config broken", "--config={here}/c.py", words=("c.py",), files={"c.py": "def get_config(:"}),
    case("config raises", "--config={here}/c.py", words=("c.py",), files={"c.py": "1 / 0"}),
    case("key unknown", "--config.optimiser.learning_rate=1", words=("optimiser",)),
    case("value of wrong type", "--config.steps=many", words=("config.steps", "many")),
    case("no topology", "--topology=", words=("--topology",)),
    case("chip unknown", "--topology=v9x:2x2", words=("--topology", "v9x")),
    case("machine unknown", "--topology=v9x-8", words=("--topology", "v9x")),
    case("axes missing", "--topology=v6e", words=("--topology",)),
    case("axes too many", "--topology=v6e:2x2x2", words=("--topology",)),
    case("axes are text", "--topology=v6e:axb", words=("--topology",)),
    case("an axis of 0", "--topology=v6e:0x2", words=("--topology",)),
    case("too many chips", "--topology=v6e:1000x1000", words=("--topology",)),
    case("no power of two", "--topology=v6e-7", words=("--topology", "7")),
    case("huge number", "--topology=v6e-" + "9" * 5000, words=("--topology",)),
    case("slices 0", "--num_slices=0", words=("--num_slices",)),
    case("slices -1", "--num_slices=-1", words=("--num_slices",)),
    case("slices text", "--num_slices=two", words=("num_slices",)),
    case("output exists", "--output={here}/r.json", words=("r.json", "exists"), files={"r.json": "my notes"}),
    case("output a folder", "--output={here}/r.json", words=("r.json",), files={"r.json": folder}),
    case("output in /proc", "--output=/proc/none/r.json", words=("/proc/none",)),
    case("output below a file", "--output={here}/a/r.json", words=("a/r.json",), files={"a": "my notes"}),
    case("dump a file", "--dump_hlo={here}/d", words=("--dump_hlo",), files={"d": "my notes"}),
    case("dump holds files", "--dump_hlo={here}/d", words=("--dump_hlo",), files={"d/decode.txt": "my notes"}),
    case("dump in /proc", "--dump_hlo=/proc/none", words=("/proc/none",)),
    case("hlo missing", "--config=", "--hlo={here}/none", words=("--hlo", "none")),
    case("hlo empty", "--config=", "--hlo={here}/e", words=("--hlo",), files={"e": folder}),
    case("hlo of notes", "--config=", "--hlo={here}/e", words=("x.txt",), files={"e/x.txt": "my notes"}),
    case("hlo and config", "--hlo={here}/e", words=("--hlo", "--config"), files={"e": folder}),
    case("unknown flag", "--toplogy=v6e-4", words=("toplogy",)),
    case("positional", "stray", words=("stray",)),
]
