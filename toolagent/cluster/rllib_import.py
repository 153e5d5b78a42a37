"""RLlib, imported without Python's garbage collector: to import this module is to import it.

The collector would go through all that is imported so far, again and again: a fifth of the time,
in each process of a run. What is there afterwards stays; it is not searched later either.
"""

import gc

_enabled = gc.isenabled()
gc.disable()
try:
    import ray.rllib.algorithms.ppo  # noqa: F401
finally:
    gc.freeze()
    if _enabled:
        gc.enable()
