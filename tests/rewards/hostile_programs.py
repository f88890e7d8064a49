"""Pairs of a hostile program and its honest twin, read from `hostile_programs.txt`."""

from pathlib import Path


def read_pairs():
    """{"STDIN" or "ASSERTS": {name: (hostile, honest)}} of the file of programs."""
    tables = {}
    for part in Path(__file__).with_suffix(".txt").read_text().split("##### ")[1:]:
        title, _, body = part.partition("\n")
        tables[title] = {}
        for piece in body.split("=== ")[1:]:
            name, _, programs = piece.partition("\n--- hostile\n")
            hostile, _, honest = programs.partition("\n--- honest\n")
            tables[title][name] = (hostile, honest.rstrip("\n"))
    return tables


STDIN, ASSERTS = read_pairs().values()
