"""The folders of a pipeline's steps: which of them hold what is asked for, and where to put those that do not.

Nothing is ever deleted or written over: a folder of another key is moved aside to `<name>.<first 8 digits of its key>`
and comes back when its key is asked for again. Every change is one rename, so that a kill between any two of them
leaves a state from which the same command goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import pathlib
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from r1jax.manifest import sync, sync_tree
from r1jax.stages.step_keys import KEY_FILE, StepKey, changes, read_key, write_key
from r1jax.workdir import WorkdirError, differing_fields, open_workdir, write_atomically

SUMMARY = "summary.json"  # written last: a stage that has one is done
LOCK_FILE = ".lock"


@dataclasses.dataclass(frozen=True)
class Placed:
    """How the folder of a step came to be what it is."""

    aside: pathlib.Path | None = None  # where a folder of another key has gone
    changed: Sequence[str] = ()  # how that one differs
    back: pathlib.Path | None = None  # where it lay, moved aside, until now
    copied: pathlib.Path | None = None  # the finished folder that it is a copy of


def is_done(folder: pathlib.Path, key: StepKey) -> bool:
    """Whether a folder holds the finished step of this key."""
    return (folder / SUMMARY).is_file() and _holds(folder, key)


def _holds(folder: pathlib.Path, key: StepKey) -> bool:
    there = read_key(folder)
    return there is not None and there["key"] == key.digest


def find_elsewhere(
    folder: pathlib.Path, key: StepKey, reuse: Sequence[pathlib.Path], steps: Sequence[str]
) -> pathlib.Path | None:
    """Where a step whose own folder is another one is to be had from: moved aside earlier, or done in other workdirs.

    Args:
      folder: the step's own, with the folders that were moved aside beside it.
      key: the wanted one.
      reuse: workdirs of other pipelines.
      steps: names of all steps; a folder of such a name was not moved aside.
    """
    aside = next((path for path in _asides(folder, steps) if _holds(path, key)), None)
    return aside or _done_in(reuse, key)


def _asides(folder: pathlib.Path, steps: Sequence[str]) -> list[pathlib.Path]:
    pattern = re.compile(re.escape(folder.name) + r"\.[0-9a-f]{8}(-\d+)?")
    if not folder.parent.is_dir():
        return []
    return sorted(p for p in folder.parent.iterdir() if pattern.fullmatch(p.name) and p.name not in steps)


def _done_in(reuse: Sequence[pathlib.Path], key: StepKey) -> pathlib.Path | None:
    folders = (path for workdir in reuse if workdir.is_dir() for path in sorted(workdir.iterdir()))
    return next((path for path in folders if not path.name.startswith(".") and is_done(path, key)), None)


def place(folder: pathlib.Path, key: StepKey, reuse: Sequence[pathlib.Path], steps: Sequence[str]) -> Placed:
    """Makes sure that a step's folder is there and of its key; arguments as for `find_elsewhere`.

    What it holds afterwards may be done, half done, or nothing but the key.

    Raises:
      WorkdirError: the folder holds files that no pipeline can have left there.
    """
    if _holds(folder, key):
        return Placed()
    shutil.rmtree(_partial_copy(folder), ignore_errors=True)  # of a copy that was killed
    aside, changed = _move_aside(folder, key, steps)
    source = find_elsewhere(folder, key, reuse, steps)
    if source is None:
        folder.mkdir(parents=True, exist_ok=True)
        write_key(folder, key)
        return Placed(aside, changed)
    if source.parent == folder.parent and source in _asides(folder, steps):
        _rename(source, folder)
        return Placed(aside, changed, back=source)
    _copy(source, folder)
    return Placed(aside, changed, copied=source)


def _move_aside(folder: pathlib.Path, key: StepKey, steps: Sequence[str]) -> tuple[pathlib.Path | None, list[str]]:
    """Where a folder of another key went and how it differs; (None, []) if there was nothing."""
    held = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if held in ([], [KEY_FILE + ".partial"]):  # the latter: killed as its key was written
        with contextlib.suppress(FileNotFoundError):
            _remove_empty(folder)
        return None, []
    there = read_key(folder)
    if there is not None:
        digest, changed = there["key"], changes(there, key)
    elif (folder / "config.json").is_file():
        config = (folder / "config.json").read_bytes()
        digest, changed = hashlib.sha256(config).hexdigest(), [f"it holds no {KEY_FILE}, so its inputs are unknown"]
    else:
        raise WorkdirError(f"{folder} holds {', '.join(held[:4])} but no {KEY_FILE}: another program's? Move it away")
    taken = {path.name for path in folder.parent.iterdir()} | set(steps)
    names = (f"{folder.name}.{digest[:8]}{f'-{n}' if n else ''}" for n in range(len(taken) + 1))
    aside = folder.with_name(next(name for name in names if name not in taken))
    _rename(folder, aside)
    return aside, changed


def _remove_empty(folder: pathlib.Path) -> None:
    (folder / (KEY_FILE + ".partial")).unlink(missing_ok=True)
    folder.rmdir()


def _rename(folder: pathlib.Path, to: pathlib.Path) -> None:
    folder.rename(to)
    sync(to.parent)


def _partial_copy(folder: pathlib.Path) -> pathlib.Path:
    return folder.with_name(f".{folder.name}.copying")  # no step's name begins with a dot


def _copy(source: pathlib.Path, folder: pathlib.Path) -> None:
    """A copy and no links: a run writes into its files, and the other pipeline's must stay as they are."""
    partial = _partial_copy(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, partial)
    sync_tree(partial)
    _rename(partial, folder)


def record_config(workdir: pathlib.Path, config: Mapping[str, Any]) -> None:
    """Leaves the pipeline's configuration; an earlier one stays beside it as `config.<8 digits of its hash>.json`.

    Raises:
      WorkdirError: the directory belongs to a run that is no pipeline.
    """
    path = workdir / "config.json"
    if path.is_file():
        text = path.read_text(encoding="utf-8")
        with contextlib.suppress(ValueError):  # of what is not JSON, open_workdir says so
            theirs = json.loads(text)
            if isinstance(theirs, dict) and theirs.get("stage") == "pipeline" and differing_fields(theirs, config):
                old = path.with_name(f"config.{hashlib.sha256(text.encode()).hexdigest()[:8]}.json")
                write_atomically(old, text)
                write_atomically(path, json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    open_workdir(workdir, config)


@contextlib.contextmanager
def sole_user(workdir: pathlib.Path) -> Iterator[None]:
    """Keeps a second process from moving the folders that this one writes to.

    The lock is the process's own: it ends with it, however it ends, and no child inherits it.

    Raises:
      WorkdirError: another process runs a pipeline there, or it is a file.
    """
    if workdir.is_file():
        raise WorkdirError(f"{workdir} is a file; --workdir needs a directory")
    workdir.mkdir(parents=True, exist_ok=True)
    if jax.process_index() != 0:
        yield
        return
    with (workdir / LOCK_FILE).open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            raise WorkdirError(f"{workdir}: another process is running a pipeline there") from error
        yield
