r"""A conversation with a model in the terminal.

  python -m r1jax.chat --model=runs/grpo_zero
  python -m r1jax.chat --model=models/SmolLM2-135M-Instruct.Q4_1.gguf --prompt="Why is the sky blue?"

--model is a Hugging Face folder, a .gguf file, a hub name (org/name), or the workdir of a run. A workdir, and a folder
exported from one, carry how the run asked its model; that template and sampling are used unless flags say otherwise.
A template that holds one question (R1-Zero's) gets each message alone.

Replies appear as they are sampled, reasoning dimmed; Ctrl-C stops a reply, Ctrl-D ends. /help lists the commands. With
--prompt one message is answered and the command ends.
"""

import dataclasses
import importlib
import logging
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from absl import flags

from r1jax.core.commands import run_command
from r1jax.core.errors import UserError
from r1jax.generate import choose_sampling, define_device_flags, define_run_flags

if TYPE_CHECKING:
    from r1jax.runs.conversation import Conversation, Reply

log = logging.getLogger("r1jax.chat")  # not __main__, whose messages are not shown

REPLY = {"temperature": 0.7, "top_p": 0.95, "max_new_tokens": 1024}  # where neither flags nor a run say otherwise
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "max_new_tokens", "seed")


def main(argv: Sequence[str]) -> int:
    """Runs the command line `argv` (program name first) and returns the exit code: 0, 2 for a user's mistake, 130."""
    values = define_flags()
    return run_command(__doc__, values, argv[1:], lambda _: chat(values))


def define_flags() -> flags.FlagValues:
    """The flags of this command, separate from absl's global ones, so that importing this module defines none."""
    values = flags.FlagValues()
    string, integer, number = flags.DEFINE_string, flags.DEFINE_integer, flags.DEFINE_float
    define_run_flags(values, REPLY, "a reply")
    string("prompt", None, "One message to answer, in place of a conversation.", flag_values=values)
    string("system", "", "System message. Default: that of the chat template, if any.", flag_values=values)
    integer("top_k", 0, "Sample from the k most likely tokens. Default: the run's, or 0, all.", flag_values=values)
    text = "Sample from tokens with at least this share of the likeliest one's probability. Default: the run's, or 0."
    number("min_p", 0.0, text, flag_values=values)
    integer("samples", 1, "Replies to each message; the first is kept. Default: 1.", flag_values=values)
    integer("seed", 0, "Sampling seed. Default: 0.", flag_values=values)
    define_device_flags(values)
    return values


def chat(values: flags.FlagValues) -> None:
    """Talks by the flags; jax is imported only after they are checked."""
    if not values.model:
        raise UserError("--model is missing (see --help)")
    from r1jax.eval.prompting import RUN, choose_prompting, name_prompting
    from r1jax.runs.conversation import Conversation, choose_turns
    from r1jax.runs.generate import Generation
    from r1jax.runs.sampler import load_sampler, place_sampler

    is_named = values.template not in (None, RUN)
    find = name_prompting if is_named else choose_prompting
    asked = find(values.model, values.template)
    config = Generation(num_samples=values.samples, **choose_sampling(values, SAMPLING, asked))
    with place_sampler(values.mesh):
        log.info("loading %s", values.model)
        sampler = load_sampler(values.model, dtype=values.dtype)
        if sampler.tokenizer is None:
            raise UserError(f"{values.model} has no tokenizer, which a conversation needs")
        prompting = choose_turns(sampler, asked)
        talk = Conversation(sampler, prompting, config, system=values.system)
        if asked and not is_named:
            log.info("asking as the run did: %s (another --template asks without)", asked.describe())
        if not prompting.takes_turns and values.system:
            raise UserError("--system needs a chat template; this model's template holds one question")
        log.info("preparing the programs (the first start on a machine compiles them)")
        talk.warm_up()
        if values.prompt is None:
            Terminal(talk).run(values.model)
        else:  # a pipe gets the reply alone
            Terminal(talk, tells_facts=sys.stdout.isatty()).answer(values.prompt)


class Command(NamedTuple):
    """A line that begins with a slash: form shown by /help, effect, and the method of `Terminal` that takes the rest
    of the line.
    """

    form: str
    effect: str
    act: Callable[["Terminal", str], None]


class Terminal:
    """Reads lines, obeys commands, and shows replies as they arrive, with their length and speed if `tells_facts`."""

    def __init__(self, talk: "Conversation", *, tells_facts: bool = True):
        self.talk, self.tells_facts = talk, tells_facts
        self.is_over = False

    def run(self, name: str) -> None:
        """Lines of stdin until it ends or /quit."""
        is_terminal = sys.stdin.isatty()
        if is_terminal:
            importlib.import_module("readline")  # arrows edit the line and bring back earlier ones
        once = "" if self.talk.prompting.takes_turns else "; its template holds one question, so each is asked alone"
        self._say(f"{name}{once}. /help lists commands, Ctrl-D ends.")
        while not self.is_over:
            try:
                line = input("> " if is_terminal else "").strip()
            except EOFError:
                return
            except KeyboardInterrupt:
                self._say("Ctrl-D ends")
                continue
            if line:
                self.take(line)

    def take(self, line: str) -> None:
        """Obeys a command, or answers a message; a mistake is told and the conversation goes on."""
        name, _, rest = line.partition(" ")
        try:
            if not line.startswith("/"):
                self.answer(line)
            elif name in COMMANDS:
                COMMANDS[name].act(self, rest.strip())
            else:
                raise UserError(f"no command {name}; /help lists them")
        except UserError as error:
            self._say(f"error: {error}")

    def answer(self, question: str) -> None:
        """Shows the replies to a message and keeps the first."""
        talk, kept = self.talk, None
        talk.ask(question)
        try:
            for number in range(talk.config.num_samples):
                if talk.config.num_samples > 1:
                    self._say(f"sample {number + 1} of {talk.config.num_samples}")
                reply = talk.reply(number)
                kept = kept or reply
                self._show(reply)
        except KeyboardInterrupt:
            self._put("\n")
            self._say("stopped")
        except UserError:
            talk.messages.pop()
            raise
        if kept is not None:
            talk.keep(kept.text)

    def _show(self, reply: "Reply") -> None:
        for piece, is_thought in reply:
            self._put(piece, "dim" if is_thought else "")
        self._put("\n")
        pace = (len(reply.tokens) - 1) / max(reply.seconds - reply.first_token_seconds, 1e-9)
        facts = [f"{len(reply.tokens)} tokens", f"the first after {reply.first_token_seconds:.1f} s"]
        if len(reply.tokens) > 1:
            facts.append(f"then {pace:.0f} tokens/s")
        if reply.finish_reason == "length":
            facts.append(f"cut off at the limit of {len(reply.tokens)}")
        if self.tells_facts:
            self._say(", ".join(facts))

    def set(self, **changes: Any) -> None:
        """Changes the sampling of the next replies."""
        self.talk.config = dataclasses.replace(self.talk.config, **changes)
        told = [f"{key} {value:g}" for key, value in changes.items()]
        self._say(", ".join(told))

    def set_system(self, text: str) -> None:
        """Sets or removes the system message."""
        if not self.talk.prompting.takes_turns:
            raise UserError("this model's template holds one question and no system message")
        self.talk.system = text
        self._say(f"system message: {text}" if text else "no system message of yours")

    def reset(self) -> None:
        """Begins anew."""
        self.talk.reset()
        self._say("a new conversation")

    def help(self) -> None:
        """Lists the commands."""
        width = max(len(command.form) for command in COMMANDS.values())
        for command in COMMANDS.values():
            self._say(f"{command.form.ljust(width)}  {command.effect}")

    def _put(self, text: str, style: str = "") -> None:
        from r1jax.core.console import show_piece

        show_piece(text, style)

    def _say(self, text: str) -> None:
        self._put(f"{text}\n", "dim")


def read_number(text: str, kind: type) -> float:
    """The number behind a command. Raises UserError for anything else."""
    try:
        return kind(text)
    except ValueError:
        rule = "a whole number" if kind is int else "a number"
        raise UserError(f"{rule} must follow the command, got {text!r}") from None


COMMANDS = {
    "/temperature": Command(
        "/temperature T", "sampling temperature; 0 is greedy", lambda t, x: t.set(temperature=read_number(x, float))
    ),
    "/top_p": Command("/top_p P", "probability mass to sample from", lambda t, x: t.set(top_p=read_number(x, float))),
    "/tokens": Command("/tokens N", "most tokens of a reply", lambda t, x: t.set(max_new_tokens=read_number(x, int))),
    "/samples": Command(
        "/samples N", "replies to each message; the first is kept", lambda t, x: t.set(num_samples=read_number(x, int))
    ),
    "/seed": Command("/seed N", "sampling seed", lambda t, x: t.set(seed=read_number(x, int))),
    "/system": Command("/system TEXT", "system message; without TEXT none", lambda t, x: t.set_system(x)),
    "/reset": Command("/reset", "forget the conversation", lambda t, _: t.reset()),
    "/help": Command("/help", "this list", lambda t, _: t.help()),
    "/quit": Command("/quit", "end, as Ctrl-D does", lambda t, _: setattr(t, "is_over", True)),
}


if __name__ == "__main__":
    sys.exit(main(sys.argv))
