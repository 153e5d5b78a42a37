"""torch's compiler takes a second to load, in each process of a run: nobody loads it by the way."""

import subprocess
import sys

from processes import own_environment

PROGRAM = """
import sys
import torch
from toolagent.models.compiler import load_compiler_late

load_compiler_late()
layer = torch.nn.Linear(3, 1)
optimizer = torch.optim.Adam(layer.parameters())
optimizer.zero_grad()
layer(torch.ones(2, 3)).sum().backward()
optimizer.step()
torch.use_deterministic_algorithms(True)
assert torch.are_deterministic_algorithms_enabled()
assert not {"torch._dynamo", "torch._inductor"} & sys.modules.keys()

import torch._dynamo, torch._inductor.config

assert torch._inductor.config.deterministic
optimizer.step()
optimizer.load_state_dict(optimizer.state_dict())
for name in ("state_dict", "load_state_dict"):
    made = getattr(getattr(torch.optim.Optimizer, name).__wrapped__, "__dynamo_disable")
    assert made._torchdynamo_disable
torch.use_deterministic_algorithms(False)
assert not torch._inductor.config.deterministic
assert not torch.are_deterministic_algorithms_enabled()
"""


def test_the_compiler_is_loaded_by_who_uses_it_and_told_then():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=own_environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
