"""What a step of a pipeline is made of, as a key: its kind, its resolved configuration and what it reads.

Two steps with one key were asked for the same thing, so the folder of one can stand for the other. The key does not
know the code, the packages, the machine, the mesh, or a model that an installed package brings along (kind 'smollm2').

What a step reads are the strings of its configuration that name another step's folder or a file in it, whose key goes
in, or a file or folder outside of the pipeline, of which a fingerprint goes in: of a file the SHA-256 up to 64 MiB,
above that its size and time of change; of the folder of a policy or a reward model its shape, its card, its tokenizer
and the manifests of its parameters, which hold the checksums of all their files; of another folder, named by a field
`path`, the files directly in it.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from r1jax.settings import ConfigError
from r1jax.weights.policy_folder import CARD_FILE, MODEL_FILE, PARAMETERS
from r1jax.workdir import WorkdirError, differing_fields, wherever_computed, write_atomically

KEY_FILE = "stage_key.json"
HASHED_BYTES = 64 * 2**20
LONGEST_PATH, LONGEST_NAME = 1024, 255  # bytes; a longer string is a text
PATH_FIELDS = ("path", "paths", "folder", "folders")


@dataclasses.dataclass(frozen=True)
class StepKey:
    """What one step is made of."""

    stage: str
    config: Mapping[str, Any]  # as JSON holds it
    inputs: Mapping[str, str]  # dotted field -> "step KEY", or the fingerprint of what lies outside of the pipeline
    steps: tuple[str, ...] = ()  # names of the steps that it reads; told by the configuration, so not in the digest

    @functools.cached_property
    def digest(self) -> str:
        """The key itself, 64 hex digits."""
        parts = {"stage": self.stage, "config": self.config, "inputs": self.inputs}
        return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def step_keys(steps: Sequence[tuple[str, str, Mapping[str, Any]]], workdir: pathlib.Path) -> dict[str, StepKey]:
    """The key of every step, in order.

    Args:
      steps: (name, kind of stage, resolved configuration as JSON holds it) of each.
      workdir: where their folders are. Paths in a configuration are relative to its step's folder, or else to the
        directory that the program runs in.

    Raises:
      ConfigError: a step reads the folder of a later one.
    """
    folders = {(workdir / name).resolve(): name for name, _, _ in steps}
    keys: dict[str, StepKey] = {}
    for name, stage, config in steps:
        inputs, read = {}, []
        for field, text in _texts(config):
            path = _named_path(text, field, (workdir / name).resolve(), folders)
            if path is None:
                continue
            other = _owner(path, folders)
            if other is None:
                inputs[field] = fingerprint(path)
            elif other not in keys:
                raise ConfigError(f"steps[{name}].config.{field}: {text!r} is of the step {other!r}, which runs later")
            else:
                inputs[field] = f"step {keys[other].digest}"
                read.append(other)
        keys[name] = StepKey(stage, wherever_computed(config), inputs, tuple(dict.fromkeys(read)))
    return keys


def _texts(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(dotted path, text) of every string in a configuration."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _texts(item, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _texts(item, f"{path}[{index}]")


def _named_path(text: str, field: str, own: pathlib.Path, folders: Mapping[pathlib.Path, str]) -> pathlib.Path | None:
    """The file or folder outside of its own folder that a string names; None if it is some other string."""
    names = text.encode().split(b"/")
    if not text or len(text) > LONGEST_PATH or max(map(len, names)) > LONGEST_NAME or "\n" in text or "\0" in text:
        return None
    told = field.partition("[")[0].rpartition(".")[2] in PATH_FIELDS
    for base in (own, pathlib.Path.cwd()):
        path = (base / text).resolve()
        if path.is_relative_to(own) or own.is_relative_to(path):
            continue
        if "/" in text and _owner(path, folders) is not None:
            return path
        if path.is_file() or (path / MODEL_FILE).is_file() or (told and (path.is_dir() or _matches(path))):
            return path
    return None


def _owner(path: pathlib.Path, folders: Mapping[pathlib.Path, str]) -> str | None:
    """The step in whose folder a path lies."""
    return next((folders[parent] for parent in (path, *path.parents) if parent in folders), None)


def _matches(path: pathlib.Path) -> list[pathlib.Path]:
    """The files that a pattern in a path's last part means, as in `data.sources`."""
    if not any(character in path.name for character in "*?["):
        return []
    return sorted(path.parent.glob(path.name)) if path.parent.is_dir() else []


def fingerprint(path: pathlib.Path) -> str:
    """What a file, the files of a pattern, or a folder are known by; see the head of this file."""
    if path.is_file():
        return _file_fingerprint(path)
    if (path / MODEL_FILE).is_file():
        manifests = sorted((path / PARAMETERS).glob("*/manifest.json"))
        files = [path / MODEL_FILE, path / CARD_FILE, *sorted(path.glob("tokenizer*")), *manifests]
    elif path.is_dir():
        files = sorted(path.iterdir())
    else:
        files = _matches(path)
    known = {str(file.relative_to(path.parent)): _file_fingerprint(file) for file in files if file.is_file()}
    return f"{len(known)} files, sha256 {hashlib.sha256(json.dumps(known).encode()).hexdigest()}"


def _file_fingerprint(path: pathlib.Path) -> str:
    status = path.stat()
    if status.st_size > HASHED_BYTES:
        return f"{status.st_size} bytes, changed at {status.st_mtime_ns} ns"
    return f"sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}"


def write_key(folder: pathlib.Path, key: StepKey) -> None:
    """Leaves the key in a step's folder."""
    told = {"key": key.digest, "stage": key.stage, "config": key.config, "inputs": key.inputs}
    write_atomically(folder / KEY_FILE, json.dumps(told, indent=2, ensure_ascii=False) + "\n")


def read_key(folder: pathlib.Path) -> dict[str, Any] | None:
    """What `write_key` left; None where there is none. Raises WorkdirError if it cannot be read."""
    path = folder / KEY_FILE
    if not path.is_file():
        return None
    try:
        told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not {"key", "stage", "config", "inputs"} <= told.keys():
            raise ValueError("it has no key, stage, config or inputs")
    except (ValueError, AttributeError) as error:
        raise WorkdirError(f"{path} cannot be read ({error}); move the folder {folder} away") from error
    return told


def changes(there: Mapping[str, Any], now: StepKey) -> list[str]:
    """One line for every field, and every input, in which a folder's key differs from the wanted one."""
    fields = differing_fields({"stage": there["stage"], **there["config"]}, {"stage": now.stage, **now.config})
    for field in sorted(there["inputs"].keys() | now.inputs.keys()):
        old, new = there["inputs"].get(field, "not read"), now.inputs.get(field, "not read")
        if old != new and not any(line.startswith(f"{field}:") for line in fields):
            fields.append(f"what {field} names is another: {_short(old)} there, {_short(new)} now")
    return fields


def _short(text: str) -> str:
    """A fingerprint with its long digests cut to what an eye compares."""
    return " ".join(word[:8] if len(word) == 64 else word for word in text.split())
