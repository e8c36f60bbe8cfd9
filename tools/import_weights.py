"""Imports released weights: a Hugging Face folder or a GGUF file becomes a folder that every stage can start from.

    python -m tools.import_weights --source DIR_OR_GGUF --out DIR

The result is used as `init = {kind: 'stage', path: DIR}` in a config, by `tools.sample` and by the exports. A killed
import goes on when the same command runs again.
"""

from __future__ import annotations

import argparse
import pathlib

from r1jax.model.transformer import param_count
from r1jax.weights.importer import MTP, PARAM_DTYPES, ImportOptions, import_checkpoint
from tools.command_line import run_tool


def main() -> None:
    """Parses the command line and imports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=pathlib.Path, required=True, help="folder with config.json, or a GGUF file")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="a new folder, or one of this same import")
    parser.add_argument(
        "--param-dtype", default="source", choices=PARAM_DTYPES, help="of the parameters; default: source"
    )
    parser.add_argument("--mtp", default="keep", choices=MTP, help="the multi-token prediction layer; default: keep")
    parser.add_argument("--think-tokens", action="store_true", help="add <think> and </think> where they are missing")
    parser.add_argument("--ignore", nargs="*", default=[], help="keys of config.json known to make no difference")
    parser.add_argument("--threads", type=int, default=2, help="tensors that are worked on at a time")
    args = parser.parse_args()
    options = ImportOptions(args.param_dtype, args.mtp, args.think_tokens, tuple(args.ignore), args.threads)
    cfg = import_checkpoint(args.source, args.out, options)
    print(f"{args.out} is complete: {param_count(cfg):,} parameters in {cfg.param_dtype}")


if __name__ == "__main__":
    run_tool(main)
