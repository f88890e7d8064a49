"""An agent of the tests, of the standard library alone: it asks for two replies, and pays for their length.

agent.py MODE    chat, text, forget (each call begins anew), or what it does wrong
"""

import http.client
import json
import os
import sys
import time
import urllib.parse

MODE = sys.argv[1]
TASK = json.load(sys.stdin)
ADDRESS = urllib.parse.urlsplit(os.environ["OPENAI_BASE_URL"])


def post(path, **body):
    connection = http.client.HTTPConnection(ADDRESS.hostname, ADDRESS.port, timeout=290)
    headers = {"Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}", "Content-Type": "application/json"}
    connection.request("POST", ADDRESS.path + path, json.dumps({"model": "any", **body}), headers)
    answer = connection.getresponse()
    told = json.loads(answer.read())
    return answer.status, told


def ask(path, **body):
    status, told = post(path, **body)
    assert status == 200, told
    return told["choices"][0]


def talk():
    messages = list(TASK["prompt"])
    for word in ("go on", ""):
        choice = ask("/chat/completions", messages=messages, max_completion_tokens=12, temperature=0.1)
        messages += [choice["message"], {"role": "user", "content": word}]
    return messages[-4]["content"] + messages[-2]["content"]


def write():
    text, said = TASK["question"], ""
    for _ in range(2):
        choice = ask("/completions", prompt=text, max_tokens=12, stop=["e", "1"])
        text, said = f"{text}{choice['text']}e so ", said + choice["text"]
    return said


def forget():
    return "".join(ask("/completions", prompt=f"{n} {TASK['question']}", max_tokens=6)["text"] for n in range(2))


def long():
    status, told = post("/completions", prompt="x" * 200)
    assert status == 400 and told["error"]["code"] == "context_length_exceeded", told
    return write()


if MODE == "sleep":
    time.sleep(600)
if MODE == "crash":
    sys.exit("it broke")
said = {"chat": talk, "text": write, "forget": forget, "long": long, "bad": write, "silent": str}[MODE]()
print("words before the result")
print("no result" if MODE == "bad" else json.dumps({"reward": len(said), "said": said}))
