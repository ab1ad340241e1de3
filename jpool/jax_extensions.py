"""What the library uses of JAX beyond its stable public functions, in one place.

JAX may change these between releases without a deprecation period. Each use has tests that fail if that happens.

==========================================  ===========================================================================
`Primitive`, `ad`, `batching`, `mlir`       select, route, gather as primitives with derivatives, batching and programs
(`jax.extend.core`, `jax.interpreters`),    per platform. Without them: `custom_jvp` and `custom_vjp` around the plain
`jax.core.ShapedArray`                      functions, slower to trace, and no rule for batches.
`manual_axis_type` of `jax.typeof`          which arrays differ between devices in a `jax.shard_map`. Without it:
                                            gradients there are summed over devices, which is wrong.
`sharding` of `jax.typeof`, `update`        result types on Explicit meshes. Without it: such meshes must be refused.
`Jaxpr`, `Literal`, `jaxpr_as_fun`,         the layout of convolutions in per-example gradients. Without them: wrong
`jaxprs_in_params`, `primitives`            gradients of examples that XLA alone knows to be split, slow loops on a CPU.
(`jax.extend.core`); fields of equations    And `replace_pooling`.
`jax.core.Tracer`                           whether an array has a value to check. Without it: no checks of values.
==========================================  ===========================================================================
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import jax
from jax.extend import core as core
from jax.extend.core import Primitive as Primitive
from jax.interpreters import ad, batching, mlir

Transposed = Callable[..., tuple[Primitive, dict[str, Any]]]


def is_traced(array: Any) -> bool:
    """Whether an array has no value yet, because JAX is tracing."""
    return isinstance(array, jax.core.Tracer)


def is_staging() -> bool:
    """Whether JAX is recording a program, so that results of operations have no values."""
    return is_traced(jax.lax.full((), 0.0))


def varying_axes(array: Any) -> frozenset[str]:
    """The mesh axes of a surrounding `jax.shard_map` along which an array differs between devices."""
    return jax.typeof(array).manual_axis_type.varying


def mark_varying(arrays: Sequence[Any], axes: frozenset[str]) -> list[Any]:
    """The arrays, each marked as different along all these mesh axes."""
    missing = [tuple(sorted(axes - varying_axes(array))) for array in arrays]
    pairs = zip(arrays, missing, strict=True)
    return [jax.lax.pcast(array, names, to="varying") if names else array for array, names in pairs]


def with_partitions(sharding: Any, partitions: Sequence[Any]) -> Any:
    """The same sharding, with the given mesh axes along the axes of an array."""
    return sharding.update(spec=sharding.spec.update(partitions=partitions))


def result_type(operands: Sequence[Any], shape: Sequence[Any], kept_axes: Iterable[int], dtype: Any = None) -> Any:
    """The type of a result: sharded as the operands are along the kept axes, replicated along the others.

    Operands may have fewer axes than the result: their last ones. Without dtype it is that of the last operand, and
    promoted as that one is.
    """
    partitions = [None] * len(shape)
    for i in kept_axes:
        names = [one.sharding.spec[i - len(shape)] for one in operands if len(shape) - i <= len(one.shape)]
        partitions[i] = next((name for name in names if name is not None), None)
    like, shardings = operands[-1], [one.sharding for one in operands]
    sharding = next((sharding for sharding in shardings if not sharding.mesh.empty), like.sharding)
    sharding = with_partitions(sharding, partitions)
    is_weak = like.weak_type and dtype is None
    return like.update(shape=tuple(shape), dtype=dtype or like.dtype, weak_type=is_weak, sharding=sharding)


def plain_type(like: Any) -> Any:
    """The type of an array of the same shape and dtype that is not on a mesh."""
    return jax.core.ShapedArray(like.shape, like.dtype)


def repeat_for_batch(array: Any, batch: Any) -> Any:
    """The array once for each example of a batch, split over devices as the batch is."""
    sharding = jax.typeof(batch).sharding
    if sharding.mesh.empty or sharding.spec[0] is None:
        sharding = None
    else:
        sharding = with_partitions(sharding, [sharding.spec[0], *jax.typeof(array).sharding.spec])
    shape = (batch.shape[0], *array.shape)
    return jax.lax.broadcast_in_dim(array, shape, range(1, len(shape)), out_sharding=sharding)


def no_tangent(primal: Any) -> Any:
    """The tangent of something that does not depend on what is differentiated."""
    return ad.Zero(jax.typeof(primal).to_tangent_aval())


def is_zero(tangent: Any) -> bool:
    """Whether a tangent or cotangent is known to be zero."""
    return isinstance(tangent, ad.Zero)


def bind(primitive: Primitive, *operands: Any, **params: Any) -> Any:
    """Inside `jax.shard_map`, an operand that is equal on all devices is marked as varying if another one varies."""
    axes = frozenset[str]().union(*map(varying_axes, operands))
    return primitive.bind(*(mark_varying(operands, axes) if axes else operands), **params)


def define_eager(primitive: Primitive) -> None:
    """Eager calls run compiled, even under `jax.disable_jit`: a primitive has no other way to run."""

    @partial(jax.jit, static_argnums=0)
    def compiled(params: tuple[Any, ...], *operands: Any) -> Any:
        return primitive.bind(*operands, **dict(params))

    def run(*operands: Any, **params: Any) -> Any:
        with jax.disable_jit(False):
            return compiled(tuple(params.items()), *operands)

    primitive.def_impl(run)


def define_linear(primitive: Primitive, transposed: Transposed) -> None:
    """The derivatives of a primitive that is linear in its last operand. The others are residuals.

    `transposed(**params)` is the primitive that maps (*residuals, ct) to the cotangent of the last operand, and its
    params.
    """

    def jvp(primals: Any, tangents: Any, **params: Any) -> Any:
        out = primitive.bind(*primals, **params)
        if is_zero(tangents[-1]):
            return out, no_tangent(out)
        return out, primitive.bind(*primals[:-1], tangents[-1], **params)

    def transpose(ct: Any, *operands: Any, **params: Any) -> list[Any]:
        *residuals, _ = operands
        if not is_zero(ct):
            other, other_params = transposed(**params)
            ct = other.bind(*residuals, ct, **other_params)
        return [*[None] * len(residuals), ct]

    ad.primitive_jvps[primitive] = jvp
    ad.primitive_transposes[primitive] = transpose


def define_jvp(primitive: Primitive, jvp: Callable[..., Any]) -> None:
    """The derivative of any other primitive."""
    ad.primitive_jvps[primitive] = jvp


def define_batching(primitive: Primitive, rule: Callable[..., Any]) -> None:
    """What `jax.vmap` does with the primitive: `rule(operands, axes, **params) -> (results, axes)`."""
    batching.primitive_batchers[primitive] = rule


def define_lowering(primitive: Primitive, function: Callable[..., Any], platform: str | None = None) -> None:
    """Lowers a primitive as a function of its operands and params, for one platform or for all.

    The function sees plain arrays and no mesh: XLA's partitioner decides what each device computes. With the mesh of a
    surrounding `jax.set_mesh`, JAX would put everything that the function computes on every device, whole.
    """

    def rule(ctx: Any, *operands: Any, **params: Any) -> Any:
        lowered = mlir.lower_fun(partial(function, **params), primitive.multiple_results)
        with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
            return lowered(ctx.replace(avals_in=[plain_type(aval) for aval in ctx.avals_in]), *operands)

    mlir.register_lowering(primitive, rule, platform=platform)
