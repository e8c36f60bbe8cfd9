"""How a tool ends: what the user can mend is said in one line, and in full what an error is about."""

from __future__ import annotations

import sys
from collections.abc import Callable

import rich.console
from absl import logging

from r1jax.checkpoint import CheckpointError
from r1jax.weights.names import WeightsError

USER_ERRORS = (CheckpointError, ValueError, ImportError, OSError)


def complain(error: Exception) -> None:
    """One line for the user, and every name that the error is about where there are several."""
    console = rich.console.Console(stderr=True)
    said = f"{type(error).__name__}: {error}"
    console.print(said, style="bold red", highlight=False, markup=False, soft_wrap=True)
    if isinstance(error, WeightsError) and len(error.names) > 1:
        for name in error.names:
            console.print(f"  {name}", highlight=False, markup=False, soft_wrap=True)


def run_tool(main: Callable[[], None]) -> None:
    """Runs `main`; ends with status 1 and one line for an error, 130 where the user stopped it."""
    logging.set_verbosity(logging.FATAL)  # orbax tells of every file it opens, and logs what it raises as well
    try:
        main()
    except KeyboardInterrupt:
        rich.console.Console(stderr=True).print("stopped; run the same command to go on", style="yellow")
        sys.exit(130)
    except USER_ERRORS as error:
        complain(error)
        sys.exit(1)
