"""An agent that answers a sum or product with a calculator, written for the `openai` client and nothing of r1jax.

It runs against any server of completions: `config.harness` of configs/grpo_harness.py starts it for each trajectory,
with OPENAI_BASE_URL and OPENAI_API_KEY in its environment and a task in JSON on stdin. Its last line is the result.

    echo '{"question": "What is 23 * 58?", "solution": "1334"}' | python configs/programs/calculator_agent.py
"""

import json
import operator
import os
import re
import sys

import openai

PROMPT = """Answer with a number. For arithmetic write <call>calculate A + B</call> and read the result.

Question: What is 257 + 468?
Reply: <call>calculate 257 + 468</call><result>725</result> 725

Question: {question}
Reply:"""
SIGNS = {"+": operator.add, "-": operator.sub, "*": operator.mul}
MOST_CALLS = 2


def calculate(text: str) -> str:
    """The value of `A + B`, `A - B` or `A * B`, or an error in words."""
    found = re.fullmatch(r"\s*(-?\d{1,9})\s*([-+*])\s*(-?\d{1,9})\s*", text)
    return str(SIGNS[found[2]](int(found[1]), int(found[3]))) if found else "error: A + B is expected"


def answer(question: str) -> tuple[str, int]:
    """The reply to a question, and how often the calculator was used."""
    client = openai.OpenAI()
    text, calls = PROMPT.format(question=question), 0
    begin = len(text)
    while True:
        reply = client.completions.create(
            model=os.environ.get("OPENAI_MODEL", "policy"), prompt=text, max_tokens=20, stop=["</call>", "\n"]
        )
        text += reply.choices[0].text
        call = re.search(r"<call>calculate ([^<]*)$", text[begin:])
        if call is None or calls == MOST_CALLS:
            return text[begin:], calls
        calls += 1
        text += f"</call><result>{calculate(call[1])}</result>"


def main() -> None:
    """Answers the task on stdin; prints its result."""
    task = json.load(sys.stdin)
    reply, calls = answer(task["question"])
    numbers = re.findall(r"-?\d+", reply)
    print(json.dumps({"reward": float(numbers[-1:] == [task["solution"]]), "calls": calls, "reply": reply}))


if __name__ == "__main__":
    main()
