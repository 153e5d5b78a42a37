"""The networks that are known by name, and those of other modules."""

from __future__ import annotations

from toolagent.errors import UserError, nearest
from toolagent.models.answer_attention import AnswerAttentionNetwork
from toolagent.models.base import AgentNetwork
from toolagent.models.call_stack import CallStackNetwork
from toolagent.models.encoder_decoder import EncoderDecoderNetwork
from toolagent.models.network import StageGRUNetwork
from toolagent.models.recurrent import RecurrentNetwork
from toolagent.outside import file_of, is_outside, load_class, reference_of
from toolagent.vocabulary import Interface

DEFAULT_NETWORK = "stage_gru"
# Every network in use, by its name in `rl_module: {model_config: {network: ...}}`: of another
# module 'module:Class'. A checkpoint calls this package's own by their classes.
NETWORKS: dict[str, type[AgentNetwork]] = {
    "stage_gru": StageGRUNetwork,
    "encoder_decoder": EncoderDecoderNetwork,
    "answer_attention": AnswerAttentionNetwork,
    "recurrent": RecurrentNetwork,
    "call_stack": CallStackNetwork,
}
_KINDS = (bool, int, float, str)
# What model configs and checkpoints hold beside the options.
_TAKEN = ("task", "network", "max_seq_len", "class", "context_vocabulary", "num_actions")
_TAKEN += Interface._fields


def network_class(name: str) -> type[AgentNetwork]:
    """The network of that name; one of another module, 'my_module:MyNetwork', is imported.

    Raises:
        UserError: there is none, it can't be imported, or it is no whole network.
    """
    if name in NETWORKS:
        return NETWORKS[name]
    if not is_outside(name):
        raise UserError(
            f"no network '{name}'; {nearest(name, NETWORKS)} (a network of your own is named as "
            "my_module:MyNetwork)"
        )
    found: type[AgentNetwork] = load_class(name, AgentNetwork)
    where = f"{file_of(found)}: network {found.__name__}"
    missing = sorted(getattr(found, "__abstractmethods__", ()))
    if missing:
        raise UserError(f"{where} has no {', '.join(missing)}")
    if not (isinstance(found.Options, type) and hasattr(found.Options, "_field_defaults")):
        raise UserError(f"{where}: Options is {found.Options!r}; expected a typing.NamedTuple")
    for field in found.Options._fields:
        if field in _TAKEN:
            raise UserError(f"{where}: no option can be called {field}; choose another name")
        if type(found.Options._field_defaults.get(field)) not in _KINDS:
            raise UserError(
                f"{where}: its option {field} has no default that is a number, a text, true or "
                "false"
            )
    NETWORKS[name] = found
    return found


def network_name(network: type[AgentNetwork]) -> str:
    """What configurations call a network: 'stage_gru', 'my_module:MyNetwork'."""
    for name, known in NETWORKS.items():
        if known is network:
            return name
    return reference_of(network)
