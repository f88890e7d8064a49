"""The client against a fake OpenAI-compatible server that answers, stalls, drips, errs and talks garbage."""

import http.server
import json
import threading
import time

import pytest

from r1jax.core.errors import UserError
from r1jax.rewards import get_judge_reward
from r1jax.rewards.endpoint import Endpoint


class Handler(http.server.BaseHTTPRequestHandler):
    """Does what the last message's first word says; the rest of its line is the argument."""

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append({"path": self.path, "key": self.headers.get("Authorization"), **asked})
        word, _, rest = asked["messages"][-1]["content"].partition("\n")[0].partition(" ")
        getattr(self, f"do_{word}")(rest)

    def send(self, body, status=200, **headers):
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)

    def do_say(self, text):
        self.send(json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode())

    def do_fail(self, rest):
        status, _, times = rest.partition(" ")
        if len([row for row in self.server.asked if row["messages"][-1]["content"].startswith(f"fail {rest}")]) <= int(
            times
        ):
            self.send(b"busy", int(status), Retry_After="0")
        else:
            self.do_say("at last")

    def do_stall(self, rest):
        self.server.released.wait(60)

    def do_drip(self, rest):
        self.send_response(200)
        self.send_header("Content-Length", "100000")
        self.end_headers()
        while not self.server.released.wait(0.1):
            try:
                self.wfile.write(b" ")
                self.wfile.flush()
            except OSError:
                return

    def do_garbage(self, kind):
        self.send(GARBAGE[kind])

    def do_flood(self, rest):
        try:
            self.send(b" " * (5 << 20))
        except OSError:
            pass

    def do_hangup(self, rest):
        self.connection.close()

    def do_noise(self, rest):
        self.wfile.write(b"\x00\xff not http at all\r\n\r\n")

    def log_message(self, *args):
        pass


GARBAGE = {
    "empty": b"",
    "html": b"<html>502</html>",
    "list": b"[1, 2]",
    "error": b'{"error": {"message": "no"}}',
    "null": b'{"choices": [{"message": {"content": null}}]}',
    "none": b'{"choices": []}',
    "number": b'{"choices": [{"message": {"content": 7}}]}',
    "bytes": b"\xff\xfe\x00",
    "deep": b"[" * 100_000,
}


@pytest.fixture
def server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.released, server.daemon_threads = [], threading.Event(), True
    server.handle_error = lambda *_: None
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    thread.join()
    server.server_close()


def make(server, **arguments):
    settings = {"timeout_seconds": 20.0, "retries": 1, "pause_seconds": 0.01} | arguments
    return Endpoint(f"http://127.0.0.1:{server.server_address[1]}/v1/", "judge", **settings)


def test_refusals_end_the_run_only_before_the_first_answer(server):
    for status in (308, 401, 403, 404, 405):
        with pytest.raises(
            UserError, match=f"rejects model 'judge', status {status}.*check endpoint, model and the key"
        ):
            make(server)([f"fail {status} 9"])
        assert make(server, parallel=1)(["say yes", f"fail {status} 9", "say more"]) == ["yes", None, "more"]
    assert (
        make(server, parallel=1)(["fail 400 99"] * 3 + ["say yes"] + ["fail 400 99"] * 30)
        == [None] * 3 + ["yes"] + [None] * 30
    )
    with pytest.raises(UserError, match="status 400"):
        make(server, parallel=1)(["fail 400 99"] * 30)


def test_a_key_from_a_file_may_end_in_a_new_line(server, monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret\n")
    assert make(server, key_variable="MY_KEY")(["say yes"]) == ["yes"]
    assert server.asked[-1]["key"] == "Bearer secret"


def test_replies_come_in_order_with_what_was_asked(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "say chat"}]
    texts = [f"say {number} ü" for number in range(10)]
    assert make(server, temperature=0.5)([*texts, chat]) == [f"{number} ü" for number in range(10)] + ["chat"]
    first = next(row for row in server.asked if row["messages"][-1]["content"] == "say 0 ü")
    assert first == {
        "path": "/v1/chat/completions",
        "key": "Bearer secret",
        "model": "judge",
        "messages": [{"role": "user", "content": "say 0 ü"}],
        "max_tokens": 1024,
        "temperature": 0.5,
    }
    assert chat in [row["messages"] for row in server.asked]
    assert make(server)([]) == []


def test_what_may_pass_is_tried_again(server):
    assert make(server)(["fail 500 1", "fail 429 1", "fail 503 2"]) == ["at last", "at last", None]
    assert len(server.asked) == 6
    assert make(server)(["fail 400 9"]) == [None]
    assert len(server.asked) == 7


@pytest.mark.parametrize("way", ["stall", "drip"])
def test_a_request_ends_at_its_deadline(server, way):
    begin = time.monotonic()
    assert make(server, timeout_seconds=0.3, retries=0)([way, "say yes"]) == [None, "yes"]
    assert time.monotonic() - begin < 30  # far less than the server's minute


@pytest.mark.parametrize("prompt", [*(f"garbage {kind}" for kind in GARBAGE), "flood", "hangup", "noise"])
def test_garbage_is_no_reply(server, prompt):
    assert make(server, retries=0)([prompt, "say yes"]) == [None, "yes"]


def test_a_server_that_is_not_there_gives_no_reply(server):
    port = server.server_address[1]
    endpoint = make(server)
    server.shutdown()
    server.server_close()
    assert endpoint(["say yes"]) == [None], port


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_the_config_must_mend_is_one_clear_line(server, status):
    with pytest.raises(UserError, match=f"rejects model 'judge', status {status}") as caught:
        make(server)([f"fail {status} 9"])
    assert "\n" not in str(caught.value)


def test_the_judge_reward_by_an_endpoint(server):
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    asked = ["say Score: 7", "garbage html", "say fine", "stall", "fail 500 9", "say Score: 3/10"]
    arguments = {
        "template": "{question}\n{response}",
        "endpoint": url,
        "model": "judge",
        "timeout_seconds": 0.5,
        "retries": 0,
    }
    reward = get_judge_reward(**arguments)
    assert reward(["x"] * 6, prompts=asked) == [0.7, None, None, None, None, 0.3]
    assert reward.take_metrics() == {"judgements": 6.0, "readable": pytest.approx(1 / 3)}
    reward = get_judge_reward(**arguments, unreadable=0.0)
    assert reward(["x"] * 6, prompts=asked) == [0.7, 0.0, 0.0, 0.0, 0.0, 0.3]


SECRET = "sk-SECRET-123"


def test_a_key_is_stripped_and_never_shown(server, monkeypatch, caplog):
    monkeypatch.setenv("MY_KEY", f" {SECRET}\n")
    assert make(server, key_variable="MY_KEY")(["say yes"]) == ["yes"]
    assert server.asked[-1]["key"] == f"Bearer {SECRET}"
    for key in (f"{SECRET}\nX-Other: 1", f"{SECRET} \x7f", f"{SECRET}\N{SNOWMAN}", f"two {SECRET}"):
        monkeypatch.setenv("MY_KEY", key)
        with pytest.raises(UserError, match="the key in the variable MY_KEY must be one word") as caught:
            make(server, key_variable="MY_KEY")(["say yes"])
        assert "SECRET" not in str(caught.value) + caplog.text
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("http://localhost:8000/v1", True),
        ("http://127.0.0.9/v1", True),
        ("http://[::1]:80/v1", True),
        ("https://example.com/v1", True),
        ("http://example.com/v1", False),
        ("http://10.0.0.5:8000/v1", False),
        ("http://localhost.example.com/v1", False),
        ("http://127.0.0.1.nip.io/v1", False),
    ],
)
def test_a_key_goes_only_to_https_and_this_machine(url, sent, monkeypatch, caplog):
    monkeypatch.setenv("MY_KEY", SECRET)
    endpoint = Endpoint(url, "judge", key_variable="MY_KEY")
    assert [endpoint._find_key(), endpoint._find_key()] == [SECRET if sent else ""] * 2
    assert len(caplog.records) == (not sent) and SECRET not in caplog.text + repr(endpoint)


@pytest.mark.parametrize(
    "url",
    [
        f"http://user:{SECRET}@localhost/v1",
        f"https://{SECRET}@host/v1",
        f"https://:{SECRET}@host",
        f"https://host/v1?api_key={SECRET}",
        f"https://host/v1#{SECRET}",
    ],
)
def test_an_address_that_holds_a_secret_is_refused_without_showing_it(url):
    with pytest.raises(UserError, match="endpoint must") as caught:
        get_judge_reward(endpoint=url, model="judge")
    assert SECRET not in str(caught.value)


def test_the_keys_variable_is_named_in_the_judges_arguments(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "another")
    monkeypatch.setenv("JUDGE_KEY", SECRET)
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    reward = get_judge_reward(
        endpoint=url, model="judge", key_variable="JUDGE_KEY", template="say {question}{response}"
    )
    reward(["b"], prompts=["a"])
    assert {row["key"] for row in server.asked} == {f"Bearer {SECRET}"}
