"""A batch processed in microbatches, one after the other in one program, so that memory holds only one of them.

    in_microbatches(function, size) :: batch -> (sums, per_example)   for   function :: batch -> (sums, per_example)

The loop is optax's.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

SUMS_AND_ROWS = (optax.microbatching.AccumulationType.SUM, optax.microbatching.AccumulationType.CONCAT)


def in_microbatches(function: Callable[[Any], tuple[Any, Any]], size: int | None) -> Callable[[Any], tuple[Any, Any]]:
    """Applies function to `size` examples at a time, then to the remainder: nothing is padded.

    The first result of function is summed over microbatches; the second has a row for every example.
    """

    def of_batch(batch: Any) -> tuple[Any, Any]:
        if size is None:
            return function(batch)
        count = len(jax.tree.leaves(batch)[0])
        microbatch = min(size, count)
        looped = count - count % microbatch
        if looped > microbatch:
            parts = [_loop(function, batch, looped, microbatch)]
        else:
            parts = [function(_between(batch, 0, microbatch))]
        if looped < count:
            parts.append(function(_between(batch, looped, count)))
        sums, rows = zip(*parts, strict=True)
        return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), *sums), jax.tree.map(_concatenate, *rows)

    return of_batch


def _loop(function: Callable[[Any], tuple[Any, Any]], batch: Any, stop: int, size: int) -> tuple[Any, Any]:
    """The examples before `stop`. The loop is over their indices: given the batch, optax would copy it."""

    def of_indices(indices: jax.Array) -> tuple[Any, Any]:
        return function(jax.tree.map(lambda leaf: jnp.asarray(leaf).at[indices].get(mode="promise_in_bounds"), batch))

    return optax.microbatching.microbatch(of_indices, 0, size, SUMS_AND_ROWS)(jnp.arange(stop))


def _between(batch: Any, start: int, stop: int) -> Any:
    return jax.tree.map(lambda leaf: leaf if stop - start == len(leaf) else leaf[start:stop], batch)


def _concatenate(*rows: jax.Array) -> jax.Array:
    return jnp.concatenate(rows) if len(rows) > 1 else rows[0]
