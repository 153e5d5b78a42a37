"""Tries a network out: whether what its methods return has the right shapes and values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from toolagent.errors import UserError
from toolagent.models.base import AgentNetwork, Encoding, InitialState
from toolagent.outside import called, file_of, require

_TRIED = 4  # episodes: not as many as steps, so that no shape fits both
_TOLERANCE = 1e-3  # a state that is left behind changes more than rounding does


def check_network(chosen: type[AgentNetwork], build: Callable[[], AgentNetwork]) -> None:
    """Reads a few problems and unrolls a few steps, at once, step by step and one by one.

    Args:
        chosen: the class, which the messages name.
        build: makes one, of any options.

    Raises:
        UserError: what a method returns is not what `AgentNetwork` says; the message names the
            file and the method.
    """
    where = f"{file_of(chosen)}: network {chosen.__name__}"
    with torch.random.fork_rng(devices=[]):  # the run's own weights stay those of its seed
        torch.manual_seed(0)
        network = called(where, build)
        with torch.no_grad():
            _try(network, where)


def _try(network: AgentNetwork, where: str) -> None:
    interface = network.interface
    steps = min(3, interface.max_actions)
    context = torch.randint(interface.context_vocabulary, (_TRIED, interface.context_length))
    context[1:, 1:] = network.pad_token
    stage = torch.randint(interface.num_stages, (_TRIED,))
    tokens = torch.randint(interface.num_actions, (_TRIED, steps))
    tokens[:, 0] = network.start_token
    responses = None
    if interface.response_length:
        shape = (_TRIED, steps, interface.response_length)
        responses = torch.randint(interface.context_vocabulary, shape)
    first = _begin(network, where, context, stage)
    one = _begin(network, where, context[:1], stage[:1])
    width = first.hidden.shape[1]

    def unroll(
        encoding: Encoding, hidden: Tensor, part: slice = slice(None)
    ) -> tuple[Tensor, Tensor, Tensor]:
        given = [tokens[: len(hidden), part], encoding, hidden]
        if responses is not None:
            given.append(responses[: len(hidden), part])
        result = called(where, network.unroll, *given)
        size, length = given[0].shape
        require(
            isinstance(result, tuple) and len(result) == 3,
            where,
            "unroll returns no (logits, values, hidden)",
        )
        _check(where, "unroll", "logits", result[0], (size, length, interface.num_actions))
        _check(where, "unroll", "values", result[1], (size, length))
        _check(where, "unroll", "hidden", result[2], (size, width))
        return result

    at_once = unroll(*first)
    hidden, pieces = first.hidden, []
    for step in range(steps):
        *outputs, hidden = unroll(first.encoding, hidden, slice(step, step + 1))
        pieces.append(outputs)
    logits, values = (torch.cat(parts, 1) for parts in zip(*pieces, strict=True))
    require(
        _equal((logits, values), at_once[:2]),
        where,
        "unroll gives other logits or values step by step than for all steps at once; all that it "
        "remembers must be in `hidden`, and nothing in it random",
    )
    require(
        _equal([part[:1] for part in at_once], unroll(*one)),
        where,
        "an episode's logits, values or hidden depend on the episodes beside it",
    )


def _begin(network: AgentNetwork, where: str, context: Tensor, stage: Tensor) -> InitialState:
    result = called(where, network.begin, context, stage)
    require(
        isinstance(result, tuple)
        and len(result) == 2
        and isinstance(result[0], tuple)
        and all(isinstance(part, Tensor) and part.shape[:1] == stage.shape for part in result[0]),
        where,
        "begin returns no InitialState: a tuple of tensors of one row an episode, and `hidden`",
    )
    hidden = result[1]
    shape = tuple(hidden.shape) if isinstance(hidden, Tensor) else ()
    width = shape[-1] if shape else 0
    _check(where, "begin", "hidden", hidden, (len(stage), max(1, width)))
    return InitialState(*result)


def _equal(ours: Any, others: Any) -> bool:
    return all(
        torch.allclose(one, other, rtol=_TOLERANCE, atol=_TOLERANCE)
        for one, other in zip(ours, others, strict=True)
    )


def _check(where: str, method: str, name: str, value: Any, shape: tuple[int, ...]) -> None:
    if not isinstance(value, Tensor):
        raise UserError(f"{where}: {method} returns {name} that is no tensor")
    require(
        tuple(value.shape) == shape and value.dtype == torch.float32,
        where,
        f"{method} returns {name} of {str(value.dtype).removeprefix('torch.')}, shape "
        f"{tuple(value.shape)}; expected float32 of shape {shape}",
    )
    require(bool(torch.isfinite(value).all()), where, f"{method} returns {name} not finite")
