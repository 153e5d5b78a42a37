"""The script that measures on a GPU works, as far as a CPU can tell: a GPU is at hand rarely."""

import json
import subprocess
import sys

import gpu_speed
import pytest
import torch

from toolagent.models.network import StageGRUNetwork
from toolagent.tasks import get_task


def test_the_gru_written_out_has_the_network_s_gradients():
    network = StageGRUNetwork(get_task("calculator").interface, (8,))
    played = gpu_speed.episodes(network, 50)
    columns = {name: torch.from_numpy(column) for name, column in played.items()}
    gradients = []
    for cells in (False, True):
        network.zero_grad()
        gpu_speed.Update(network, columns, cells=cells).loss().backward()
        gradients.append([parameter.grad.clone() for parameter in network.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_the_dry_run_measures_every_part(tmp_path):
    file = tmp_path / "figures.json"
    command = [sys.executable, gpu_speed.__file__, "--dry-run", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text())
    for part in ("learner", "pipeline", "update"):
        assert result[part]
        for row in result[part]:
            assert row.get("env_steps_per_s", 0) > 0, row
