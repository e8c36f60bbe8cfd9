"""Models that are asked by messages: what a judge (`judge.py`) talks to, and any OpenAI-compatible server as one.

r1jax's own sampler behind the same protocol is `sampling.answers.SamplerChat`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
import math
import os
import threading
import time
import urllib.parse
from collections.abc import Coroutine, Mapping, Sequence
from types import ModuleType, TracebackType
from typing import Any, Protocol, TypeVar

Conversation = Sequence[Mapping[str, str]]  # messages of "role" (system, user, assistant) and "content"

DOWN_SECONDS = 30.0  # how long an endpoint that failed is not asked
FAILURES = 8  # time-outs and server errors with no answer between them, after which an endpoint counts as down
_SHOWN = 300  # characters of a server's message

_T = TypeVar("_T")


class JudgeUnavailableError(ValueError):
    """A model that is to be asked cannot be: said at the start, before long work."""


@dataclasses.dataclass(frozen=True)
class Reply:
    """What a model said. `text` is None where there is no complete answer, and `problem` says why."""

    text: str | None
    problem: str = ""
    timed_out: bool = False


class ChatModel(Protocol):
    """Answers conversations."""

    def ask(self, conversations: Sequence[Conversation], seed: int) -> list[Reply]:
        """One reply to each conversation, in order. The failure of one is its reply's `problem`, not an exception.

        seed: the same for all conversations; a model that draws at random gives another draw for another seed.
        """
        ...


@dataclasses.dataclass(frozen=True)
class EndpointConfig:
    """An OpenAI-compatible server, and how it is asked."""

    url: str  # up to /v1, e.g. http://127.0.0.1:8000/v1
    model: str
    api_key_variable: str = ""  # name of the environment variable that holds the key; empty: none is needed
    seconds: float = 60.0  # for one answer, from when it is sent, with all retries and the waits between them
    retries: int = 2  # after refused connections and the statuses 408, 409, 429 and 5xx
    parallel: int = 8  # conversations asked at a time
    max_tokens: int = 512  # of an answer; a longer one is cut, and so is none
    temperature: float = 0.0

    def __post_init__(self) -> None:
        """Raises ValueError naming the field that is out of range."""
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url: {self.url!r}; an address that begins with http:// or https://")
        try:
            _ = parts.port
        except ValueError as error:
            raise ValueError(f"url: {self.url!r}: {error}") from error
        if not self.model:
            raise ValueError("model: is empty; the name of a model that the endpoint serves")
        if not 0 < self.seconds < math.inf:
            raise ValueError(f"seconds: {self.seconds}; more than 0")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature: {self.temperature}; 0 or more")
        for name, least in (("retries", 0), ("parallel", 1), ("max_tokens", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: {getattr(self, name)}; at least {least}")


class _Failed(Exception):
    """Why there is no completion; it becomes the reply."""

    def __init__(self, problem: str, timed_out: bool = False) -> None:
        super().__init__(problem)
        self.problem, self.timed_out = problem, timed_out


class _Breaker:
    """Keeps questions away from an endpoint that is down, so that a thousand of them do not each wait for it."""

    def __init__(self) -> None:
        self._failures = 0
        self._until = -math.inf
        self._reason = ""

    def failed(self, problem: str, lasting: bool) -> None:
        """Takes note of a question that the endpoint did not answer."""
        self._failures += 1
        if lasting or self._failures >= FAILURES:
            self._failures, self._reason, self._until = 0, problem, time.monotonic() + DOWN_SECONDS

    def answered(self) -> None:
        """Takes note of an answer, be it that the question is wrong."""
        self._failures, self._until = 0, -math.inf

    def problem(self) -> str:
        """Why a question is not to be sent now; empty: it is."""
        if time.monotonic() >= self._until:
            return ""
        return f"{self._reason} (not asked: for {DOWN_SECONDS:g} s after that the endpoint counts as down)"


class Endpoint:
    """A `ChatModel` that asks an OpenAI-compatible server through the `openai` package (extra `judge`).

    Each answer has `seconds` in all, also where the server sends it byte by byte. Retries and the waits between them
    are the package's (0.5 s, doubled to at most 8 s, or what the server asks for). When a connection still fails after
    them, or 8 answers in a row end in a time-out or a server error, the endpoint counts as down for 30 s: what is asked
    meanwhile has its reply at once, with the reason. Then it is tried again. `ask` may be called from any thread.

    Use as a context manager, or call `close`.
    """

    def __init__(self, config: EndpointConfig) -> None:
        """Connects to nothing yet.

        Raises:
          ImportError: the package `openai` is not installed.
          JudgeUnavailableError: the environment variable of the key is not set.
        """
        self.config = config
        self._openai = _import_openai()
        self._key = os.environ.get(config.api_key_variable, "") if config.api_key_variable else "none"
        if not self._key:
            raise JudgeUnavailableError(
                f"api_key_variable: the environment variable {config.api_key_variable} is not set or empty"
            )
        self._breaker = _Breaker()
        self._slots = asyncio.Semaphore(config.parallel)
        self._client = self._openai.AsyncOpenAI(
            base_url=config.url, api_key=self._key, max_retries=config.retries, timeout=config.seconds
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="endpoint", daemon=True)
        self._thread.start()

    def ask(self, conversations: Sequence[Conversation], seed: int) -> list[Reply]:
        """One reply to each conversation, in order; `parallel` of them are asked at a time."""

        async def all_replies() -> list[Reply]:
            return list(await asyncio.gather(*(self._reply(messages, seed) for messages in conversations)))

        return self._run(all_replies())

    def check(self) -> None:
        """Asks for one token. JudgeUnavailableError if nothing answers, what answers sends no completion, or the model
        or the key is refused."""
        try:
            said = self._run(self._completion([{"role": "user", "content": "Say yes."}], seed=0, max_tokens=1))
            if not _is_completion(said):
                raise _Failed("what it sends is no chat completion")
        except _Failed as failure:
            raise JudgeUnavailableError(
                f"model {self.config.model!r} at {self.config.url} cannot be asked: {failure.problem}"
            ) from failure

    def close(self) -> None:
        """Closes the connections. All questions must have been answered."""
        if self._loop.is_closed():
            return
        self._run(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _reply(self, messages: Conversation, seed: int) -> Reply:
        async with self._slots:
            down = self._breaker.problem()
            if down:
                return Reply(None, down)
            try:
                completion = await self._completion(messages, seed, self.config.max_tokens)
            except _Failed as failure:
                return Reply(None, failure.problem, failure.timed_out)
            return _read(completion, self.config.max_tokens)

    async def _completion(self, messages: Conversation, seed: int, max_tokens: int) -> Any:
        """What the server sends as a chat completion. Raises _Failed, and tells the breaker."""
        config, openai = self.config, self._openai
        try:
            async with asyncio.timeout(config.seconds):
                completion = await self._client.chat.completions.create(
                    model=config.model,
                    messages=[dict(message) for message in messages],
                    max_tokens=max_tokens,
                    temperature=config.temperature,
                    seed=seed,
                )
        except (TimeoutError, openai.APITimeoutError) as error:
            raise self._failure(f"no answer within {config.seconds:g} s", timed_out=True) from error
        except openai.APIConnectionError as error:
            raise self._failure(f"no connection: {_root(error)}", lasting=True) from error
        except openai.InternalServerError as error:
            raise self._failure(self._shown(error)) from error
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            self._breaker.answered()
            source = config.api_key_variable or "api_key_variable, which is not set"
            raise _Failed(f"the key ({source}) is refused: {self._shown(error)}") from error
        except (openai.OpenAIError, ValueError) as error:  # another status, or what is no JSON
            self._breaker.answered()
            raise _Failed(self._shown(error)) from error
        self._breaker.answered()
        return completion

    def _failure(self, problem: str, timed_out: bool = False, lasting: bool = False) -> _Failed:
        self._breaker.failed(problem, lasting)
        return _Failed(problem, timed_out)

    def _shown(self, error: Exception) -> str:
        """The error's text without the key, which some servers repeat."""
        text = str(error) if self._key == "none" else str(error).replace(self._key, "<key>")
        return f"{type(error).__name__}: {text[:_SHOWN]}"


def _read(completion: Any, max_tokens: int) -> Reply:
    """The reply in what a server sent; the package does not check that it is a chat completion."""
    choices = getattr(completion, "choices", None)
    if not isinstance(choices, list) or not choices:
        return Reply(None, f"the endpoint sent no chat completion but {str(completion)[:80]!r}")
    text = getattr(getattr(choices[0], "message", None), "content", None)
    finished = getattr(choices[0], "finish_reason", None)
    if finished == "length":
        return Reply(None, f"cut after {max_tokens} tokens")
    if not isinstance(text, str):
        return Reply(None, f"the endpoint sent no text; finish_reason is {finished!r}")
    return Reply(text)


def _is_completion(completion: Any) -> bool:
    choices = getattr(completion, "choices", None) or [None]
    return getattr(choices[0], "message", None) is not None


def _root(error: BaseException) -> str:
    """What an error came from in the end, e.g. a refused connection below three layers of "all attempts failed"."""
    while True:
        if isinstance(error, BaseExceptionGroup):  # one error for each address of the host
            error = error.exceptions[-1]
            continue
        below = error.__cause__ or error.__context__
        if below is None:
            return f"{type(error).__name__}: {error}"[:_SHOWN]
        error = below


def _import_openai() -> ModuleType:
    try:
        return importlib.import_module("openai")
    except ImportError as error:
        raise ImportError(
            "a judge behind an endpoint needs the package openai: python -m pip install 'r1jax[judge]'"
        ) from error
