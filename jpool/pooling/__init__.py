"""Max pooling of one example, and its derivative. Independent of `jpool.per_example`.

The idea is in `plain/forward` and `plain/backward`. The modules in order; each imports only modules above it:

    integers/arguments     the arguments of a pooling, and every check of them
    integers/geometry      Axis, Geometry, Step: the integers of a pooling
    plain/arrays           constants, padding, and the dtype of sums
    plain/ties             the rules for ties
    plain/steps            how a large window is divided into steps, and what differs between platforms
    plain/phases           which taps cover an element, and arrays with an axis for the phases of a stride
    plain/windows          how windows read an array
    plain/forward          select: the value and the winner of every window
    plain/backward         route, and its transpose gather
    derivative/primitives  select, select_values, route and gather as JAX primitives, with a program for each platform
    derivative/vjp         the derivative of a pooling
    cpu/                   select and route arranged for XLA:CPU; everything works without this folder
    functions/inputs       the array arguments
    functions/pooled_shape pooled_shape
    functions/max_pool     max_pool and min_pool
    functions/argmax       max_pool_with_argmax and convert_argmax
    functions/linear       a linear map with a user-defined transpose
    functions/parts        windows of different sizes as regular poolings of slices
    functions/adaptive     adaptive_max_pool, adaptive_max_pool_with_argmax and global_max_pool
    functions/unpool       max_unpool
"""

from jpool.pooling import cpu as cpu  # everything works without this line
