"""The vocabulary of `tutorial`, `calculator` and `expression`.

All 18 tokens are actions: one that means nothing in a state changes nothing and costs a step.
"""

from __future__ import annotations

from toolagent.vocabulary import Vocabulary

CTX = 10  # ends the shown problem in a context; also the previous token of the first step
MUL = 11
ADD = 12
SUB = 13
ANS = 14  # answers and ends the episode
STO = 15
RCL = 16
EOS = 17  # pads a context to its full length

NUM_TOKENS = 18

TOOLS = ("MUL", "ADD", "SUB", "STO", "RCL", "ANS")  # what may do something to a register
VOCABULARY = Vocabulary(
    actions=(*"0123456789", "CTX", "MUL", "ADD", "SUB", "ANS", "STO", "RCL", "EOS"),
    start="CTX",
    pad="EOS",
    answer="ANS",
)
