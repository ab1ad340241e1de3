"""The arguments of per-example gradients and training, checked before JAX sees them.

A leaf of a pytree that is of the wrong kind is named by its path, such as `params['conv']['w']`.
"""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jpool.jax_extensions import is_traced


def check_loss(name: str, loss: Any) -> None:
    """Refuses a loss that cannot be called."""
    if not callable(loss):
        raise TypeError(f"{name}: loss must be a function of (params, *example); got {loss!r}.")


def check_optimizer(name: str, optimizer: Any) -> None:
    """Refuses what has no `init` and `update`."""
    if not (callable(getattr(optimizer, "init", None)) and callable(getattr(optimizer, "update", None))):
        raise TypeError(f"{name}: optimizer must be an optax optimiser, such as optax.sgd(0.1); got {optimizer!r}.")


def with_checked_result(name: str, loss: Callable[..., Any], has_aux: bool) -> Callable[..., Any]:
    """The same loss; a result that is not one float, or (float, aux) with has_aux, is an error."""

    def checked(params: Any, /, *example: Any, **named: Any) -> Any:
        result = loss(params, *example, **named)
        if has_aux and not (isinstance(result, tuple) and len(result) == 2):
            raise TypeError(
                f"{name}: with has_aux=True, loss must return (scalar, aux) for ONE example; got {described(result)}."
            )
        value = result[0] if has_aux else result
        if jnp.shape(value) if (numbers := _is_numbers(value)) else True:
            many = " Reduce it, for example by .sum() or .mean()." if numbers else ""
            pair = " Return only the scalar, or use has_aux=True where there is one." if type(result) is tuple else ""
            raise TypeError(
                f"{name}: loss must return one float, the loss of ONE example; got {described(value)}.{many}{pair}"
            )
        if not jnp.issubdtype(jnp.result_type(value), jnp.floating):
            raise TypeError(
                f"{name}: loss must return a float, because other dtypes have no gradient; got {described(value)}. "
                "Convert it, for example by .astype(float), or take the real part."
            )
        if has_aux:
            advice = "Return arrays, and close over the rest."
            _refuse_first(name, "aux", result[1], lambda leaf: not _is_array(leaf), "must hold arrays", advice)
        return result

    return checked


def check_params(name: str, params: Any) -> None:
    """Refuses leaves that are not floats, and deleted arrays."""
    check_floats(name, "params", params)
    check_alive(name, "params", params)


def check_floats(name: str, argument: str, params: Any) -> None:
    """Refuses leaves that are not floats."""
    wrong = lambda leaf: not (_is_numbers(leaf) and jnp.issubdtype(jnp.result_type(leaf), jnp.floating))  # noqa: E731
    _refuse_first(
        name,
        argument,
        params,
        wrong,
        "must hold float arrays only",
        "Give the parameters alone and close over the rest: eqx.partition(model, eqx.is_inexact_array) of Equinox, "
        "nnx.split(model, nnx.Param, ...) of Flax.",
    )


def check_kinds(name: str, batch: tuple[Any, Any]) -> None:
    """Refuses leaves of a batch, (positional, by keyword), that are not arrays of numbers or of random keys."""
    for part in batch:
        advice = "Encode it as numbers, or leave it out."
        _refuse_first(name, "batch", part, lambda leaf: not _is_array(leaf), "must hold arrays of numbers", advice)
        check_alive(name, "batch", part)


def check_alive(name: str, argument: str, tree: Any) -> None:
    """Refuses arrays whose buffers were donated or deleted."""
    dead = lambda leaf: isinstance(leaf, jax.Array) and not is_traced(leaf) and leaf.is_deleted()  # noqa: E731
    returned = "Continue with the state that the step returned" if argument == "state" else "Give an array that exists"
    deleted = "must not be deleted, for example by donation to an earlier call"
    _refuse_first(name, argument, tree, dead, deleted, f"{returned}.", ValueError)


def check_state(name: str, state: Any) -> None:
    """Refuses leaves of a training state that are not arrays, and a number of steps that int32 does not hold."""
    advice = "Make the first state by TrainState.create(params, optimizer)."
    _refuse_first(name, "state", state, lambda leaf: not _is_array(leaf), "must hold arrays of numbers", advice)
    if not isinstance(state.step, jax.Array) and not (_is_numbers(state.step) and 0 <= state.step < 2**31):
        raise ValueError(f"{name}: state.step must be an integer from 0 to 2**31 - 1; got {state.step!r}. {advice}")


def read_weights(name: str, weights: Any) -> Any:
    """The weights as an array of numbers, still in their own dtype; None stays None."""
    if weights is None:
        return None
    expected = f"{name}: weights must be an array of zeros and ones, one for each example"
    advice = "Use for example jnp.array([1, 1, 0]), where 0 marks padding."
    try:
        array = weights if isinstance(weights, jax.Array) else np.asarray(weights)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{expected}; got a {type(weights).__name__} of unequal rows. {advice}") from error
    if isinstance(weights, np.ma.MaskedArray) or not _is_numbers(array) or jnp.iscomplexobj(array):
        raise TypeError(f"{expected}; got {described(weights)}. {advice}")
    check_alive(name, "weights", array)
    return array


def as_mask(weights: Any) -> jax.Array | None:
    """Checked weights as an array of JAX. Those of NumPy become bools: JAX would narrow 64-bit numbers."""
    return weights if weights is None or isinstance(weights, jax.Array) else jnp.asarray(weights != 0)


def missing_arguments(error: Exception) -> str:
    """The names in an error about arguments that an optimiser requires; empty if the error is another one."""
    text = str(error)
    if "required keyword-only argument" in text:  # Python's words
        return ", ".join(re.findall(r"'(\w+)'", text))
    return ", ".join(re.findall(r"^(\w+) must be provided", text))  # optax's


def described(value: Any) -> str:
    """A value for an error text: shape and dtype of an array, else the value and its type."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{type(value).__name__ if not isinstance(value, jax.Array) else 'array'} {value.dtype}{[*value.shape]}"
    return f"{value!r:.80} of type {type(value).__name__}"


def _is_numbers(leaf: Any) -> bool:
    """Whether JAX makes an array of bools or numbers of it."""
    if isinstance(leaf, bool | int | float | complex):
        return True
    if not isinstance(leaf, jax.Array | np.ndarray | np.generic) or isinstance(leaf, np.ma.MaskedArray):
        return False
    dtype = leaf.dtype
    if not isinstance(leaf, jax.Array):  # JAX has no long doubles, time differences, and other orders of bytes
        most = 16 if dtype.kind == "c" else 8
        if dtype.itemsize > most or dtype.kind == "m" or not dtype.isnative:
            return False
    return dtype == np.bool_ or jnp.issubdtype(dtype, np.number)


def _is_array(leaf: Any) -> bool:
    """Whether JAX makes an array of numbers or of random keys of it."""
    return _is_numbers(leaf) or (isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def _refuse_first(
    name: str,
    argument: str,
    tree: Any,
    is_wrong: Callable[[Any], bool],
    expected: str,
    advice: str,
    error: type[Exception] = TypeError,
) -> None:
    """Raises the error for the first leaf that is wrong."""
    if any(map(is_wrong, jax.tree.leaves(tree))):
        path, leaf = next(found for found in jax.tree.leaves_with_path(tree) if is_wrong(found[1]))
        raise error(
            f"{name}: {argument} {expected}; got {described(leaf)} at {argument}{jax.tree_util.keystr(path)}. {advice}"
        )
