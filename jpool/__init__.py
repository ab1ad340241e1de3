"""Max pooling in JAX, exact and differentiable, and what happens to gradients that pass through it in a batch.

Two packages, which import nothing from each other:

    pooling      max pooling of one example, and its derivative; the order of reading is in its docstring
    per_example  the gradients of the examples of a batch, their mean, statistics, and training

Both use `checks` (of arguments), `jax_extensions` (all of JAX that is not stable public API) and `jaxprs` (other
equations in the record of a computation).
"""

from jpool.per_example.gradients import mean_over_examples, per_example_value_and_grad
from jpool.per_example.statistics import GradientStatistics, gradient_statistics
from jpool.per_example.training import Metrics, TrainState, make_train_step
from jpool.pooling.functions.adaptive import adaptive_max_pool, adaptive_max_pool_with_argmax, global_max_pool
from jpool.pooling.functions.argmax import convert_argmax, max_pool_with_argmax
from jpool.pooling.functions.max_pool import max_pool, min_pool
from jpool.pooling.functions.pooled_shape import pooled_shape
from jpool.pooling.functions.replace import replace_pooling
from jpool.pooling.functions.unpool import max_unpool

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
    "replace_pooling",
]
__version__ = "0.1.0"
