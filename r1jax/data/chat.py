"""Chats: messages become the text of a prompt, and what a model says becomes its thinking and its answer.

A chat template is a jinja2 text, ours or a checkpoint's own. The result contains the names of control tokens, which
the tokenizer turns into those tokens; so nothing that a user wrote may contain one (`check_contents`).
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

from r1jax.data.tokenizer import HuggingFaceTokenizer, SentencePieceTokenizer

ROLES = ("system", "user", "assistant")
THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
OWN = "own"  # the format's name where the checkpoint brings its template


@dataclasses.dataclass(frozen=True)
class Message:
    """What one side said."""

    role: str  # one of ROLES
    content: str

    def __post_init__(self) -> None:
        """Raises ValueError for a role that nobody plays."""
        if self.role not in ROLES:
            raise ValueError(f"role {self.role!r} is not one of {', '.join(ROLES)}")


@dataclasses.dataclass(frozen=True)
class ChatFormat:
    """A chat format of our own: its template, the tokens it needs, and those of them that end an answer."""

    template: str
    markers: tuple[str, ...]  # each must be one token
    ends: tuple[str, ...] = ()  # apart from eos


FORMATS: dict[str, ChatFormat] = {
    # DeepSeek-R1: nothing between the parts; of earlier answers what follows the thinking; a new one begins with it.
    "r1": ChatFormat(
        "{{ bos_token }}{% for message in messages %}"
        "{% if message.role == 'user' %}<｜User｜>{{ message.content }}"
        "{% elif message.role == 'assistant' %}"
        "<｜Assistant｜>{{ message.content.split('</think>')[-1] }}{{ eos_token }}"
        "{% elif loop.first %}{{ message.content }}"
        "{% else %}{{ raise_exception('a system message must be the first') }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}",
        markers=("<｜User｜>", "<｜Assistant｜>", THINK_OPEN, THINK_CLOSE),
    ),
    # Qwen's ChatML. Its default system prompt is left to the checkpoint's own template.
    "qwen": ChatFormat(
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        markers=("<|im_start|>", "<|im_end|>"),
        ends=("<|im_end|>",),
    ),
    # Llama 3, without the dates that the released template adds to the system message.
    "llama3": ChatFormat(
        "{{ bos_token }}{% for message in messages %}"
        "{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content | trim + '<|eot_id|>' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        markers=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        ends=("<|eot_id|>",),
    ),
}


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`: in transformers it marks what the assistant wrote; the text is the same without."""

    tags = frozenset({"generation"})  # type: ignore[assignment]  # jinja annotates a set, and only looks into it

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)  # jinja's own would escape <, > and & for HTML


def _environment() -> jinja2.Environment:
    """As transformers renders chat templates; sandboxed, since a template is a program from a checkpoint."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment


# What a template can raise when it does something wrong with its values.
_RENDERING_ERRORS = (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError)


class ChatTemplate:
    """A compiled chat template."""

    def __init__(
        self, text: str, bos_token: str | None = None, eos_token: str | None = None, origin: str = "the chat template"
    ) -> None:
        """Compiles.

        Args:
          text: the jinja2 template.
          bos_token: the text that the template finds under this name; None: it finds nothing.
          eos_token: likewise.
          origin: what error messages call the template.

        Raises:
          ValueError: a syntax error, with its line.
        """
        self.text = text
        self.origin = origin
        named = {"bos_token": bos_token, "eos_token": eos_token}
        self._named = {name: token for name, token in named.items() if token is not None}
        try:
            self._template = _environment().from_string(text)
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(f"{origin} has a syntax error in line {error.lineno}: {error.message}") from error

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The text of a chat, up to where the assistant's next answer begins if `add_generation_prompt`.

        Raises:
          ValueError: the template refuses the messages, or fails.
        """
        try:
            return self._template.render(
                messages=[dataclasses.asdict(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._named,
            )
        except _RENDERING_ERRORS as error:
            raise ValueError(f"{self.origin} refuses these messages: {error}") from error


def check_contents(messages: Sequence[Message], control_tokens: Collection[str]) -> None:
    """That no system or user message contains a control token: its text would become the token, and forge a turn.

    What the assistant said is its own: its thinking tags stand there by right.

    Raises:
      ValueError: names the message, its role and the token.
    """
    for number, message in enumerate(messages, start=1):
        found = [(message.content.index(token), token) for token in control_tokens if token in message.content]
        if found and message.role != "assistant":
            raise ValueError(
                f"message {number} ({message.role}) contains {min(found)[1]!r}, which the tokenizer would read as a "
                "control token: write it differently"
            )


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A chat up to where the assistant's answer begins."""

    text: str
    tokens: tuple[int, ...]
    thinking: bool  # the prompt ends inside the thinking that it has opened


class Chat:
    """A chat template and a tokenizer that fit each other."""

    def __init__(self, tokenizer: HuggingFaceTokenizer | SentencePieceTokenizer, format_name: str = OWN) -> None:
        """Finds and compiles the template.

        Args:
          tokenizer: must have each of the format's markers as one token.
          format_name: a key of FORMATS, or 'own' for the checkpoint's own template.

        Raises:
          ValueError: unknown format; the checkpoint has no template; markers that are not tokens (all are named).
        """
        self._tokenizer = tokenizer
        names = (tokenizer.bos_token, tokenizer.eos_token)
        if format_name == OWN:
            text = tokenizer.chat_template if isinstance(tokenizer, HuggingFaceTokenizer) else None
            if text is None:
                raise ValueError(f"the checkpoint has no chat template of its own: choose one of {', '.join(FORMATS)}")
            self.template = ChatTemplate(text, *names, origin="the checkpoint's chat template")
            self.stop_tokens: tuple[int, ...] = (tokenizer.eos_id,)
        elif format_name in FORMATS:
            chosen = FORMATS[format_name]
            missing = [marker for marker in chosen.markers if len(tokenizer.encode(marker)) != 1]
            if missing:
                raise ValueError(f"the chat format {format_name} needs {', '.join(missing)} as single tokens")
            self.template = ChatTemplate(chosen.template, *names, origin=f"the chat format {format_name}")
            self.stop_tokens = (tokenizer.eos_id, *(tokenizer.encode(end)[0] for end in chosen.ends))
        else:
            raise ValueError(f"chat format {format_name!r} is not one of {', '.join([*FORMATS, OWN])}")
        self.control_tokens = self._control_tokens()

    def prompt(self, messages: Sequence[Message]) -> Prompt:
        """The prompt for the assistant's next answer. ValueError: a message is refused (`check_contents`, `render`)."""
        check_contents(messages, self.control_tokens)
        text = self.template.render(messages)
        return Prompt(text, tuple(self.encode(text)), text.rstrip().endswith(THINK_OPEN))

    def _control_tokens(self) -> tuple[str, ...]:
        """Special tokens, and what the template writes of those that are not marked special (R1's `<｜User｜>`)."""
        if isinstance(self._tokenizer, HuggingFaceTokenizer):
            written = [token for token in self._tokenizer.added_tokens if token.strip() and token in self.template.text]
            return tuple(dict.fromkeys([*self._tokenizer.control_tokens, *written]))
        markers = [m for known in FORMATS.values() for m in known.markers if m in self.template.text]
        return (*self._names(), *markers)

    def _names(self) -> Mapping[str, int]:
        names = {self._tokenizer.bos_token: self._tokenizer.bos_id, self._tokenizer.eos_token: self._tokenizer.eos_id}
        return {name: token for name, token in names.items() if name is not None and token is not None}

    def encode(self, text: str) -> list[int]:
        """The tokens of a rendered text or a part of one: the names of control tokens in it become those tokens."""
        if isinstance(self._tokenizer, HuggingFaceTokenizer):
            return self._tokenizer.encode(text)  # finds control tokens by itself
        names = self._names()
        parts = re.split(f"({'|'.join(map(re.escape, names))})", text)
        return [i for part in parts for i in ([names[part]] if part in names else self._tokenizer.encode(part))]


Part = Literal["thinking", "answer"]


class ThinkingSplitter:
    """Tells thinking from answer while the text comes in: all parts joined are the text without the two tags.

    Thinking begins where the prompt has opened it, or with a `<think>` that nothing but white space stands before (the
    white space counts as thinking). It ends with the first `</think>`. Tags anywhere else are text.
    """

    def __init__(self, opened: bool) -> None:
        self._state: Literal["start", "thinking", "answer"] = "thinking" if opened else "start"
        self._held = ""  # what may be the beginning of a tag
        self.closed = False  # a thought has ended

    @property
    def thinking(self) -> bool:
        """Whether the text is inside a thought."""
        return self._state == "thinking"

    def feed(self, piece: str) -> list[tuple[Part, str]]:
        """The parts that are certain now, none of them empty."""
        text, self._held = self._held + piece, ""
        if self._state == "start":
            lead = text.lstrip()
            if len(lead) < len(THINK_OPEN) and THINK_OPEN.startswith(lead):
                self._held = text
                return []
            self._state = "thinking" if lead.startswith(THINK_OPEN) else "answer"
            text = text.replace(THINK_OPEN, "", 1) if self.thinking else text
        if self._state == "answer":
            return _parts(("answer", text))
        thought, tag, rest = text.partition(THINK_CLOSE)
        if tag:
            self._state, self.closed = "answer", True
            return _parts(("thinking", thought), ("answer", rest))
        held = next(n for n in range(len(THINK_CLOSE) - 1, -1, -1) if text.endswith(THINK_CLOSE[:n]))
        self._held = text[len(text) - held :]
        return _parts(("thinking", text[: len(text) - held]))

    def finish(self) -> list[tuple[Part, str]]:
        """What was held back: the text ends here."""
        text, self._held = self._held, ""
        return _parts(("thinking" if self.thinking else "answer", text))


def _parts(*parts: tuple[Part, str]) -> list[tuple[Part, str]]:
    return [part for part in parts if part[1]]


def split_thinking(text: str, opened: bool) -> tuple[str, str, bool]:
    """(thinking, answer, whether a thought has ended) of a whole text, as `ThinkingSplitter` tells them apart.

    opened: the prompt ended with `<think>`, so that the text begins inside the thinking.
    """
    splitter = ThinkingSplitter(opened)
    parts = [*splitter.feed(text), *splitter.finish()]
    thinking, answer = ("".join(part for kind, part in parts if kind == wanted) for wanted in ("thinking", "answer"))
    return thinking, answer, splitter.closed
