"""Max pooling of one example, and its derivative."""

from jpool.pooling import cpu as cpu  # the arrangement for XLA:CPU; everything works without this line
