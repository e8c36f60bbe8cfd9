"""Import: released weights (a Hugging Face folder or a GGUF file) become a policy folder that any stage can start from.

The folder gets `model/` (an orbax checkpoint in our layout), `model.json`, the tokenizer, `released/` (the small files
of the source, which an export gives back) and `import.json` (where it came from). Tensors are read, converted and
written one at a time by each of a few threads, so memory does not grow with the model: a thread holds a tensor as
stored, as float32 where it was quantized, as converted, and once more while it is written. A killed import goes on.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import fcntl
import json
import math
import pathlib
import shutil
from collections.abc import Iterable, Iterator
from typing import Any

from r1jax.checkpoint import CheckpointStore, DiskFullError, is_disk_full
from r1jax.data.tokenizer import HuggingFaceTokenizer
from r1jax.data.tokenizer_files import read_json
from r1jax.metrics import Progress
from r1jax.model.config import ModelConfig
from r1jax.weights.gguf import GGUFFile, checked_table, gguf_config, gguf_tokenizer, is_gguf
from r1jax.weights.names import Source
from r1jax.weights.parameters import AddedRows, ParameterReader, ReadTensor
from r1jax.weights.policy_folder import PARAMETERS, carry_released, write_description
from r1jax.weights.released import ReleasedFolder, check_tokenizer, mtp_prefix, released_config, released_table
from r1jax.weights.slices import SliceWriter
from r1jax.workdir import WorkdirError, write_atomically

THINK_TOKENS = ("<think>", "</think>")
RECORD = "import.json"
WORK, DONE = "importing", "importing.txt"  # of an import that is not finished: its arrays, the tensors written
PARAM_DTYPES, MTP = ("source", "float32", "bfloat16"), ("keep", "drop")
MIB = 2**20


@dataclasses.dataclass(frozen=True)
class ImportOptions:
    """What the user decides about an import."""

    param_dtype: str = "source"  # 'source': bfloat16 for BF16 and FP8 files, else float32; or one of these two
    mtp: str = "keep"  # 'drop': leave the multi-token prediction layer out
    think_tokens: bool = False  # add <think> and </think> where the tokenizer lacks them
    ignore: tuple[str, ...] = ()  # keys of config.json known to make no difference
    threads: int = 2

    def __post_init__(self) -> None:
        for field, value, allowed in (
            ("param_dtype", self.param_dtype, PARAM_DTYPES),
            ("mtp", self.mtp, MTP),
        ):
            if value not in allowed:
                raise ValueError(f"{field} is {value!r}, expected one of {allowed}")
        if self.threads < 1:
            raise ValueError(f"threads is {self.threads}, expected at least 1")


@dataclasses.dataclass(frozen=True)
class Origin:
    """An opened source: what is needed to make parameters of it."""

    path: pathlib.Path
    cfg: ModelConfig
    table: list[Source]
    read: ReadTensor
    nbytes: dict[str, int]  # of each tensor as stored
    tokenizer: HuggingFaceTokenizer
    fingerprint: dict[str, Any]
    files: list[pathlib.Path]  # small ones that are carried along


def open_origin(path: pathlib.Path, options: ImportOptions) -> Origin:
    """Opens and checks a source; nothing is written, and no tensor is read.

    Raises:
      WeightsError: the source is damaged, or not supported; names the file, the tensor or the field.
    """
    if is_gguf(path):
        return _open_gguf(path, options)
    return _open_folder(path, options)


def _open_folder(path: pathlib.Path, options: ImportOptions) -> Origin:
    folder = ReleasedFolder(path)
    dtype = folder.param_dtype if options.param_dtype == "source" else options.param_dtype
    cfg = released_config(folder, ignore=options.ignore, param_dtype=dtype)
    dropped = None
    if options.mtp == "drop" and cfg.mtp_depth:
        dropped = mtp_prefix(folder, cfg)
        cfg = dataclasses.replace(cfg, mtp_depth=0)
    table = list(released_table(folder, cfg, ignored_prefix=dropped))
    tokenizer = HuggingFaceTokenizer.from_directory(path)
    check_tokenizer(folder, cfg, tokenizer)
    nbytes = {source.name: folder.nbytes(source.name) for source in table}
    return Origin(path, cfg, table, folder.read, nbytes, tokenizer, folder.fingerprint(), folder.small_files())


def _open_gguf(path: pathlib.Path, options: ImportOptions) -> Origin:
    file = GGUFFile(path)
    dtype = "float32" if options.param_dtype == "source" else options.param_dtype
    cfg = gguf_config(file, param_dtype=dtype)
    stat = path.stat()
    fingerprint = {"shards": {path.name: [stat.st_size, stat.st_mtime_ns]}}
    table = checked_table(file, cfg)
    return Origin(path, cfg, table, file.read, file.nbytes, gguf_tokenizer(file), fingerprint, [])


def import_checkpoint(path: pathlib.Path, out: pathlib.Path, options: ImportOptions) -> ModelConfig:
    """Imports `path` into the folder `out`; called again after a kill, it goes on; after the end, it does nothing.

    Returns the model's configuration.

    Raises:
      WeightsError: as `open_origin`; or a tensor holds NaN or infinity, or one that should repeat another differs.
      WorkdirError: `out` holds something else, or another process works on it.
      CheckpointError: the import was finished before and is damaged.
      DiskFullError: there is not enough room (said before the start where that can be known).
    """
    origin = open_origin(path, options)
    tokenizer, cfg, added = _with_think_tokens(origin) if options.think_tokens else (origin.tokenizer, origin.cfg, None)
    reader = ParameterReader(cfg, origin.table, origin.read, added)
    record = {"source": str(path.resolve()), "options": _lasting(options), **origin.fingerprint}
    store = CheckpointStore(out / PARAMETERS, keep=1)
    with _claimed(out, record):
        if store.latest() is None:
            _check_room(out, reader)
            reader.check_copies()
            try:
                _write_slices(out, reader, origin, options.threads)
            except Exception as error:
                if is_disk_full(error):
                    raise DiskFullError(f"{out}: the disk is full; make room and run the same command again") from error
                raise
            write_description(out, cfg, tokenizer)
            carry_released(origin.files, out)
            store.adopt(0, out / WORK, {"source": str(path)})
        (out / DONE).unlink(missing_ok=True)
    return cfg


def _lasting(options: ImportOptions) -> dict[str, Any]:
    """The options that decide what is written."""
    return {name: value for name, value in dataclasses.asdict(options).items() if name != "threads"}


def _with_think_tokens(origin: Origin) -> tuple[HuggingFaceTokenizer, ModelConfig, AddedRows | None]:
    """Tokenizer, configuration and embedding rows with the tokens that are missing."""
    tokenizer = origin.tokenizer.with_tokens(THINK_TOKENS)
    ids = [tokenizer.token_id(token) for token in THINK_TOKENS if origin.tokenizer.token_id(token) is None]
    new = tuple(i for i in ids if i is not None)
    if not new:
        return origin.tokenizer, origin.cfg, None
    cfg = dataclasses.replace(origin.cfg, vocab_size=max(origin.cfg.vocab_size, max(new) + 1))
    return tokenizer, cfg, AddedRows(new, trained=origin.tokenizer.vocab_size)


@contextlib.contextmanager
def _claimed(out: pathlib.Path, record: dict[str, Any]) -> Iterator[None]:
    """While open, `out` is the folder of this import and of no other process. Raises WorkdirError if it cannot be."""
    _claim(out, record)
    with (out / RECORD).open(encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however that ends
        except BlockingIOError as error:
            raise WorkdirError(f"{out}: another process is importing into it") from error
        yield


def _claim(out: pathlib.Path, record: dict[str, Any]) -> None:
    """Makes `out` the folder of this import. Raises WorkdirError if it is the folder of something else."""
    if out.is_file():
        raise WorkdirError(f"{out} is a file; the import needs a directory")
    known = out / RECORD
    ours = json.loads(json.dumps(record))
    if not known.exists():
        if out.exists() and any(out.iterdir()):
            raise WorkdirError(f"{out} is not empty and holds no {RECORD}; choose another folder")
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(known, json.dumps(ours, indent=2) + "\n")
        return
    theirs = read_json(known)
    differing = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
    if differing:
        raise WorkdirError(
            f"{out} belongs to another import: {', '.join(differing)} differ from {known}; choose another folder, or "
            "remove it"
        )


def _check_room(out: pathlib.Path, reader: ParameterReader) -> None:
    """Raises DiskFullError if what is still to be written cannot fit."""
    needed = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in reader.shapes.values())
    written = sum(file.stat().st_size for file in (out / WORK).rglob("*") if file.is_file())
    free = shutil.disk_usage(out).free
    if needed - written > free:
        raise DiskFullError(
            f"{out}: {(needed - written) / MIB:.0f} MiB are to be written, {free / MIB:.0f} MiB are free"
        )


def _write_slices(out: pathlib.Path, reader: ParameterReader, origin: Origin, threads: int) -> None:
    """Writes every slice that an earlier attempt has not written."""
    arrays = {"/".join(path): (shape, reader.depth(path)) for path, shape in reader.shapes.items()}
    writer = SliceWriter(out / WORK / "arrays", arrays)
    done_file = out / DONE
    if writer.fresh:
        done_file.unlink(missing_ok=True)  # of arrays that someone has removed
    names = {reader.sources[path][index].name: (path, index) for path, index in reader.pieces()}
    finished = _finished(done_file) & names.keys()
    total = sum(origin.nbytes[name] for name in names)
    so_far = sum(origin.nbytes[name] for name in finished)

    def convert(name: str) -> str:
        path, index = names[name]
        writer.write("/".join(path), index, reader.piece(path, index))
        return name

    with (
        done_file.open("a", encoding="utf-8") as record,
        Progress(f"import {origin.path.name} (MiB)", -(-total // MIB), so_far // MIB) as progress,
    ):
        remaining = (source.name for source in origin.table if source.name in names.keys() - finished)
        for name in _in_threads(convert, remaining, threads):
            record.write(name + "\n")
            record.flush()
            so_far += origin.nbytes[name]
            progress.update(so_far // MIB, tensors=f"{len(finished) + 1}/{len(names)}")
            finished.add(name)
        progress.update(-(-total // MIB), tensors=f"{len(names)}/{len(names)}")
    writer.check_complete()


def _finished(done_file: pathlib.Path) -> set[str]:
    """Names of tensors that were written; a line that a kill cut short names none."""
    if not done_file.exists():
        return set()
    text = done_file.read_text(encoding="utf-8")
    return set(text[: text.rfind("\n") + 1].split())


def _in_threads(work: Any, items: Iterable[str], threads: int) -> Iterator[str]:
    """Results of `work(item)` as they come, at most `threads` at a time; the first error ends it."""
    items = iter(items)
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        running = {pool.submit(work, item) for _, item in zip(range(threads), items, strict=False)}
        while running:
            done, running = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in done:
                yield future.result()
                running |= {pool.submit(work, item) for _, item in zip(range(1), items, strict=False)}
