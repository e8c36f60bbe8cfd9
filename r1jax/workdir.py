"""The folder of a run: made with its configuration, and only ever used with it again."""

from __future__ import annotations

import json
import os
import pathlib
import secrets
import socket
from collections.abc import Mapping
from typing import Any

from r1jax.processes import SHOWN_SECONDS, await_file, by_writer, from_each, from_writer, is_alone

RUN_FILES = ("metrics.jsonl", "samples.jsonl", "checkpoints", "summary.json")


class WorkdirError(ValueError):
    """The work directory belongs to another run, or its files are not what the checkpoint says."""


def check_shared(workdir: pathlib.Path, seconds: float = SHOWN_SECONDS) -> None:
    """That all processes see one and the same folder, which is made: else they would wait for each other's files.

    Args:
        workdir: directory of the run.
        seconds: for how long a process may not see what the writer has left in it: network file systems are slow.

    Raises:
        WorkdirError: a process has another path, or does not see there what the writer does; named with its host.
    """
    if is_alone():
        return
    places = from_each(lambda: (socket.gethostname(), str(workdir.absolute())))
    names = [f"process {process} on {host}" for process, (host, _) in enumerate(places)]
    allowed = "It must be one folder, under the same path on all hosts"
    for name, (_, path) in zip(names, places, strict=True):
        if path != places[0][1]:
            raise WorkdirError(f"--workdir: {places[0][1]} in {names[0]}, but {path} in {name}. {allowed}")
    token = from_writer(lambda: _leave_token(workdir))
    problems = from_each(lambda: _look_for_token(token, seconds))
    from_writer(token.unlink)
    for name, problem in zip(names, problems, strict=True):
        if problem:
            seen = f"{name} does not see what {names[0]} has written there ({problem})"
            raise WorkdirError(f"--workdir={places[0][1]}: {seen}. {allowed}")


def _leave_token(workdir: pathlib.Path) -> pathlib.Path:
    if workdir.is_file():
        raise WorkdirError(f"{workdir} is a file; --workdir needs a directory")
    workdir.mkdir(parents=True, exist_ok=True)
    name = f"shared_{secrets.token_hex(8)}.token"  # a new one: no host remembers that there is none of the name
    write_atomically(workdir / name, name)
    return workdir / name


def _look_for_token(path: pathlib.Path, seconds: float) -> str:
    """What is wrong with it; empty for nothing."""
    try:
        await_file(path, seconds)
        return "" if path.read_text(encoding="utf-8") == path.name else "it reads something else"
    except OSError as error:
        return str(error.strerror or error)


def open_workdir(workdir: str | os.PathLike[str], config: Mapping[str, Any] | str) -> pathlib.Path:
    """Makes the directory with its config.json, or makes sure that it was made by the same config, on any mesh.

    Args:
        workdir: directory of the run.
        config: the resolved configuration, as a mapping or as JSON text.

    Raises:
        WorkdirError: the directory holds another configuration (every differing field is listed), or a run's files
            without their configuration, or it is a file.
    """
    return from_writer(lambda: _open_workdir(pathlib.Path(workdir), config))


def _open_workdir(workdir: pathlib.Path, config: Mapping[str, Any] | str) -> pathlib.Path:
    text = config if isinstance(config, str) else json.dumps(config)
    ours = json.loads(text)
    path = workdir / "config.json"
    if workdir.is_file():
        raise WorkdirError(f"{workdir} is a file; --workdir needs a directory")
    if not path.exists():
        foreign = [name for name in RUN_FILES if (workdir / name).exists()]
        if foreign:
            raise WorkdirError(
                f"{workdir} holds {', '.join(foreign)} but no config.json: another run's? Choose another"
            )
        workdir.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(ours, indent=2, ensure_ascii=False) + "\n")
        return workdir
    try:
        theirs = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WorkdirError(f"{path} is not JSON ({error}); was the directory made by another program?") from error
    lines = differing_fields(wherever_computed(theirs), wherever_computed(ours))
    if lines:
        advice = "Choose another --workdir, or restore these fields:"
        raise WorkdirError("\n  ".join([f"{workdir} was made by another config. {advice}", *lines]))
    if theirs != ours:
        write_atomically(path, json.dumps(ours, indent=2, ensure_ascii=False) + "\n")
    return workdir


def wherever_computed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A stage's configuration without its mesh: a run goes on, and is done, whatever devices it is computed on."""
    return {name: value for name, value in config.items() if name != "mesh"}


def differing_fields(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """One line for every field in which two configurations differ, as JSON holds them.

    They are compared as JSON text: nan equals nan, and 1 differs from 1.0 and true.
    """
    old, new = _flatten(theirs), _flatten(ours)
    return [
        f"{name}: {old.get(name, 'absent')} there, {new.get(name, 'absent')} now"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


@by_writer
def write_atomically(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text file that is whole or not there, whenever the process is killed."""
    path = pathlib.Path(path)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _flatten(value: Any, path: str = "") -> dict[str, str]:
    """Dotted path -> JSON text of every field."""
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        # A list of records: by their names where they have one, so that a message does not show them whole.
        names = [item.get("name", i) if isinstance(item, dict) else i for i, item in enumerate(value)]
        parts = [_flatten(item, f"{path}[{name}]") for name, item in zip(names, value, strict=True)]
        return {name: item for part in parts for name, item in part.items()}
    if isinstance(value, dict) and value:
        parts = [_flatten(item, f"{path}.{name}" if path else name) for name, item in value.items()]
        return {name: item for part in parts for name, item in part.items()}
    return {path: json.dumps(value, ensure_ascii=False)}
