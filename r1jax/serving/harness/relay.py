"""Runs a program in the sandbox, which has no network, with an address of its own that leads to a socket of ours.

    python relay.py NAME=VALUE … PROGRAM ARGUMENT …

The program gets the variables and OPENAI_BASE_URL; the exit code is its own. This file is copied into the sandbox: it
imports the standard library only.
"""

import os
import socket
import subprocess
import sys
import threading

SOCKET = "/endpoint"


def forward(source: socket.socket, target: socket.socket) -> None:
    """Passes on what arrives at one connection to another."""
    try:
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass


def accept(listener: socket.socket) -> None:
    """Connects each client with the endpoint."""
    while True:
        client, _ = listener.accept()
        endpoint = socket.socket(socket.AF_UNIX)
        try:
            endpoint.connect(SOCKET)
        except OSError:
            client.close()
            continue
        for pair in ((client, endpoint), (endpoint, client)):
            threading.Thread(target=forward, args=pair, daemon=True).start()


def main(words: list[str]) -> int:
    """Runs the program of the command line."""
    variables = {}
    while words and "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        variables[name] = value
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    threading.Thread(target=accept, args=(listener,), daemon=True).start()
    variables["OPENAI_BASE_URL"] = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    return subprocess.run(words, env={**os.environ, **variables}).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
