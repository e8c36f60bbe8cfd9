"""Talks with a model: one prompt, or a conversation line by line.

    python -m tools.sample --checkpoint runs/r1_zero/r1_zero --prompt 'User: 3 + 4 = ? Assistant:'
    python -m tools.sample --checkpoint smollm2 --chat
    python -m tools.sample --checkpoint DeepSeek-R1-Distill-Qwen-1.5B --chat --thinking-budget 2000

The checkpoint is the folder of a finished stage or of a released (Hugging Face) model, a .gguf file, or the word
smollm2. Without --chat, the text of --prompt goes on. With --chat it is one question, or, without --prompt, every line
of the standard input is, until its end or `/exit`; `/new` forgets what was said. Thinking is shown apart from the
answer, and forgotten in the next turn, as in R1's chat format. Sampling defaults: the checkpoint's
generation_config.json, else R1's temperature 0.6 and top-p 0.95.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Iterable, Sequence
from typing import TextIO

import jax
import rich.console
from absl import logging
from jax.sharding import Mesh

from r1jax.data.chat import FORMATS, OWN, Chat
from r1jax.data.tokenizer import HuggingFaceTokenizer, SentencePieceTokenizer, Tokenizer
from r1jax.data.tokenizer_files import read_json
from r1jax.model.config import ModelConfig
from r1jax.model.mesh_check import undivided
from r1jax.sampling.decode import SamplingConfig
from r1jax.sampling.generation_config import GenerationDefaults, read_generation_defaults
from r1jax.sampling.speaker import Conversation, Said, Speaker
from r1jax.sharding import MeshConfig, make_mesh
from r1jax.stages.policy import PolicySource, describe_source, load_policy
from r1jax.weights.gguf import is_gguf
from tools.command_line import USER_ERRORS, complain

# What a model says must not steer the terminal: control characters but tab and newline are shown as unknown.
HARMLESS = dict.fromkeys({*range(0x20), *range(0x7F, 0xA0)} - {ord("\t"), ord("\n")}, "\ufffd")
STYLES = {"thinking": "dim", "answer": None, "note": "yellow"}
CHUNK = 256  # decode steps between two growths of the cache: each size of it is a program to compile


def main(arguments: Sequence[str] | None = None, lines: TextIO = sys.stdin) -> int:
    """Parses the command line and talks. Returns the exit status."""
    options = parse_arguments(arguments)
    logging.set_verbosity(logging.FATAL)  # orbax tells of every file it opens
    try:
        talk(options, lines, Screen(rich.console.Console(highlight=False, soft_wrap=True)))
    except KeyboardInterrupt:
        print()  # the next prompt of the shell begins a line
        return 130
    except USER_ERRORS as error:
        complain(error)
        return 1
    return 0


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="folder, .gguf file, or smollm2")
    parser.add_argument("--chat", action="store_true", help="ask questions, in the checkpoint's chat format")
    parser.add_argument("--prompt", help="text to go on from, or the question")
    parser.add_argument("--format", choices=[*FORMATS, OWN], help="chat format; default: the checkpoint's own, else r1")
    parser.add_argument("--system", help="system message of the chat")
    parser.add_argument("--temperature", type=float, help="0: always the most probable token")
    parser.add_argument("--top-p", type=float)
    parser.add_argument("--max-new-tokens", type=int, default=1024, help="of thinking and answer together")
    parser.add_argument("--thinking-budget", type=int, help="tokens of thinking, after which the answer is asked for")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if not options.chat:
        if options.prompt is None:
            parser.error("without --chat, --prompt is required")
        for name in ("format", "system", "thinking_budget"):
            if getattr(options, name) is not None:
                parser.error(f"--{name.replace('_', '-')} needs --chat")
    return options


def talk(options: argparse.Namespace, lines: TextIO, screen: Screen) -> None:
    """Loads the policy and answers one prompt or all lines. Raises one of USER_ERRORS for what cannot be done."""
    source = find_source(options.checkpoint)
    folder = pathlib.Path(source.path)
    defaults = read_generation_defaults(folder) if folder.is_dir() and source.path else GenerationDefaults()
    if defaults.not_applied:
        screen.show([Said("note", f"generation_config.json also says {', '.join(defaults.not_applied)}: not applied")])
    mesh = mesh_for_one_row(describe_source(source, pathlib.Path())[0])
    policy = load_policy(source, pathlib.Path(), mesh)
    chat = make_chat(policy.tokenizer, options.format) if options.chat else None
    stops = (policy.tokenizer.eos_id, *defaults.stop_tokens, *(chat.stop_tokens if chat else ()))
    config = sampling_config(options, defaults, stops)
    speaker = Speaker(policy.model, policy.params, policy.tokenizer, config, mesh, options.thinking_budget)
    key = jax.random.key(options.seed)
    if chat is not None:
        conversation = Conversation(chat, speaker, key, options.system)
        if options.prompt is None:
            converse(conversation, lines, screen)
        else:
            screen.show(conversation.ask(options.prompt))
        return
    bos = policy.tokenizer.bos_id
    prompt = [*([] if bos is None else [bos]), *policy.tokenizer.encode(options.prompt)]
    screen.show([Said("answer", options.prompt)], end="")
    screen.show(speaker.say(prompt, key, plain=True))


def mesh_for_one_row(model: ModelConfig) -> Mesh:
    """An answer is one row, which only `tensor` can split: over as many of the devices as divide the model."""
    devices = jax.devices()
    divide = [size for size in range(1, len(devices) + 1) if not undivided(model, {"tensor": size})]
    return make_mesh(MeshConfig(data=1, tensor=divide[-1]), devices[: divide[-1]])


def find_source(checkpoint: str) -> PolicySource:
    """What `--checkpoint` means. Raises ValueError, with what was looked for, if it is nothing that can be loaded."""
    path = pathlib.Path(checkpoint).resolve()
    if checkpoint == "smollm2":
        return PolicySource("smollm2")
    if is_gguf(path):
        return PolicySource("gguf", str(path))
    if (path / "model.json").is_file():
        return PolicySource("stage", str(path))
    if (path / "config.json").is_file():
        # A run's own config.json has the name of its stage; that of a released model says of what type it is.
        if "stage" not in read_json(path / "config.json"):
            return PolicySource("huggingface", str(path))
        stages = sorted(file.parent.name for file in path.glob("*/model.json"))
        hint = f"; its stages with one: {', '.join(stages)}" if stages else ""
        raise ValueError(f"--checkpoint: {path} is the folder of a run and holds no model itself{hint}")
    raise ValueError(
        f"--checkpoint: {path} is neither a GGUF file, nor a folder with a model.json (of a stage) or a config.json "
        "(of a released model)"
    )


def make_chat(tokenizer: Tokenizer, chosen: str | None) -> Chat:
    """The chat in the chosen format; by default the checkpoint's own, and R1's if it has none."""
    assert isinstance(tokenizer, HuggingFaceTokenizer | SentencePieceTokenizer)  # a policy has no other
    has_own = isinstance(tokenizer, HuggingFaceTokenizer) and tokenizer.chat_template is not None
    return Chat(tokenizer, chosen or (OWN if has_own else "r1"))


def sampling_config(
    options: argparse.Namespace, defaults: GenerationDefaults, stop_tokens: Iterable[int]
) -> SamplingConfig:
    """How answers are drawn: what the user says, else the defaults."""
    return SamplingConfig(
        options.max_new_tokens,
        temperature=defaults.temperature if options.temperature is None else options.temperature,
        top_p=defaults.top_p if options.top_p is None else options.top_p,
        top_k=defaults.top_k,
        stop_tokens=tuple(dict.fromkeys(stop_tokens)),
        chunk=CHUNK,
        regroup=1,  # every token is shown when it is drawn
    )


def converse(conversation: Conversation, lines: TextIO, screen: Screen) -> None:
    """Asks every line until the end of `lines` or `/exit`; of what cannot be asked one line says why."""
    while True:
        if lines.isatty():
            screen.invite()
        line = lines.readline()
        question = line.strip()
        if not line or question == "/exit":
            return
        if question == "/new":
            conversation.forget()
        elif question:
            try:
                screen.show(conversation.ask(question))
            except ValueError as error:
                complain(error)


class Screen:
    """Shows what is said as it comes: thinking dim and under a heading, notes on lines of their own."""

    def __init__(self, console: rich.console.Console) -> None:
        self._console = console

    def invite(self) -> None:
        """Asks for a line."""
        self._console.print("> ", end="", style="bold")

    def show(self, pieces: Iterable[Said], end: str = "\n") -> None:
        """Prints all pieces and then `end`."""
        kind: str = "answer"
        for said in pieces:
            text = said.text if said.kind == kind else said.text.lstrip("\n")
            if text and said.kind != kind:
                kind = said.kind
                self._write({"thinking": "thinking\n", "answer": "\nanswer\n", "note": "\n"}[kind], "bold dim")
            self._write(text, STYLES[kind])
        self._write(end, None)

    def _write(self, text: str, style: str | None) -> None:
        self._console.print(
            text.translate(HARMLESS), end="", style=style, markup=False, highlight=False, soft_wrap=True
        )


def keep_compiled_programs() -> None:
    """Lets another call of the tool find the programs of this one, as r1jax.train does."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path.home() / ".cache" / "r1jax" / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


if __name__ == "__main__":
    keep_compiled_programs()
    sys.exit(main())
