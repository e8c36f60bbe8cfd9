"""How a tool ends: what the user can mend is said in one line, and in full what an error is about."""

from __future__ import annotations

import sys
from collections.abc import Callable

import rich.console
from absl import logging

from r1jax.checkpoint import CheckpointError
from r1jax.weights.names import WeightsError


def run_tool(main: Callable[[], None]) -> None:
    """Runs `main`; ends with status 1 and one line for an error, 130 where the user stopped it."""
    logging.set_verbosity(logging.FATAL)  # orbax tells of every file it opens, and logs what it raises as well
    console = rich.console.Console(stderr=True)
    try:
        main()
    except KeyboardInterrupt:
        console.print("stopped; run the same command to go on", style="yellow")
        sys.exit(130)
    except (CheckpointError, ValueError, ImportError, OSError) as error:
        said = f"{type(error).__name__}: {error}"
        console.print(said, style="bold red", highlight=False, markup=False, soft_wrap=True)
        if isinstance(error, WeightsError) and len(error.names) > 1:
            for name in error.names:
                console.print(f"  {name}", highlight=False, markup=False, soft_wrap=True)
        sys.exit(1)
