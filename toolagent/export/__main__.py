"""Writes a checkpoint in forms that need neither Ray nor this project.

python -m toolagent.export CHECKPOINT --output-dir DIR [--task MODULE:CLASS]

DIR then holds `model.safetensors` and the model card `policy.json` (together a checkpoint),
`begin.onnx` and `step.onnx` (reading a problem, and one decoding step), `episode.onnx` (a whole
greedy episode, where tools answer nothing), and `player.py`, which needs NumPy alone.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import click

from toolagent import cli
from toolagent.checkpoints.storage import is_uri
from toolagent.cli.activity import Activity
from toolagent.errors import UserError
from toolagent.installation import install_command

NEEDED = ("onnx", "onnxruntime", "onnxscript")


@click.command(epilog=cli.examples("python -m toolagent.export runs/my-run --output-dir exported"))
@click.argument("checkpoint", metavar="CHECKPOINT", type=cli.PATH)
@click.option(
    "--output-dir",
    required=True,
    metavar="DIR",
    type=cli.PATH,
    help="A new or empty folder.",
)
@cli.code_options
def command(checkpoint: str, output_dir: str, task: str | None, network: str | None) -> int:
    """Export CHECKPOINT as safetensors with a model card, as ONNX, and with a player that needs
    NumPy alone; then play all of them on every problem there is and compare their tokens.

    CHECKPOINT is a checkpoint's folder, or a run's folder (then its last checkpoint).
    """
    if not output_dir:
        raise UserError("--output-dir: is empty; name a folder")
    if is_uri(output_dir):
        raise UserError(f"--output-dir {output_dir}: name a folder on this machine")
    with Activity(cli.console()) as activity:
        activity.loading("torch")
        from toolagent.checkpoints.policy import load_policy
        from toolagent.checkpoints.run_folder import new_folder
        from toolagent.export.writing import check_exportable, export

        policy = load_policy(checkpoint, task=task, network=network)
        folder = new_folder(Path(output_dir), policy.task.name, None)
        policy.check_outside(folder)
        missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
        if missing:
            raise UserError(f"{', '.join(missing)}: not installed; {install_command('export')}")
        check_exportable(policy)
        return export(policy, folder, activity)


if __name__ == "__main__":
    sys.exit(cli.main(command))
