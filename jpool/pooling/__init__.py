"""Max pooling of one example, and its derivative. Independent of `jpool.per_example`.

Read in this order; each module imports only modules above it:

    integers/arguments     the arguments of a pooling, and every error that they can have
    integers/geometry      Axis, Geometry, Step: the integers of a pooling
    integers/parts         windows of different sizes as regular poolings of slices
    plain/ties             the rules for ties
    plain/steps            how a large window is divided into steps, and what differs between platforms
    plain/phases           which taps cover an element, and arrays with an axis for the phases of a stride
    plain/windows          how windows read an array
    plain/forward          select: the value and the winner of every window
    plain/backward         route, and its transpose gather
    derivative/primitives  select, route and gather as JAX primitives, with a program for each platform
    derivative/vjp         the derivative of a pooling
    derivative/linear      a linear map with a user-defined transpose
    cpu/                   select and route arranged for XLA:CPU; everything works without this folder
    functions/arrays       the array arguments
    functions/pooled_shape pooled_shape
    functions/max_pool     max_pool and min_pool
    functions/argmax       max_pool_with_argmax and convert_argmax
    functions/adaptive     adaptive_max_pool, adaptive_max_pool_with_argmax and global_max_pool
    functions/unpool       max_unpool
"""

from jpool.pooling import cpu as cpu  # everything works without this line
from jpool.pooling.functions.adaptive import adaptive_max_pool, adaptive_max_pool_with_argmax, global_max_pool
from jpool.pooling.functions.argmax import convert_argmax, max_pool_with_argmax
from jpool.pooling.functions.max_pool import max_pool, min_pool
from jpool.pooling.functions.pooled_shape import pooled_shape
from jpool.pooling.functions.unpool import max_unpool

__all__ = [
    "adaptive_max_pool",
    "adaptive_max_pool_with_argmax",
    "convert_argmax",
    "global_max_pool",
    "max_pool",
    "max_pool_with_argmax",
    "max_unpool",
    "min_pool",
    "pooled_shape",
]
