"""Writes a checkpoint's export, and compares it with the checkpoint."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import torch

from toolagent import cli
from toolagent.checkpoints.policy import POLICY_FILE, WEIGHTS_FILE, Policy, weights_file
from toolagent.cli.activity import Activity
from toolagent.errors import UserError
from toolagent.export import player
from toolagent.export.card import model_card
from toolagent.files import write_atomically
from toolagent.models.registry import NETWORKS, network_name
from toolagent.rollouts.certification import certify
from toolagent.tasks.registry import reference_of_task


def check_exportable(policy: Policy) -> None:
    """Refuses what can't be played without this project.

    Raises:
        UserError: the network is of another module.
    """
    name = network_name(type(policy.network))
    if not player.has_part(name):
        known = ", ".join(one for one in NETWORKS if player.has_part(one))
        raise UserError(f"the network {name} can't be exported; those that can be are {known}")


def export(policy: Policy, output_dir: Path, activity: Activity) -> int:
    """Writes the folder, `policy.json` last, and prints its files and the comparison.

    Returns:
        The exit code: 1 if the tokens of an artefact differ from the checkpoint's.

    Raises:
        UserError: the folder can't be written.
    """
    activity.loading("onnx", "onnxruntime")
    from toolagent.export.check import compare
    from toolagent.export.graphs import write_graphs

    torch.set_num_threads(1)  # the network is small
    try:
        # Inside of a folder that is there: it may be a link or a mount, which nothing replaces.
        output_dir.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".", dir=output_dir))
    except OSError as error:
        raise UserError(f"--output-dir {output_dir}: can't be written ({error.strerror})") from None
    try:
        (temporary / WEIGHTS_FILE).write_bytes(weights_file(policy.network))
        (temporary / "player.py").write_text(
            player.source(
                network_name(type(policy.network)),
                reference_of_task(policy.task),
                bool(policy.task.response_length),
            ),
            encoding="utf-8",
        )
        activity.step("writing the ONNX graphs")
        write_graphs(policy.network, policy.task, temporary)
        activity.step("certifying the checkpoint")
        stages = certify(policy.network, policy.task)
        card = model_card(policy, stages, temporary)
        _write_card(temporary, card)
        activity.step("comparing what was written with the checkpoint, problem by problem")
        compared = compare(policy.network, policy.task, temporary)
        shutil.rmtree(temporary / "__pycache__", ignore_errors=True)
        _write_card(temporary, card | {"compared": compared.record()})
        files = sorted(temporary.iterdir(), key=lambda file: file.name == POLICY_FILE)
        for file in files:  # `policy.json` last: a folder that has one is complete
            os.replace(file, output_dir / file.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)

    activity.end()
    console, trained = activity.console, policy.metadata.get("trained_stages")
    console.print(
        f"task {policy.task.name}, checkpoint {cli.one_line(policy.place)}\n"
        f"exported to {cli.one_line(output_dir)}\n",
        soft_wrap=True,
    )
    cli.print_table(console, cli.stage_table(policy.task, stages, trained))
    for note in cli.stage_notes(stages, trained):
        cli.say(console, note)
    which = "every problem there is" if compared.complete else "a fixed sample"
    cli.say(console, f"\nthe checkpoint's greedy tokens on {which}:")
    table = cli.table("file", "size", "identical", right=("size", "identical"))
    for name, count in compared.identical.items():
        size = (output_dir / name).stat().st_size
        table.add_row(name, f"{size / 1000:,.0f} kB", f"{count:,}/{compared.problems:,}")
    if compared.answers_identical is not None:
        table.add_row(
            "player.py, its answers", "", f"{compared.answers_identical:,}/{compared.problems:,}"
        )
    cli.print_table(console, table)
    cli.say(
        console,
        f"\nthe two best logits are at least {compared.smallest_margin:.2g} apart; "
        f"torch's and ONNX's differ\nby at most {compared.largest_difference:.2g}",
    )
    if not compared.all_identical:
        console.print("they differ: see `compared` in policy.json", style="bold red")
        return 1
    return 0


def _write_card(folder: Path, card: dict) -> None:
    write_atomically(folder / POLICY_FILE, (json.dumps(card, indent=2) + "\n").encode())
