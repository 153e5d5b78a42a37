"""The GRU with attention over the context that keeps no answers: the same without `num_answers`."""

from toolagent.export.player.answer_attention import Network as Network
