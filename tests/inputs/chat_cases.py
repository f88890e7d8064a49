"""Bad inputs of `python -m r1jax.chat`, which writes no file."""

from typing import Any

from tests.inputs.case import NONE, Case, Files
from tests.inputs.generate_cases import _replace_template, _without_tokenizer
from tests.inputs.model_folders import FOLDERS, TOKENIZERS


def case(name: str, *argv: str, words: tuple[str, ...] = (), files: Files = NONE, **options: Any) -> Case:
    given = {argument.partition("=")[0] for argument in argv}
    usual = {"--model": "{model}", "--prompt": "1 + 1", "--max_new_tokens": "2"}
    whole = [f"{flag}={value}" for flag, value in usual.items() if flag not in given]
    return Case(name, (*whole, *(a for a in argv if not a.endswith("="))), words, files, **options)


SOME = ("config is a list", "negative width", "width is text", "layers null", "no weights", "weights cut off")
CASES = [
    case("no model", "--model=", words=("--model",)),
    case("model missing", "--model={here}/none", words=("none",)),
    case("unknown flag", "--promt=a", words=("promt",)),
    case("positional", "stray", words=("stray",)),
    case("temperature nan", "--temperature=nan", words=("temperature",)),
    case("temperature -1", "--temperature=-1", words=("temperature",)),
    case("top_p 2", "--top_p=2", words=("top_p",)),
    case("top_k -1", "--top_k=-1", words=("top_k",)),
    case("min_p -1", "--min_p=-1", words=("min_p",)),
    case("samples 0", "--samples=0", words=("samples",)),
    case("samples 10^9", "--samples=1000000000", words=("samples",)),
    case("max_new_tokens 0", "--max_new_tokens=0", words=("max_new_tokens",)),
    case("max_new_tokens 10^9", "--max_new_tokens=1000000000", words=("max_new_tokens",)),
    case("dtype", "--dtype=int4", words=("dtype",)),
    case("mesh", "--mesh=tensor=3", words=("--mesh",)),
    case("template", "--template=hello", words=("--template",)),
    case("template run", "--template=run", words=("--template",)),
    case("system and raw template", "--template=r1", "--system=Be brief.", words=("--system",)),
    case("prompt beyond the positions", "--prompt=" + "a" * 5000, words=("512",)),
    case("half a character", "--prompt=a\udcff", words=("prompt",)),
    case(
        "chat template broken",
        "--model={here}/m",
        words=("template",),
        files={"m": lambda p, m: _replace_template(p, m, "{{ 1 / 0 }}")},
    ),
    case("no tokenizer", "--model={here}/m", words=("tokenizer",), files={"m": _without_tokenizer}),
    *(
        case(f"model: {name}", "--model={here}/m", words=FOLDERS[name][1], files={"m": FOLDERS[name][0]})
        for name in SOME
    ),
    *(
        case(f"model: {name}", "--model={here}/m", words=words, files={"m": make})
        for name, (make, words) in TOKENIZERS.items()
    ),
    case("fine: one message", code=0),
    case("fine: seed 10^30", "--seed=1" + "0" * 30, code=0),
    case(
        "fine: mistakes in a conversation", "--prompt=", code=0, stdin="/nothing\n/temperature hot\n/tokens 0\n/quit\n"
    ),
]
