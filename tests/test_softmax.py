"""Rows that are filled up have the softmax that they have by themselves."""

import pytest
import torch

from toolagent.models.softmax import short_softmax


@pytest.mark.parametrize("length", [1, 2, 14, 15, 16, 17, 40])
def test_it_is_torch_s_with_its_gradient(length):
    torch.manual_seed(length)
    scores = torch.randn(5, 3, length) * 10
    scores[0, 0, 1:] = -1e9  # hidden ones
    results = []
    for function, dtype in ((short_softmax, torch.float32), (torch.softmax, torch.float64)):
        given = scores.to(dtype, copy=True).requires_grad_()
        found = function(given) if function is short_softmax else function(given, -1)
        (found * torch.arange(length)).sum().backward()
        results.append((found.double().detach(), given.grad.double()))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)
