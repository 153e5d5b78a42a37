"""The expression config held to its bar: a full training run, judged by `evaluate`."""

import json
import subprocess
import sys

import pytest

SEED = 3000


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_shipped_config_reads_plans_and_generalises(tmp_path):
    """Seven minutes on two cores. Nothing of six operands, and no held-out skeleton, is trained."""
    run = tmp_path / "run"
    command = [sys.executable, "-m", "toolagent.run", "--config", "expression"]
    subprocess.run(
        [*command, "--seed", str(SEED), "--output-dir", str(run), "--set", "run.dashboard=false"],
        check=True,
    )
    summary = json.loads((run / "summary.json").read_text())
    assert summary["wall_time_s"] < 600

    subprocess.run(
        [sys.executable, "-m", "toolagent.evaluate", str(run), "--json", str(tmp_path / "e.json")],
        check=True,
    )
    stages = {row["stage"]: row for row in json.loads((tmp_path / "e.json").read_text())["stages"]}
    for stage, accuracy in {3: 0.999, 4: 0.995, 5: 0.98, 6: 0.90}.items():
        assert stages[stage]["accuracy"] >= accuracy, stage
    for stage, valid in {4: 0.98, 5: 0.95}.items():
        assert stages[stage]["held_out"]["algebraically_valid"] >= valid, stage
