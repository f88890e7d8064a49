"""Writes tokenizer.json.gz, chat.json, families.json: what transformers makes of texts and of conversations.

usage: python tests/goldens/make_texts.py models/SmolLM2-135M-Instruct.Q4_1.gguf
needs: torch, transformers 5, gguf (no network). Written with transformers 5.23, tokenizers 0.23.

tokenizer.json.gz
    {"texts": [TEXT, ...],
     "ids": {PRE: [[ids of texts[0]], ...]},  of SmolLM2's vocabulary, with the split that PRE names
     "read_from_gguf": {INDEX: [ids]},        where transformers' own reading of the GGUF differs from "smollm"
     "decoded": {INDEX: TEXT}}                of the "smollm" ids without special tokens, where it is not the text again
chat.json
    [{"template": TEXT or null (the model's own), "messages": [...], "variables": {...}, "add_generation_prompt": BOOL,
      "text": rendering, "ids": ids of it}, or with "refused": true in place of the last two]
families.json
    the same for the files of templates/, "template" being the file's name; without "ids", but with "mask", which of
    them transformers marks as the assistant's, and "ids" where the template has {% generation %} and is not opened

PRE "smollm" is the split of the model's own tokenizer.json (single digits first). transformers 5.23 has no entry for
`tokenizer.ggml.pre = smollm` and reads the GGUF without it, so the script sets it on transformers' object; white space
before digits tokenizes differently otherwise. The other PREs are read by transformers from a GGUF that holds the same
vocabulary under that name.
"""

import functools
import gzip
import json
import random
import sys
import tempfile
import unicodedata
from pathlib import Path

import gguf
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

HERE = Path(__file__).parent
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<jupyter_code>", "<empty_output>"]
PIECES = [
    *"0 1 7 12 345 2024 3.14 1,000,000 -5 ½ ² Ⅷ ٣٤ 9".split(),
    *"a I the The THE don't we'll I'M naïve Ünïcödé schön ß ﬁ ﬃ Ångström".split(),
    *"我想 東京 ありがとう 한국어 привет нещо שלום مرحبا हिन्दी ไทย កាន់តែ Ελλάδα".split(),
    *"🦙 🚀 😶\u200d🌫️ 👩\u200d👩\u200d👧 🇩🇪 ✅ … – — “q” ‘q’ € £ ∑ ∂x → ≤ ＡＢＣ".split(),
    *"if(x){return} x=1; def f(): lambda <think> </think> <answer> </answer> \\boxed{4} $x^2$ _id CamelCase".split(),
    *"() [] {} // /* */ <!-- --> https://a.b/c?d=e&f=1 a@b.co #tag @me ### ``` ''' ... !!! ??? ------ ====".split(),
    *[
        " ",
        "  ",
        "   ",
        "    ",
        "\t",
        "\n",
        "\n\n",
        "\r\n",
        "\n    ",
        " \n ",
        "\u00a0",
        "\u3000",
        "\u200b",
        "\u2028",
        "\x00",
        "\x7f",
    ],
]
SENTENCES = [
    "What is 12 + 34?",
    "What is 7 + 8?  Answer with a number.",
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. How many in all?",
    "The quick brown fox jumps over the lazy dog.",
    "    def add(a, b):\n        return a + b  # 2 spaces\n\n    print(add( 10,  32))\n",
    "for i in range(  10 ):\n\tx[i] =  3 * i\n",
    '{"a": [1, 22, 333], "b": null, "c": "\\u00e9"}',
    "SELECT  *  FROM t WHERE  id = 1234567890;",
    "Let $x^2 + 3x - 10 = 0$. Then $(x-2)(x+5)=0$, so $x = 2$ or $x = -5$.",
    "<think> 10 + 20 = 30 </think> <answer> 30 </answer>",
    "<think>\nWe add.\n</think>\n<answer>\n42\n</answer>",
    "A conversation between User and Assistant. User: What is 3 + 4? Assistant:",
    "I've been 'told he's there, 'RE you sure? 'M not sure I'll make it, 'D you like some tea? We'Ve a'lL",
    "3 33 333 3333 33333 333333 3333333 33333333 3.3 3..3 3...3",
    "  3    33     333\n  3\n\n  33\t 3\t\t33",
    "2024-01-31T12:34:56.789Z, 1e-5, 0x1F, 1_000, 50%, $19.99, 1/2, 10^6, (555) 123-4567",
    "Привет, мир! Сколько будет 12 + 34?",
    "東京は日本の首都です。人口は約1400万人。",
    "مرحبا بالعالم ١٢٣",
    "हिन्दी में १२३ लिखो",
    "e\u0301 versus \u00e9, \u1e9b\u0323 versus \u1e69, \ufb01 versus fi",
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
]


def make_texts() -> list[str]:
    """A few hundred texts: sentences, every piece alone, and seeded mixes of pieces with runs of white space."""
    draw = random.Random(0)
    pieces = sorted({*PIECES, *SPECIALS})
    texts = ["", *SENTENCES, *pieces, *[" " + piece for piece in PIECES if piece.strip()]]
    for size in (2, 3, 5, 8, 12, 30):
        for _ in range(30):
            chosen = draw.choices(pieces, k=size)
            texts.append("".join(piece + draw.choice(["", "", " ", " ", "  ", "\n"]) for piece in chosen))
    for _ in range(60):
        texts.append(
            "".join(chr(draw.choice([*range(32, 127), *range(0xA0, 0x250), *range(0x4E00, 0x4E20)])) for _ in range(24))
        )
    return list(dict.fromkeys(texts))


def load(path: Path) -> AutoTokenizer:
    return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def load_as_published(path: Path) -> AutoTokenizer:
    """With the split of the model's own tokenizer.json."""
    tokenizer = load(path)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer


def rename_pre(source: Path, pre: str, folder: Path) -> Path:
    """A GGUF without tensors: the vocabulary of `source` under another pre-tokenizer."""
    path = folder / f"{pre}.gguf"
    fields = gguf.GGUFReader(source).fields
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(fields["tokenizer.ggml.tokens"].contents())
    writer.add_token_types(fields["tokenizer.ggml.token_type"].contents())
    writer.add_token_merges(fields["tokenizer.ggml.merges"].contents())
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def write_tokenizer(source: Path) -> None:
    texts = make_texts()
    as_read, tokenizer = load(source), load_as_published(source)
    ids = {"smollm": [tokenizer.encode(text, add_special_tokens=False) for text in texts]}
    read = [as_read.encode(text, add_special_tokens=False) for text in texts]
    back = [
        tokenizer.decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=False) for row in ids["smollm"]
    ]
    with tempfile.TemporaryDirectory() as folder:
        for pre in ("gpt-2", "llama-bpe", "qwen2"):
            other = load(rename_pre(source, pre, Path(folder)))
            # Qwen2's own tokenizer.json normalizes to NFC first; the reading of a GGUF leaves that out.
            inputs = [unicodedata.normalize("NFC", text) if pre == "qwen2" else text for text in texts]
            ids[pre] = [other.encode(text, add_special_tokens=False) for text in inputs]
    content = {
        "texts": texts,
        "ids": ids,
        "read_from_gguf": {i: row for i, row in enumerate(read) if row != ids["smollm"][i]},
        "decoded": {i: text for i, text in enumerate(back) if text != texts[i]},
    }
    packed = json.dumps(content, ensure_ascii=True, separators=(",", ":")).encode()
    (HERE / "tokenizer.json.gz").write_bytes(gzip.compress(packed, 9, mtime=0))
    print(len(texts), "texts,", len(content["read_from_gguf"]), "of them read differently from the GGUF")


TEMPLATES = {
    "own": None,
    "blocks": (
        "{{ bos_token }}\n{% for m in messages %}\n    {% if m.role == 'user' %}\n<u>{{ m['content'] | trim }}</u>\n"
        "    {% else %}\n{%- generation %}\n<a>{{ m.content }}</a>{{ eos_token }}\n    {% endgeneration %}\n"
        "    {% endif %}\n{% endfor %}\n{% if add_generation_prompt %}<a>{% endif %}"
    ),
    "helpers": (
        "{%- set ns = namespace(n=0) -%}{%- for m in messages -%}"
        "{%- if m.role == 'tool' -%}{%- continue -%}{%- endif -%}"
        "{%- set ns.n = ns.n + 1 -%}[{{ ns.n }}|{{ m.get('name', '?') }}|{{ m | tojson }}]"
        "{%- if m.content == 'stop' -%}{%- break -%}{%- endif -%}{%- endfor -%}"
        "{{ tools | tojson(indent=2) if tools else 'no tools' }}"
        "|{{ documents is none }}|{{ undefined_thing }}|{{ strftime_now('%%') }}|{{ unk_token }}"
    ),
    "strict": (
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}{{ m.role + ': ' + m.content }}\n{% endfor %}"
    ),
    "reasoning": (
        "{% for m in messages %}{{ m.role }}<{{ m.reasoning_content }}|{{ m.thinking }}>{{ m.content }};{% endfor %}"
    ),
}
SYSTEM = {"role": "system", "content": "You add numbers.\n"}
ASK = {"role": "user", "content": "  What is 12 + 34?  "}
REPLY = {"role": "assistant", "content": "12 + 34 = 46\n"}
CONVERSATIONS = [
    [ASK],
    [SYSTEM, ASK],
    [ASK, REPLY, {"role": "user", "content": "And  <b>é</b> & '3'? 我想 \"🦙\""}],
    [SYSTEM, ASK, REPLY],
    [{"role": "user", "content": ""}, {"role": "tool", "content": "x"}, {"role": "user", "content": "stop"}, ASK],
    [{"role": "user", "content": "a", "name": None}, {"role": "assistant", "content": "b", "reasoning": "so <think>"}],
]
TOOL = {"type": "function", "function": {"name": "add", "description": "ädd <two>", "parameters": {"type": "object"}}}


def write_chat(source: Path) -> None:
    tokenizer = load(source)
    cases = []
    for name, template in TEMPLATES.items():
        for messages in CONVERSATIONS:
            for opened in (True, False):
                tools = {"tools": [TOOL]} if name == "helpers" and opened else {}
                case = {"template": template, "messages": messages, "variables": tools, "add_generation_prompt": opened}
                try:
                    text = tokenizer.apply_chat_template(
                        messages, chat_template=template, tokenize=False, add_generation_prompt=opened, **tools
                    )
                    cases.append({**case, "text": text, "ids": tokenizer.encode(text, add_special_tokens=False)})
                except Exception as error:
                    print(name, "refused:", error)
                    cases.append({**case, "refused": True})
    (HERE / "chat.json").write_text(json.dumps(cases, ensure_ascii=True, indent=0) + "\n")
    print(len(cases), "conversations")


THOUGHT = {"role": "assistant", "content": "<think>\nTen and two.\n\n34 more.\n</think>\n\nIt is  46."}
FIELD = {"role": "assistant", "content": "It is 46.", "reasoning_content": "\nTen and two.\n"}
AGAIN = {"role": "user", "content": "And twice that? 🦙"}
FAMILY_CONVERSATIONS = [
    [ASK],
    [SYSTEM, ASK],
    [ASK, REPLY],
    [SYSTEM, ASK, REPLY, AGAIN],
    [ASK, THOUGHT],
    [ASK, THOUGHT, AGAIN],
    [SYSTEM, ASK, THOUGHT, AGAIN, THOUGHT],
    [ASK, FIELD, AGAIN, FIELD],
    [ASK, FIELD, THOUGHT],
]


def write_families(source: Path) -> None:
    tokenizer = load_as_published(source)
    cases = []
    for file in sorted((HERE / "templates").glob("*.jinja")):
        template = file.read_text("utf-8")
        for messages in FAMILY_CONVERSATIONS:
            for opened in (True, False):
                switches = [{}, {"enable_thinking": False}] if file.stem == "qwen3" and opened else [{}]
                for variables in switches:
                    render = functools.partial(
                        tokenizer.apply_chat_template, messages, chat_template=template, add_generation_prompt=opened
                    )
                    case = {"template": file.name, "messages": messages, "variables": variables}
                    case |= {"add_generation_prompt": opened, "text": render(tokenize=False, **variables)}
                    if "generation %}" in template and not opened:
                        marked = render(tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
                        case |= {"ids": list(marked["input_ids"]), "mask": list(marked["assistant_masks"])}
                    cases.append(case)
    (HERE / "families.json").write_text(json.dumps(cases, ensure_ascii=True, indent=0) + "\n")
    print(len(cases), "conversations in the templates of families")


if __name__ == "__main__":
    write_tokenizer(Path(sys.argv[1]).absolute())
    write_chat(Path(sys.argv[1]).absolute())
    write_families(Path(sys.argv[1]).absolute())
