"""Memory and time of import and export on a generated checkpoint, beside a plain copy of the same files.

    python -m tools.benchmark_weights --workdir DIR [--gb 8.5] [--kill]

Makes a DeepSeek-V3-shaped checkpoint of about that size in bfloat16 (sigmoid router, MTP layer, 64 experts), copies
it, imports it, exports the import, and compares every tensor of the export with the source. --kill also kills an import
with SIGKILL halfway, runs it again, and compares it with the undisturbed one. Needs three times the size on the disk.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import rich.console
import rich.table
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from r1jax.model.config import MLAConfig, ModelConfig, MoEConfig, RopeConfig, YarnConfig
from r1jax.weights.export_config import config_fields
from r1jax.weights.exporter import plan_shards, plan_tensors
from r1jax.weights.released import INDEX, ReleasedFolder
from r1jax.weights.safetensors_files import TensorSpec, write_safetensors
from tools.command_line import run_tool

SHARD_BYTES = 2_000_000_000
EXPERT_LAYER_BYTES = 64 * 3 * 2048 * 1408 * 2  # what one more layer adds, nearly


def model_of(gigabytes: float) -> ModelConfig:
    """A model of about that many 10^9 bytes in bfloat16; its layers are those of the 16B model of V3's code."""
    layers = max(2, round(gigabytes * 1e9 / EXPERT_LAYER_BYTES) - 1)
    return ModelConfig(
        vocab_size=102400,
        width=2048,
        num_dense_layers=1,
        ffn_dim=10944,
        attention=MLAConfig(16, None, 512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128),
        rope=RopeConfig(scaling=YarnConfig(), interleaved=True),
        num_moe_layers=layers - 1,
        moe=MoEConfig(num_experts=64, num_active=6, expert_dim=1408, num_shared=2, num_groups=8, num_active_groups=4),
        mtp_depth=1,
        max_positions=163840,
    )


def generate(folder: pathlib.Path, cfg: ModelConfig) -> None:
    """Writes the checkpoint: random normal numbers, the MTP layer's copies equal to what they repeat."""
    folder.mkdir(parents=True)
    shards = plan_shards(plan_tensors(cfg, "bfloat16"), SHARD_BYTES)
    seeds = {tensor.spec.name: i for i, shard in enumerate(shards.values()) for tensor in shard}

    def values(specs: list[TensorSpec], sources: list[Any]) -> Iterator[tuple[TensorSpec, np.ndarray]]:
        for spec, source in zip(specs, sources, strict=True):
            rng = np.random.default_rng([seeds[source.copy_of or source.name], len(source.copy_of or source.name)])
            yield spec, (rng.standard_normal(spec.shape, np.float32) * 0.02).astype(spec.dtype)

    for name, shard in shards.items():
        specs = [tensor.spec for tensor in shard]
        write_safetensors(folder / name, values(specs, [t.source for t in shard]), specs, {"format": "pt"})
    weight_map = {tensor.spec.name: name for name, shard in shards.items() for tensor in shard}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    fields = config_fields(cfg) | {"bos_token_id": 0, "eos_token_id": 1, "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(fields))
    alphabet = ["<bos>", "<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    words = alphabet + [f"<{i}>" for i in range(cfg.vocab_size - len(alphabet))]
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<bos>", "<eos>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<bos>", "eos_token": "<eos>"}))


def measured(command: list[str], kill_after: float | None = None) -> tuple[float, float]:
    """Seconds and peak resident memory (10^9 bytes, memory maps included) of a command; killed after some seconds.

    Raises:
      RuntimeError: it failed.
    """
    started, peak = time.monotonic(), 0.0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        peak = max(peak, peak_memory(process.pid))
        if kill_after is not None and time.monotonic() - started > kill_after:
            process.kill()
        time.sleep(0.02)
    if process.returncode != 0 and kill_after is None:
        raise RuntimeError(f"{' '.join(command)} ended with status {process.returncode}")
    return time.monotonic() - started, peak


def peak_memory(process: int) -> float:
    """What the kernel has noted so far (VmHWM), in 10^9 bytes; 0 for a process that has ended."""
    try:
        status = pathlib.Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0.0
    lines = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(lines[0].split()[1]) * 1024 / 1e9 if lines else 0.0


def checksums(folder: pathlib.Path) -> dict[str, Any]:
    """Size and SHA-256 of every array file of an import."""
    manifest = json.loads((folder / "model" / "step_00000000" / "manifest.json").read_text())
    files = manifest["body"]["files"]
    return {name: value for name, value in files.items() if "/c/" in name}


def differing(a: pathlib.Path, b: pathlib.Path) -> list[str]:
    """Tensors that are not bit-equal in two folders."""
    first, second = ReleasedFolder(a), ReleasedFolder(b)
    names = sorted(first.shapes.keys() | second.shapes.keys())
    return [
        name
        for name in names
        if name not in first.shapes
        or name not in second.shapes
        or not np.array_equal(first.read(name).view(np.uint8), second.read(name).view(np.uint8))
    ]


def main() -> None:
    """Parses the command line, measures, prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="a new folder; what is in it stays")
    parser.add_argument("--gb", type=float, default=8.5, help="size of the checkpoint in 10^9 bytes")
    parser.add_argument("--kill", action="store_true", help="also kill an import halfway and go on")
    args = parser.parse_args()
    if args.workdir.exists():
        raise ValueError(f"--workdir {args.workdir} exists; it must be a new folder")
    source, copy = args.workdir / "source", args.workdir / "copy"
    generate(source, model_of(args.gb))
    files = list(source.glob("*.safetensors"))
    size = sum(file.stat().st_size for file in files) / 1e9
    os.sync()
    table = rich.table.Table("", "seconds", "GB/s", "peak memory, GB", title=f"{size:.2f} GB in {len(files)} files")

    def run(what: str, command: list[str]) -> float:
        seconds, memory = measured(command)
        table.add_row(what, f"{seconds:.1f}", f"{size / seconds:.3f}", f"{memory:.2f}")
        return seconds

    tool = [sys.executable, "-m"]
    importing = [*tool, "tools.import_weights", "--source", str(source), "--out"]
    run("copy, written to disk", ["sh", "-c", f"cp -r {source} {copy} && sync"])
    shutil.rmtree(copy)
    run("nothing but starting a tool", [*tool, "tools.import_weights", "--help"])
    seconds = run("import", [*importing, str(args.workdir / "in")])
    if args.kill:
        killed = args.workdir / "killed"
        measured([*importing, str(killed)], kill_after=seconds / 2)
        looked_whole = (killed / "model").exists()
        run(f"import killed after {seconds / 2:.0f} s, the rest", [*importing, str(killed)])
        equal = checksums(killed) == checksums(args.workdir / "in")
        table.add_row(f"equal to the undisturbed import: {equal}; looked whole when killed: {looked_whole}")
        shutil.rmtree(killed)
    places = ["--checkpoint", str(args.workdir / "in"), "--out", str(args.workdir / "out")]
    run("export", [*tool, "tools.export_hf", *places])
    table.add_row(f"tensors of the export that differ from the source: {len(differing(source, args.workdir / 'out'))}")
    rich.console.Console().print(table)


if __name__ == "__main__":
    run_tool(main)
