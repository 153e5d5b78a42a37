"""Gradients of several learners; that they are the means is tested with real ones in
`test_algorithm`."""

from __future__ import annotations

import pytest
import torch
from torch import distributed
from torch.nn import Parameter

from toolagent.learning.averaging import averaged


@pytest.fixture
def alone():
    """A process group of this process."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_each_parameter_gets_its_own_part_of_the_message():
    matrix, number, unused = (Parameter(torch.ones(shape)) for shape in [(2, 3), (), (4,)])
    frozen = Parameter(torch.ones(5), requires_grad=False)
    gradients = {
        matrix: torch.arange(6.0).reshape(3, 2).T,  # not contiguous
        frozen: None,
        number: torch.tensor(7.0),
        unused: None,  # may have one in another learner
    }
    means = averaged(gradients)
    assert list(means) == list(gradients) and means[frozen] is None
    assert torch.equal(means[matrix], gradients[matrix])
    assert means[number].item() == 7
    assert means[unused].tolist() == [0, 0, 0, 0]
