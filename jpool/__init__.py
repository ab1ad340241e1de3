"""Max pooling in JAX, exact and differentiable, and what happens to gradients that pass through it in a batch.

Read the modules in this order; each imports only from those before it. Pooling and its derivative:

    arguments        what arguments may be, and every error that they can have
    geometry         the integers of a pooling
    pooling/steps    how a large window is divided into steps, and what differs between platforms
    pooling/ties     the four rules for ties
    pooling/grid     where windows and elements meet: which taps cover an element
    pooling/windows  how windows read an array
    pooling/forward  select: the value and the winner of every window
    pooling/backward route and gather: what to do once the winners are known
    pooling/primitives  the same as primitives of JAX, lowered for each platform
    pooling/vjp      the derivative, in reverse mode and in forward mode
    pooling/cpu/     select and route arranged for XLA:CPU; everything works without it
    examples         what an example may be
    pooling/max_pool max_pool and min_pool
    argmax           max_pool_with_argmax, and its places as other libraries number them
    parts            windows of different sizes: regular poolings side by side
    adaptive         adaptive_max_pool and global_max_pool
    linear           a linear map that brings its own transpose
    unpooling        max_unpool

Gradients of examples, which know nothing of pooling:

    devices          the batch axis over the devices of a mesh, and what is refused there
    microbatches     a batch in parts, one after the other in one program
    per_example      the gradient of every example by itself, and their mean
    statistics       what the gradients of a batch have in common, and how they differ
    training         one step of training
"""

from jpool.adaptive import adaptive_max_pool, adaptive_max_pool_with_argmax, global_max_pool
from jpool.argmax import convert_argmax, max_pool_with_argmax
from jpool.geometry import pooled_shape
from jpool.per_example import mean_over_examples, per_example_value_and_grad
from jpool.pooling.max_pool import max_pool, min_pool
from jpool.statistics import GradientStatistics, gradient_statistics
from jpool.training import Metrics, TrainState, make_train_step
from jpool.unpooling import max_unpool

__all__ = [
    "GradientStatistics",
    "Metrics",
    "TrainState",
    "adaptive_max_pool",
    "adaptive_max_pool_with_argmax",
    "convert_argmax",
    "global_max_pool",
    "gradient_statistics",
    "make_train_step",
    "max_pool",
    "max_pool_with_argmax",
    "max_unpool",
    "mean_over_examples",
    "min_pool",
    "per_example_value_and_grad",
    "pooled_shape",
]
__version__ = "0.1.0"
