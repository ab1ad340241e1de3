"""Max pooling in JAX, exact and differentiable, and what happens to gradients that pass through it in a batch.

Read the rooms in this order; each imports only from those before it:

    geometry      the integers of a pooling, and every error that they can have
    steps         how a window is taken apart into steps that compile fast and run fast
    runs          which windows are computed together
    slices        how arrays are read and written: static slices, in place, in one pass
    selection     select: which element of each window wins
    routing       route and gather: what to do once the winners are known
    pooling       max_pool and its derivative
    per_example   the gradient of every example by itself, and their mean
    training      one step of training
"""

from jpool.per_example import mean_over_examples, per_example_value_and_grad
from jpool.pooling import max_pool
from jpool.training import Metrics, TrainState, make_train_step

__all__ = [
    "Metrics",
    "TrainState",
    "make_train_step",
    "max_pool",
    "mean_over_examples",
    "per_example_value_and_grad",
]
__version__ = "0.1.0"
