"""replace_pooling, the public function: a function with every pooling in it by jpool.

The call is traced to a jaxpr. In it `reduce_window` with max or min, by which Flax, Equinox and Haiku pool, becomes
`select`, jpool's primitive for the values of a pooling (`derivative/primitives`): both take windows along any axes of
an array of any rank. Its derivatives are jpool's. All else is evaluated as it was.
"""

import sys
import warnings
from collections.abc import Callable
from functools import partial, wraps
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from jpool.jax_extensions import core, is_traced
from jpool.jaxprs import Rewriter, calling, equations
from jpool.pooling.derivative.primitives import select_p, select_values
from jpool.pooling.functions.inputs import is_pooled_dtype
from jpool.pooling.integers.geometry import Geometry, over_all_axes
from jpool.pooling.plain.arrays import padding_value

Function = TypeVar("Function", bound=Callable[..., Any])
lax = core.primitives
OF_WINDOWS = {lax.reduce_window_max_p: False, lax.reduce_window_min_p: True}  # whether it is the minimum
OF_PAIRS = {lax.max_p: False, lax.min_p: True}
NEW = -1  # an axis that has been added
DERIVATIVES = {lax.select_and_scatter_add_p, lax.select_and_gather_add_p, lax.select_and_scatter_p}


def replace_pooling(function: Function) -> Function:
    """Returns the same function, with every max or min pooling in it done by jpool. The model itself stays as it is.

    For a loss that calls a model of Flax (nnx or linen), Equinox or Haiku, or `lax.reduce_window` itself. Use the
    result as you would use the function: with `jax.jit`, `jax.grad`, `jax.vmap`, `per_example_value_and_grad`.

    ========================================  =========================================================================
    replaced                                  `lax.reduce_window` with max or min, by which these frameworks pool: any
                                              window, strides, padding, window dilation, rank and axes (batch and
                                              channels need no vmap), any real dtype, any initial value; inside jit,
                                              scan, while_loop, cond, checkpoint, custom_jvp, custom_vjp, shard_map
    stays as it is                            other reductions (`x.max(axis)` too), base dilation, negative padding,
                                              empty results, complex numbers, pooled axes of symbolic size or sharded
                                              over an Explicit mesh; what a `custom_vjp` or `custom_root` computes only
                                              in its derivative
    values                                    equal, bit for bit, where there is no NaN
    gradients                                 equal up to the order of sums, without scatter; for NaN, -inf beside
                                              padding, and sums of 16-bit floats by the rules of `max_pool`. Forward
                                              mode and gradients of gradients work as well
    ========================================  =========================================================================

    The function is traced once more, whenever it is called; under `jax.jit`, once for each signature. So it must be one
    that `jax.jit` can trace, without other side effects than changes of nnx modules among its arguments. Arguments may
    be any pytrees: what is not an array (None, strings, functions, Python numbers) stays what it is.

    Args:
      function: what pools: a loss, a model, `model.apply`. Not yet differentiated: `jax.grad(replace_pooling(loss))`.

    Returns:
      A function of the same arguments with the same result, name, docstring and signature. The first call in which it
      finds no pooling that can be replaced gives a warning.

    Raises:
      TypeError: function is not callable.
      ValueError: (when called) the function differentiates a pooling: JAX has already chosen that gradient.

    Example:
      >>> import jax, jpool
      >>> import jax.numpy as jnp
      >>> def loss(x):  # of a model that pools with lax, as Flax, Equinox and Haiku do
      ...     return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (2, 2), (2, 2), "VALID").sum()
      >>> x = jnp.array([[1.0, 5.0, 2.0, 0.0], [3.0, 4.0, 2.0, 2.0]])
      >>> jax.grad(jpool.replace_pooling(loss))(x)
      Array([[0., 1., 1., 0.],
             [0., 0., 0., 0.]], dtype=float32)
      >>> "select_and_scatter" in jax.jit(jax.grad(loss)).lower(x).as_text()
      True
      >>> "select_and_scatter" in jax.jit(jax.grad(jpool.replace_pooling(loss))).lower(x).as_text()
      False
    """
    if not callable(function):
        raise TypeError(
            "replace_pooling: function must be callable, such as a loss or a model, and not what it returns; got "
            f"{type(function).__name__}: {function!r:.80}."
        )
    name = getattr(function, "__name__", type(function).__name__)
    has_warned = False

    @wraps(function, updated=())
    def replaced(*arguments: Any, **keywords: Any) -> Any:
        nonlocal has_warned
        run = _with_modules if "flax.nnx" in sys.modules else _with_jpool
        result, has_pooling = run(name, function, arguments, keywords)
        if not (has_pooling or has_warned):
            has_warned = True
            text = f"replace_pooling: {name} has no max or min pooling that can be replaced; see its docstring."
            warnings.warn(text, stacklevel=2)
        return result

    return replaced  # type: ignore[return-value]


_COMPUTED = object()  # in the place of a leaf of a result


class _Call(NamedTuple):
    """What a call computes, and the form of its result."""

    jaxpr: Any
    leaves: list[Any]  # of the result
    tree: Any

    def evaluate(self, jaxpr: Any) -> Any:
        """The result, with the outputs of another jaxpr instead."""
        outputs = iter(core.jaxpr_as_fun(jaxpr)())
        leaves = [next(outputs) if leaf is _COMPUTED else leaf for leaf in self.leaves]
        return jax.tree.unflatten(self.tree, leaves)


def _record(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> _Call:
    """A call as a jaxpr without inputs. Arguments are not traced: arrays are constants, and all else is what it was.

    Leaves of the result that are no results of JAX's operations are not part of the jaxpr.
    """
    flat, tree = jax.tree.flatten((function, arguments, keywords))
    form: list[Any] = []

    def outputs() -> list[Any]:
        function, arguments, keywords = jax.tree.unflatten(tree, flat)  # new containers, as under jax.jit
        leaves, result_tree = jax.tree.flatten(function(*arguments, **keywords))
        form[:] = [_COMPUTED if is_traced(leaf) else leaf for leaf in leaves], result_tree
        return list(filter(is_traced, leaves))

    jaxpr = jax.make_jaxpr(outputs)()
    return _Call(jaxpr, *form)


def _with_jpool(name: str, function: Any, arguments: Any, keywords: Any) -> tuple[Any, bool]:
    """The result of the call, and whether it has a pooling of jpool."""
    call = _record(function, *arguments, **keywords)
    found = {equation.primitive for equation in equations(call.jaxpr)}
    if DERIVATIVES & found:
        raise ValueError(
            f"replace_pooling: function must not differentiate a pooling, as {name} does: apply replace_pooling to "
            "what is differentiated, as in jax.grad(jpool.replace_pooling(loss))."
        )
    jaxpr = _rewritten(call.jaxpr)
    return call.evaluate(jaxpr), jaxpr is not call.jaxpr or select_p in found


def _with_modules(name: str, function: Any, arguments: Any, keywords: Any) -> tuple[Any, bool]:
    """The same for arguments that may hold modules of Flax nnx, which the function may change.

    What it leaves unchanged is not written: a module of a surrounding transformation may be read only.
    """
    nnx, tag, is_changed = sys.modules["flax.nnx"], "jpool", False

    def graph(tree: Any) -> Any:
        """What its modules have, apart from the values of their variables."""
        is_module = lambda leaf: isinstance(leaf, (nnx.Pytree, nnx.Variable))  # noqa: E731
        return nnx.graphdef(list(filter(is_module, jax.tree.leaves(tree, is_leaf=is_module))))

    def of_states(states: Any) -> Any:
        nonlocal is_changed
        function, arguments, keywords = modules = nnx.from_tree(states, is_inner=True, ctxtag=tag)
        before = graph(modules)
        result = function(*arguments, **keywords)
        is_changed = graph(modules) != before
        return nnx.to_tree((result, modules), ctxtag=tag)

    with nnx.update_context(tag):
        states = nnx.to_tree((function, arguments, keywords), ctxtag=tag)
        (result, new), has_pooling = _with_jpool(name, of_states, (states,), {})
        pairs = zip(jax.tree.leaves(states), jax.tree.leaves(new), strict=False)
        is_changed = is_changed or any(one is not other for one, other in pairs)
        result, _ = nnx.from_tree((result, new if is_changed else None), is_inner=False, ctxtag=tag)
        return result, has_pooling


def _by_jpool(equation: Any, makers: dict[Any, Any]) -> Any:
    """The rule: an equation, or what takes its place."""
    is_min = _is_min(equation)
    geometry = _geometry(equation) if is_min is not None else None
    if is_min is None or geometry is None:
        return equation
    geometry = geometry._replace(minimum=is_min)
    x, *init = equation.invars
    if init and not (isinstance(init[0], core.Literal) and init[0].val == padding_value(geometry, x.aval.dtype)):
        return calling(partial(_pool_from, geometry), equation)
    source, axes = _source(x, makers)
    moved, pooled = [axis for axis in axes if axis != NEW], [axes[i] for i in geometry.pooled]
    if moved != sorted(moved) and NEW not in pooled and pooled == sorted(pooled):  # so that the same element is first
        return calling(partial(_pool_in_place, geometry, axes), equation, [source])
    return equation.replace(primitive=select_p, invars=[x], params={"geometry": geometry, "with_winners": False})


_rewritten = Rewriter(_by_jpool)


def _source(x: Any, makers: dict[Any, Any]) -> tuple[Any, list[int]]:
    """The array whose axes were moved to make x, and which of its axes each axis of x is, or NEW.

    Equinox moves the channels last before it pools, and back: where the pooling is done before that, XLA removes both.
    """
    axes = list(range(x.aval.ndim))
    while x in makers:
        (x_before, *others), params = makers[x].invars, makers[x].params
        if makers[x].primitive is lax.transpose_p:
            from_axis = params["permutation"]
        elif makers[x].primitive is lax.broadcast_in_dim_p and not others and x_before.aval.size == x.aval.size:
            kept = params["broadcast_dimensions"]
            from_axis = [kept.index(i) if i in kept else NEW for i in range(x.aval.ndim)]
        else:
            break
        axes, x = [NEW if axis == NEW else from_axis[axis] for axis in axes], x_before
    return x, axes


def _pool_in_place(geometry: Geometry, axes: list[int], source: jax.Array) -> list[jax.Array]:
    """The pooling before axes are moved; then its values have theirs moved."""
    moved = [axis for axis in axes if axis != NEW]
    of_source = tuple(geometry.axes[axes.index(axis)] for axis in range(source.ndim))
    values = select_values(geometry._replace(axes=of_source), source)
    return [jnp.expand_dims(values.transpose(moved), [i for i, axis in enumerate(axes) if axis == NEW])]


def _pool_from(geometry: Geometry, x: jax.Array, init: jax.Array) -> list[jax.Array]:
    """A pooling whose windows begin with another value than the lowest; an equal element wins against it."""
    values = select_values(geometry, x)
    is_better = init < values if geometry.minimum else init > values
    return [jnp.where(is_better | (init != init), init, values)]


def _is_min(equation: Any) -> bool | None:
    """Whether it takes the minimum of windows, or the maximum; None if it does neither."""
    if equation.primitive is not lax.reduce_window_p:
        return OF_WINDOWS.get(equation.primitive)
    jaxpr = equation.params["jaxpr"]  # of two elements
    while len(jaxpr.eqns) == 1:
        (only,) = jaxpr.eqns
        if only.invars not in (jaxpr.invars, jaxpr.invars[::-1]) or only.outvars != jaxpr.outvars:
            return None
        inner = list(core.jaxprs_in_params(only.params))
        if not inner:
            return OF_PAIRS.get(only.primitive)
        jaxpr = inner[0]  # of jnp.maximum, which is jitted
    return None


def _geometry(equation: Any) -> Geometry | None:
    """The geometry of its windows, if it is one of jpool's."""
    x, params = equation.invars[0].aval, equation.params
    is_plain = all(step == 1 for step in params["base_dilation"]) and all(min(pad) >= 0 for pad in params["padding"])
    if not (is_plain and is_pooled_dtype(x.dtype)):
        return None
    keys = ("window_dimensions", "window_strides", "padding", "window_dilation")
    geometry = over_all_axes(x.shape, *(params[key] for key in keys))
    if geometry is None or any(x.sharding.spec[i] for i in geometry.pooled):
        return None
    return geometry
