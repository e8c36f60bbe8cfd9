"""The page of an experiment, from the runs that tools.sweep made: a table with intervals, curves, the paper's claims.

    python -m tools.report experiments/language_consistency

Writes runs/NAME/report.html and runs/NAME/plots/, and prints the same as Markdown. Runs that are missing, and runs that
were made by another configuration than experiment.py now has, are named.
"""

from __future__ import annotations

from r1jax.evaluation.experiment_report import write_experiment_report
from tools.command_line import run_tool
from tools.experiment_runs import all_runs, claim, experiment_arguments, load, out_folder, still_to_do


def main() -> None:
    """Writes and prints."""
    arguments = experiment_arguments(__doc__).parse_args()
    experiment, out = load(arguments), out_folder(arguments)
    stale = [
        f"{run.name}, {step} ({how})"
        for run in all_runs(arguments.experiment, experiment, out)
        for step, how in still_to_do(experiment, run).items()
        if how.startswith("made by another config")
    ]
    claim(out, arguments)
    report = write_experiment_report(experiment, out, stale)
    print(report.markdown)
    print(f"\n{report.path}")


if __name__ == "__main__":
    run_tool(main)
