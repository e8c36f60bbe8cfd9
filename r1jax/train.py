"""The entrypoint: `python -m r1jax.train --config=configs/r1_zero.py:tiny --workdir=runs/r1_zero`.

train.py -> stages/pipeline.py -> stages/rl.py -> algorithms/grpo.py
"""

from __future__ import annotations

import errno
import pathlib
import re
import signal
import sys
import traceback
import types
from collections.abc import Sequence
from typing import Any, NoReturn

import jax
import rich.console
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from r1jax import processes, watchdog
from r1jax.checkpoint import CheckpointError
from r1jax.data.errors import DataError
from r1jax.evaluation.report import write_report
from r1jax.metrics import NonFiniteError
from r1jax.settings import ConfigError, from_config, to_plain, with_room
from r1jax.stages import pipeline
from r1jax.stages.checks import Stage
from r1jax.stages.interruption import SIGNALS, Interrupted
from r1jax.workdir import WorkdirError, check_shared, open_workdir

STAGES: dict[str, Stage] = {
    **pipeline.SINGLE_STAGES,
    "pipeline": Stage(pipeline.PipelineConfig, pipeline.check, pipeline.run),
}
USER_ERRORS = (
    ConfigError,
    DataError,
    WorkdirError,
    NonFiniteError,
    CheckpointError,
    ValueError,
    ImportError,
    OSError,
)


class RoomyParser(config_flags.config_flags.ConfigFileFlagParser):
    """Of `--config`: the file's configuration with room for every `--config.A.B=...` of the command line."""

    def parse(self, path: str) -> Any:
        """As the parser of the package, whose answer to a file that is not there is no ConfigDict."""
        config = super().parse(path)
        names = (re.match(r"--?(?:no)?config\.([^=]+)", argument) for argument in sys.argv)
        return with_room(config, [name[1] for name in names if name]) if isinstance(config, ConfigDict) else config


# Fields that a file leaves at their defaults can be set too: `from_config` refuses those that the stage does not have.
CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Python file with get_config(arg), and after a colon its arg.",
    lock_config=False,
    accept_new_attributes=True,
)
flags.FLAGS["config"].parser = RoomyParser("config", lock_config=False)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: metrics, samples, checkpoints, report.")
OVERRIDES = "an override is --config.A.B=...; of a pipeline's third step: --config.steps[2].config.A=..."
CHECK = flags.DEFINE_bool(
    "check", False, "Only check: the configuration and, with --workdir, what it needs. Runs nothing."
)
DEBUG = flags.DEFINE_bool("debug", False, "Show the whole traceback of an error.")
DISTRIBUTED = flags.DEFINE_enum(
    "distributed",
    "auto",
    ["auto", "on", "off"],
    "Several processes, as Cloud TPU, Kubernetes, Slurm or Open MPI tells; auto: where the environment names several.",
)
COORDINATOR = flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0, where the environment does not tell.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Number of this process, with --coordinator.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of all processes, with --coordinator.")
LOCAL_DEVICES = flags.DEFINE_integer("local_devices", None, "Devices of this process; on the CPU as many are made.")
PEER_SECONDS = flags.DEFINE_float(
    "peer_seconds", 60.0, "A process that gives no sign of life for so long is dead, and the others end."
)


def read_config(config: ConfigDict) -> tuple[str, Any]:
    """The name of the config's stage, and the config as the stage's dataclass. ConfigError naming a wrong field."""
    fields = to_plain(config)
    stage = fields.pop("stage", None)
    if stage not in STAGES:
        raise ConfigError(f"stage: {stage!r} is not one of {sorted(STAGES)}")
    return stage, from_config(STAGES[stage].config, fields)


def check(config: ConfigDict, workdir: pathlib.Path | None) -> str:
    """Checks the fields and, for a `workdir`, all that the stage checks before it starts; says what was checked."""
    stage, typed = read_config(config)
    if workdir is None:
        return "the configuration is valid (with --workdir, data, tools and endpoints are looked at too)"
    if processes.from_writer(workdir.is_file):
        raise WorkdirError(f"{workdir} is a file; --workdir needs a directory")
    if stage in pipeline.SINGLE_STAGES and processes.from_writer((workdir / "config.json").exists):
        open_workdir(workdir, {"stage": stage, **to_plain(typed)})  # of another config?
    STAGES[stage].check(typed, workdir, {})
    return "the configuration is valid, and what it needs is there"


def run(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Turns the config into its stage's dataclass and runs the stage in `workdir`."""
    stage, typed = read_config(config)
    chosen = STAGES[stage]
    if stage not in pipeline.SINGLE_STAGES:
        chosen.check(typed, workdir, {})
        processes.wait_for_all("checked")  # what they look at is moved next
        chosen.run(typed, workdir)
        return
    plain = {"stage": stage, **to_plain(typed)}
    if processes.from_writer((workdir / "config.json").exists):
        open_workdir(workdir, plain)  # of another config? said first
    if not processes.from_writer((workdir / "summary.json").exists):
        chosen.check(typed, workdir, {})  # what is refused leaves no folder that would then refuse the mended config
    processes.wait_for_all("checked")
    chosen.run(typed, open_workdir(workdir, plain))
    processes.from_writer(lambda: write_report(workdir, title=stage))


def describe(error: Exception) -> str:
    """What the user reads of an error."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" ({error.filename})" if error.filename else ""
        return (
            f"DiskFullError: the disk is full{where}. The checkpoints already saved are untouched. Make room and run "
            "the same command again."
        )
    return f"{type(error).__name__}: {error}"


def _terminate(number: int, frame: types.FrameType | None) -> None:
    raise Interrupted(
        f"stopped by {signal.Signals(number).name}; what was saved is kept, run the same command to go on"
    )


def parse_flags(arguments: Sequence[str]) -> list[str]:
    """What absl's own parser does, with one line instead of a traceback where a flag or the config file is wrong."""
    try:
        rest: list[str] = flags.FLAGS(arguments)
        config = flags.FLAGS["config"]
        file = config_flags.get_config_filename(config).partition(":")[0] if config.present else ""
        if file and not pathlib.Path(file).is_file():
            raise flags.Error(f"--config: there is no file {file}")
    # OSError: overrides of a file that is not there; all after it: an override below a field that is not there.
    except (flags.Error, OSError, AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        if "--debug" in arguments:
            raise
        # Of a config file that raises, ml_collections hands on the whole traceback; its last line is what it said.
        said = [line for line in str(error).splitlines() if line.strip()]
        hint = "" if isinstance(error, (flags.Error, OSError)) else f"; {OVERRIDES}"
        rich.console.Console(stderr=True).print(
            f"{said[-1].strip()}{hint}", style="bold red", highlight=False, markup=False, soft_wrap=True
        )
        sys.exit(2)
    return rest


def launch_of_flags() -> processes.Launch:
    """How this process finds the others. ProcessesError naming a flag that is wrong."""
    return processes.Launch(
        DISTRIBUTED.value,
        COORDINATOR.value,
        PROCESS_ID.value,
        NUM_PROCESSES.value,
        LOCAL_DEVICES.value,
        PEER_SECONDS.value,
    )


def leave_for(error: Exception) -> NoReturn:
    """Ends this one of several processes because of an error: another one's end, if that is behind it, or its own."""
    watchdog.await_verdict(error)
    if DEBUG.value or not isinstance(error, USER_ERRORS):
        traceback.print_exception(error)
    watchdog.leave(describe(error), 1)


def main(argv: Sequence[str]) -> None:
    """Parses the command line, runs, and says in one line what went wrong where it is the user's to mend."""
    # Orbax tells of every file it opens, and logs with three tracebacks what it raises as well (a full disk).
    logging.set_verbosity(logging.WARNING if DEBUG.value else logging.FATAL)
    console = rich.console.Console(stderr=True)
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    if CONFIG.value is None:
        raise app.UsageError("--config is required, for example --config=configs/r1_zero.py:tiny")
    if WORKDIR.value is None and not CHECK.value:
        raise app.UsageError("--workdir is required")
    # Compiled programs are kept between runs: a resumed or repeated run does not compile again.
    cache = pathlib.Path.home() / ".cache" / "r1jax" / "xla"
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    try:
        launch = launch_of_flags()
        if WORKDIR.value is not None:  # fields alone are checked without devices, which another run may be using
            processes.start(launch)
        for number in SIGNALS:
            signal.signal(number, _terminate)  # outside of the stages' loops, which save first
        workdir = None if WORKDIR.value is None else pathlib.Path(WORKDIR.value)
        if workdir is not None:
            check_shared(workdir)
        if CHECK.value:
            said = check(CONFIG.value, workdir)
            console.print(said, style="green", highlight=False)
        else:
            assert workdir is not None
            run(CONFIG.value, workdir)
        processes.finish()
    except Interrupted as stop:
        if processes.are_several():
            watchdog.leave(str(stop), 143)
        console.print(str(stop), style="yellow", highlight=False, soft_wrap=True)
        sys.exit(143)
    except Exception as error:
        if processes.are_several():
            leave_for(error)
        if DEBUG.value or not isinstance(error, USER_ERRORS):
            raise
        console.print(describe(error), style="bold red", highlight=False, markup=False, soft_wrap=True)
        console.print("(--debug shows where it was raised)", style="dim", highlight=False)
        sys.exit(1)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
