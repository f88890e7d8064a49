"""Bad inputs of `python -m r1jax.plan`, by the closed form alone: no layout is compiled."""

from typing import Any

from tests.inputs.case import NONE, Case, Files, folder


def case(name: str, *argv: str, words: tuple[str, ...] = (), files: Files = NONE, **options: Any) -> Case:
    given = {argument.partition("=")[0] for argument in argv}
    usual = {"--model": "tiny_llama", "--topology": "h100:8", "--length": "128"}
    whole = [f"{flag}={value}" for flag, value in usual.items() if flag not in given]
    return Case(name, (*whole, *(a for a in argv if not a.endswith("="))), words, files, **options)


CASES = [
    case("no model", "--model=", words=("--model",)),
    case("no topology", "--topology=", words=("--topology",)),
    case("model unknown", "--model=none_such", words=("none_such",)),
    case("hub name unknown", "--model=nobody/none", words=("nobody/none",)),
    case("stage unknown", "--stage=dance", words=("stage",)),
    case("chip unknown", "--topology=x9:8", words=("x9",)),
    case("GPUs without number", "--topology=h100", words=("h100:8",)),
    case("GPUs 0", "--topology=h100:0", words=("h100",)),
    case("GPUs of text", "--topology=h100:many", words=("h100",)),
    case("length text", "--length=long", words=("length",)),
    case("length -1", "--length=-1", words=("length",)),
    case("length 0", "--length=0", words=("--length",)),
    case("prompt longer", "--prompt_length=128", words=("--prompt_length",)),
    case("prompts 0", "--prompts_per_step=0", words=("--prompts_per_step",)),
    case("nothing divides", "--topology=h100:7", words=("7 devices",)),
    case("output exists", "--output={here}/c.py", words=("c.py", "exists"), files={"c.py": "my notes"}),
    case("output a folder", "--output={here}/c.py", words=("c.py",), files={"c.py": folder}),
    case("output in /proc", "--output=/proc/none/c.py", words=("/proc/none",)),
    case("unknown flag", "--toplogy=h100:8", words=("toplogy",)),
    case("positional", "stray", words=("stray",)),
]
