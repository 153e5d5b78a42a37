"""What an answer adds to what a GRU takes in."""

import numpy as np


def heard(w, response, pad):
    """(B, 3D) of the answer to the last token, (B, R) tokens: a vector for each and its place."""
    if response is None:
        return 0
    vectors = w["response_input.vectors"][np.arange(response.shape[1]), response]  # (B, R, 3D)
    return (vectors * (response != pad)[:, :, None]).sum(1)
