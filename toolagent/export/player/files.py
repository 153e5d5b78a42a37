"""Reads the two files beside the player."""

import hashlib
import json

import numpy as np


def load(folder):
    """The card, and the weights: 8 bytes, the length of a JSON header, and then the numbers."""
    card = json.loads((folder / "policy.json").read_bytes())
    data = (folder / "model.safetensors").read_bytes()
    if card.get("format") != 1 or "action_limits" not in card:
        raise ValueError("policy.json is no card of an exported agent, or one of another version")
    if hashlib.sha256(data).hexdigest() != card["weights_sha256"]:
        raise ValueError("policy.json does not fit model.safetensors: its SHA-256 is another")
    begin, weights = 8 + int.from_bytes(data[:8], "little"), {}
    for name, entry in json.loads(data[8:begin]).items():
        if name != "__metadata__":
            start, stop = (begin + offset for offset in entry["data_offsets"])
            weights[name] = np.frombuffer(data[start:stop], "<f4").reshape(entry["shape"])
    return card, weights
