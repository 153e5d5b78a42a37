"""Task `expression_long`: the same as `expression`; how long a problem may be is in the card."""

from toolagent.export.player.expression import FLAG as FLAG
from toolagent.export.player.expression import answer as answer
from toolagent.export.player.expression import read as read
