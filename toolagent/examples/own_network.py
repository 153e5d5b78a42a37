"""A network of your own: a small causal transformer, with `begin` and `unroll` only.

Copy this file to a folder and train it there, by its name:

    python -m toolagent.run --set 'rl_module.model_config={network: own_network:Transformer}'

Other commands import your code only where you name it:

    python -m toolagent.evaluate DIR --network own_network:Transformer
"""

from typing import NamedTuple

import torch
from torch import nn

from toolagent.models import AgentNetwork, InitialState


class Transformer(AgentNetwork):
    """Attends to the context, and to the tokens and responses of the episode so far.

    What a network remembers is one row of numbers an episode, (B, S). Here it is what was observed
    at the last H steps, as token numbers plus 1, with 0 for steps that have not been: attention
    computes the rest of it again. S = H (1 + R), for R tokens of a response.
    """

    class Options(NamedTuple):
        """What `model_config` may hold beside `network`: plain values with defaults."""

        embedding_size: int = 32
        num_heads: int = 2
        num_layers: int = 1

    def __init__(self, interface, options=None):
        super().__init__(interface, options)
        width, heads, layers = self.options
        if width < 1 or width % heads:
            raise ValueError(f"embedding_size is {width}; expected a multiple of {heads} heads")
        self.history = interface.max_actions  # H
        observed, tokens = 1 + interface.response_length, interface.context_vocabulary + 1
        self.columns = torch.arange(observed) * tokens  # each column has a part of the table
        self.token_embedding = nn.Embedding(observed * tokens, width)
        self.context_embedding = nn.Embedding(interface.context_vocabulary, width)
        self.stage_embedding = nn.Embedding(interface.num_stages, width)
        self.place_embedding = nn.Embedding(interface.context_length + self.history + 1, width)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.heads = nn.Linear(width, interface.num_actions + 1)  # logits and the value

    def begin(self, context, stage):
        """Nothing is computed yet: what is kept of the context are its embeddings."""
        places = self.place_embedding.weight[: context.shape[1]]
        read = self.context_embedding(context) + places + self.stage_embedding(stage).unsqueeze(1)
        hidden = read.new_zeros(len(context), self.history * len(self.columns))
        return InitialState((read, context != self.pad_token), hidden)

    def unroll(self, previous_tokens, encoding, hidden, responses=None):
        """T steps at once; step t attends to the context and to steps 0..t."""
        read, shown = encoding
        observed = previous_tokens.unsqueeze(-1)  # (B, T, 1), or (B, T, 1 + R)
        if responses is not None:
            observed = torch.cat([observed, responses], -1)
        past = hidden.view(len(hidden), self.history, -1).long()
        episode = torch.cat([past, observed + 1], 1)  # (B, H + T, 1 + R)
        happened = episode[..., 0] > 0
        place = read.shape[1] + happened.cumsum(1).clamp(max=self.history)
        written = self.token_embedding(episode + self.columns.to(episode.device)).sum(2)
        inputs = torch.cat([read, written + self.place_embedding(place)], 1)  # (B, L + H + T, D)
        exists = torch.cat([shown, happened], 1)
        itself = torch.eye(inputs.shape[1], dtype=torch.bool, device=inputs.device)
        earlier = torch.ones_like(itself).tril()
        hidden_from = ~(earlier & exists.unsqueeze(1) | itself)  # (B, L + H + T, L + H + T)
        mask = hidden_from.repeat_interleave(self.options.num_heads, 0)
        outputs = self.layers(inputs, mask)[:, -observed.shape[1] :]
        logits, values = self.heads(outputs).split([self.interface.num_actions, 1], -1)
        return logits, values.squeeze(-1), episode[:, -self.history :].flatten(1).float()
