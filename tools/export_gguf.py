"""Exports a policy of the Llama or Qwen family as a GGUF file, which llama.cpp and Ollama run.

    python -m tools.export_gguf --checkpoint DIR --out FILE.gguf [--type F32|F16|Q8_0]

DIR is that of a finished stage (rl) or of an import, with a released tokenizer. The file is written anew by each run of
the command, and has its name only once it is whole.
"""

from __future__ import annotations

import argparse
import pathlib

from r1jax.weights.gguf_export import MIB, QUANTIZATIONS, export_gguf
from tools.command_line import run_tool


def main() -> None:
    """Parses the command line and exports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=pathlib.Path, required=True, help="folder with model.json and model/")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="a new file")
    parser.add_argument("--type", default="F16", choices=list(QUANTIZATIONS), help="of the matrices; default: F16")
    parser.add_argument("--name", help="of the model, as programs show it; default: that of the file")
    args = parser.parse_args()
    size = export_gguf(args.checkpoint, args.out, args.type, args.name)
    print(f"{args.out}: {size / MIB:.1f} MiB")


if __name__ == "__main__":
    run_tool(main)
