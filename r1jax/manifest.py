"""The manifest of a checkpoint: size and SHA-256 of every file, so that damage is found before anything is built.

The files of a large model are terabytes: each process reads its share of them.
"""

from __future__ import annotations

import concurrent.futures
import errno
import hashlib
import heapq
import json
import os
import pathlib
import socket
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from r1jax.processes import await_file, from_each, from_writer, is_alone

_FORMAT = 1
_found_right: dict[pathlib.Path, dict[str, tuple[int, int, int]]] = {}  # folder -> how its files looked then
_DISK_FULL = ("no space left on device", "disk quota exceeded")


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, or none that can be trusted is there to be read."""


class DamagedError(Exception):
    """Why a checkpoint is not what was written."""


def _files(directory: pathlib.Path) -> dict[str, int]:
    """Names below the directory of all files but the manifest, and their sizes in bytes."""
    found = sorted(path for path in directory.rglob("*") if path.is_file() and path.name != "manifest.json")
    return {path.relative_to(directory).as_posix(): path.stat().st_size for path in found}


def share_out(sizes: Mapping[str, int], processes: int) -> list[list[str]]:
    """The files that each process reads, so that all have about as many bytes; sizes in bytes."""
    parts: list[list[str]] = [[] for _ in range(processes)]
    loads = [(0, process) for process in range(processes)]
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        load, process = loads[0]
        parts[process].append(name)
        heapq.heapreplace(loads, (load + sizes[name], process))
    return parts


def checksum(path: pathlib.Path) -> tuple[int, str]:
    """(bytes, SHA-256) of a file as it is read."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return file.tell(), digest.hexdigest()


def _stored_checksum(path: pathlib.Path) -> tuple[int, str]:
    """`checksum` of a file that is on the disk."""
    sync(path)
    return checksum(path)


def _read_together(
    directory: pathlib.Path, sizes: Mapping[str, int], read: Callable[[pathlib.Path], tuple[int, str]]
) -> dict[str, tuple[int, str]]:
    """What `read` says of every file, each process reading its share of them; the sizes are the writer's."""

    def own() -> dict[str, tuple[int, str]]:
        names = list(sizes) if is_alone() else share_out(sizes, jax.process_count())[jax.process_index()]
        paths = [directory / name for name in names]
        if not is_alone():
            _await_files(paths)
        # On all cores: hashing leaves the interpreter's lock alone.
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            return dict(zip(names, pool.map(read, paths), strict=True))

    return {name: one for part in from_each(own) for name, one in part.items()}


def _await_files(paths: Iterable[pathlib.Path]) -> None:
    for path in paths:
        try:
            await_file(path)
        except FileNotFoundError as error:
            who = f"process {jax.process_index()} on {socket.gethostname()}"
            raise CheckpointError(f"{path}: process 0 sees this file, {who} does not ({error.strerror})") from error


def _canonical(body: Any) -> bytes:
    return json.dumps(body, sort_keys=True, ensure_ascii=True).encode()


def write_manifest(directory: pathlib.Path, step: int, leaves: Mapping[str, tuple[Any, ...]]) -> None:
    """Describes all files of a checkpoint's folder, and returns when all is on the disk.

    Called by all processes, which have written their files before: each syncs and reads its share of them.

    Args:
        directory: the folder.
        step: number of the step.
        leaves: name -> (shape, type, kind of random key or None).

    Raises:
        CheckpointError: a process does not see what the writer sees.
    """
    sizes = from_writer(lambda: _files(directory))
    files = _read_together(directory, sizes, _stored_checksum)
    for name, (size, _) in files.items():
        if size != sizes[name]:
            raise CheckpointError(
                f"{directory / name}: process 0 sees {sizes[name]} bytes, another process read {size}"
            )
    body = {
        "format": _FORMAT,
        "step": step,
        "leaves": {name: list(leaf) for name, leaf in leaves.items()},
        "files": {name: list(files[name]) for name in sizes},
    }
    # The manifest carries its own checksum, so that no flipped byte anywhere goes unseen.
    text = json.dumps({"body": body, "sha256": hashlib.sha256(_canonical(body)).hexdigest()}, indent=1)
    from_writer(lambda: _write_last(directory, text))


def _write_last(directory: pathlib.Path, text: str) -> None:
    (directory / "manifest.json").write_text(text, encoding="utf-8")
    sync(directory / "manifest.json")
    for path in (directory, *directory.rglob("*")):
        if path.is_dir():
            sync(path)


def read_manifest(directory: pathlib.Path, step: int) -> dict[str, Any]:
    """The manifest's body. Raises DamagedError if it is not what was written."""
    try:
        manifest = json.loads((directory / "manifest.json").read_bytes())
        body, digest = manifest["body"], manifest["sha256"]
    except FileNotFoundError as error:
        raise DamagedError("manifest.json is missing") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError("manifest.json cannot be read") from error
    if hashlib.sha256(_canonical(body)).hexdigest() != digest:
        raise DamagedError("manifest.json does not match its own checksum")
    if body["step"] != step:
        raise DamagedError(f"manifest.json is that of step {body['step']}")
    if body["format"] != _FORMAT:
        raise CheckpointError(f"{directory}: format {body['format']}, this version reads format {_FORMAT}")
    return body


def verify(directory: pathlib.Path, step: int) -> dict[str, Any]:
    """The manifest's body, once every file it names is there with the right size and SHA-256.

    Called by all processes: each reads its share of the files. What this run has found right is not read again as long
    as it looks the same (size, time of the last change, inode).

    Raises:
        DamagedError: naming the first file, in the order of the manifest, that is not what was written.
        CheckpointError: a process does not see what the writer sees.
    """
    looks: dict[str, tuple[int, int, int]] = {}  # stays empty in all but the writer

    def look() -> tuple[dict[str, Any], bool]:
        body = read_manifest(directory, step)
        looks.update(_look_at(directory, body["files"]))
        return body, _found_right.get(directory) == looks

    body, known = from_writer(look)
    if known:
        return body
    read = _read_together(directory, {name: size for name, (size, _) in body["files"].items()}, checksum)
    for name, (_, digest) in body["files"].items():
        if read[name][1] != digest:
            raise DamagedError(f"{name} does not match its checksum")
    _found_right[directory] = looks
    return body


def _look_at(directory: pathlib.Path, files: Mapping[str, Any]) -> dict[str, tuple[int, int, int]]:
    """Of the files named by a manifest: (size, time of the last change, inode)."""
    looks = {}
    for name in (*files, "manifest.json"):
        path = directory / name
        if not path.is_file():
            raise DamagedError(f"{name} is missing")
        stat = path.stat()
        if name in files and stat.st_size != files[name][0]:
            raise DamagedError(f"{name} has {stat.st_size} bytes instead of {files[name][0]}")
        looks[name] = stat.st_size, stat.st_mtime_ns, stat.st_ino
    return looks


def sync(path: pathlib.Path) -> None:
    """Waits until a file or a folder's names are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(directory: pathlib.Path) -> None:
    """`sync` of a folder and everything in it."""
    for path in directory.rglob("*"):
        sync(path)
    sync(directory)


def is_disk_full(error: BaseException | None) -> bool:
    """Whether the file system was full: the error itself, or tensorstore's words for it anywhere in the chain."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(words in str(error).lower() for words in _DISK_FULL):
            return True
        error = error.__cause__ or error.__context__
    return False
