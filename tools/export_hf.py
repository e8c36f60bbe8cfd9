"""Exports a policy as a Hugging Face folder, which transformers, vLLM and SGLang read.

    python -m tools.export_hf --checkpoint DIR --out DIR [--dtype source|float32|bfloat16|fp8]

DIR of --checkpoint is that of a finished stage (pretrain, rl) or of an import. A killed export goes on when the same
command runs again.
"""

from __future__ import annotations

import argparse
import pathlib

from r1jax.weights.exporter import DTYPES, ExportOptions, export_checkpoint
from tools.command_line import run_tool


def main() -> None:
    """Parses the command line and exports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=pathlib.Path, required=True, help="folder with model.json and model/")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="a new folder, or one of an unfinished export")
    parser.add_argument("--dtype", default="source", choices=DTYPES, help="of the tensors; default: source")
    parser.add_argument("--max-shard-gb", type=float, default=5.0, help="size limit of a file, in 10^9 bytes")
    args = parser.parse_args()
    if not 1e-9 <= args.max_shard_gb < 1e9:
        raise ValueError(f"--max-shard-gb is {args.max_shard_gb}, expected a positive number of 10^9 bytes")
    options = ExportOptions(args.dtype, int(args.max_shard_gb * 1e9))
    files = export_checkpoint(args.checkpoint, args.out, options)
    print(f"{args.out}: {len(files)} file{'s' if len(files) > 1 else ''} of tensors")


if __name__ == "__main__":
    run_tool(main)
