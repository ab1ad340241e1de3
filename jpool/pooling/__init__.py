"""Max pooling of one example, and its derivative. Independent of `jpool.per_example`.

To understand it, read three files: `integers/tables`, `plain/forward`, `plain/backward`. They use `Axis` and `Geometry`
of `integers/geometry`; how a large window is divided, `plain/steps`, can wait. Everywhere, `geometry` is a whole
pooling and `pooling` is one of its steps; both are a `Geometry`. To add a rule for ties, read `plain/ties`. To see what
a compiler needs in addition, read `cpu`, `gpu` or `tpu`: the library works without each of these folders. The modules
in order; each imports only modules above it:

    integers/arguments     the arguments of a pooling, and every check of them
    integers/geometry      Axis and Geometry: the integers of a pooling
    integers/tables        which element each tap of each window reads, and which windows cover each element
    plain/arrays           reading at static indices, tables as arrays, the value of padding, the dtype of sums
    plain/ties             the rules for ties
    plain/steps            how a large window is divided into steps
    plain/reductions       axes that one window covers
    plain/forward          one step forward: the value and the winner of every window
    plain/backward         one step back: every cotangent to its winner; and its transpose
    plain/all_steps        select, route and gather: the steps of a pooling one after the other
    slices                 reading by slices and moving by padding, for compilers that read badly at indices
    derivative/primitives  select, route and gather as JAX primitives, with a program for each platform
    derivative/vjp         the derivative of a pooling
    cpu/                   one step arranged for XLA:CPU
    gpu/                   one step arranged for XLA:GPU
    tpu/                   one step arranged for XLA:TPU
    functions/inputs       the array arguments
    functions/pooled_shape pooled_shape
    functions/max_pool     max_pool and min_pool
    functions/argmax       max_pool_with_argmax and convert_argmax
    functions/adaptive     adaptive_max_pool, adaptive_max_pool_with_argmax and global_max_pool
    functions/unpool       max_unpool
    functions/replace      replace_pooling
"""

from jpool.pooling import cpu as cpu  # everything works without these lines and folders
from jpool.pooling import gpu as gpu
from jpool.pooling import tpu as tpu
