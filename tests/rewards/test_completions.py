from r1jax.rewards.completions import read_text, read_texts


def test_strings_and_messages():
    parts = [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}]
    assert read_texts(["x", [{"role": "assistant", "content": "y"}], [{"role": "assistant", "content": parts}]]) == [
        "x",
        "y",
        "ab",
    ]
    assert read_text([]) == read_text([{"role": "assistant", "content": None}]) == ""
