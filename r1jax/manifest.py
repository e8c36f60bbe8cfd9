"""The manifest of a checkpoint: size and SHA-256 of every file, so that damage is found before anything is built."""

from __future__ import annotations

import concurrent.futures
import errno
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

_FORMAT = 1
_DISK_FULL = ("no space left on device", "disk quota exceeded")


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, or none that can be trusted is there to be read."""


class DamagedError(Exception):
    """Why a checkpoint is not what was written."""


def _files(directory: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file() and path.name != "manifest.json")


def _checksum(path: pathlib.Path) -> tuple[int, str]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return file.tell(), digest.hexdigest()


def _checksums(paths: Iterable[pathlib.Path]) -> Iterator[tuple[pathlib.Path, tuple[int, str]]]:
    """(path, (size, SHA-256)) of every file, on all cores: hashing leaves the interpreter's lock alone."""
    paths = list(paths)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from zip(paths, pool.map(_checksum, paths), strict=True)


def _canonical(body: Any) -> bytes:
    return json.dumps(body, sort_keys=True, ensure_ascii=True).encode()


def write_manifest(directory: pathlib.Path, step: int, leaves: Mapping[str, tuple[Any, ...]]) -> None:
    """Describes all files of a checkpoint's folder. leaves: name -> (shape, type, kind of random key or None)."""
    body = {
        "format": _FORMAT,
        "step": step,
        "leaves": {name: list(leaf) for name, leaf in leaves.items()},
        "files": {path.relative_to(directory).as_posix(): list(sums) for path, sums in _checksums(_files(directory))},
    }
    # The manifest carries its own checksum, so that no flipped byte anywhere goes unseen.
    text = json.dumps({"body": body, "sha256": hashlib.sha256(_canonical(body)).hexdigest()}, indent=1)
    (directory / "manifest.json").write_text(text, encoding="utf-8")


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
    """The manifest's body, once every file it names is there with the right size and SHA-256."""
    body = read_manifest(directory, step)
    for name, (size, _) in body["files"].items():
        path = directory / name
        if not path.is_file():
            raise DamagedError(f"{name} is missing")
        if path.stat().st_size != size:
            raise DamagedError(f"{name} has {path.stat().st_size} bytes instead of {size}")
    for path, (_, digest) in _checksums(directory / name for name in body["files"]):
        name = path.relative_to(directory).as_posix()
        if digest != body["files"][name][1]:
            raise DamagedError(f"{name} does not match its checksum")
    return body


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
