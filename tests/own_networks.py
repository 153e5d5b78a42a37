"""Networks of another module with `begin` and `unroll` only, as a stranger writes them."""

from typing import NamedTuple

import torch
from torch import nn

from toolagent.models import AgentNetwork, InitialState


class _Recurrent(AgentNetwork):
    """torch's own recurrent layer between embeddings and heads."""

    class Options(NamedTuple):
        width: int = 24

    def __init__(self, interface, options=None):
        super().__init__(interface, options)
        width = self.options.width
        if width < 1:
            raise ValueError(f"width is {width}; it must be at least 1")
        self.context = nn.Linear(interface.context_length * interface.context_vocabulary, width)
        self.stage = nn.Embedding(interface.num_stages, width)
        self.token = nn.Embedding(interface.context_vocabulary, width)
        self.answers = nn.ModuleList(
            nn.Embedding(interface.context_vocabulary, width)
            for _ in range(interface.response_length)
        )
        self.policy = nn.Linear(width, interface.num_actions)
        self.value = nn.Linear(width, 1)

    def read_context(self, context, stage):
        one_hot = nn.functional.one_hot(context, self.interface.context_vocabulary).float()
        return torch.tanh(self.context(one_hot.flatten(1)) + self.stage(stage))

    def inputs(self, previous_tokens, responses):
        embedded = self.token(previous_tokens)
        for place, table in enumerate(self.answers):
            embedded = embedded + table(responses[..., place])
        return embedded


class GRU(_Recurrent):
    """Its state is the layer's."""

    def __init__(self, interface, options=None):
        super().__init__(interface, options)
        self.layer = nn.GRU(self.options.width, self.options.width, batch_first=True)

    def begin(self, context, stage):
        return InitialState((), self.read_context(context, stage))

    def unroll(self, previous_tokens, encoding, hidden, responses=None):
        inputs = self.inputs(previous_tokens, responses)
        outputs, last = self.layer(inputs, hidden.unsqueeze(0))
        return self.policy(outputs), self.value(outputs).squeeze(-1), last.squeeze(0)


class LSTM(_Recurrent):
    """Its state is the layer's two, side by side; the context is given at every step."""

    def __init__(self, interface, options=None):
        super().__init__(interface, options)
        self.layer = nn.LSTM(self.options.width, self.options.width, batch_first=True)

    def begin(self, context, stage):
        read = self.read_context(context, stage)
        return InitialState((read,), torch.cat([read, torch.zeros_like(read)], 1))

    def unroll(self, previous_tokens, encoding, hidden, responses=None):
        inputs = self.inputs(previous_tokens, responses) + encoding[0].unsqueeze(1)
        states = tuple(part.unsqueeze(0).contiguous() for part in hidden.chunk(2, 1))
        outputs, last = self.layer(inputs, states)
        hidden = torch.cat([part.squeeze(0) for part in last], 1)
        return self.policy(outputs), self.value(outputs).squeeze(-1), hidden
