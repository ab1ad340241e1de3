"""replace_pooling: the values and gradients of lax without its scatter, wherever the function pools; and what it leaves.

Inputs are whole numbers with many ties, of which lax takes the first as well, and cotangents are whole numbers: sums
are exact, and everything is compared by equality.
"""

import inspect
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jpool
from jpool.jaxprs import equations
from jpool.pooling.derivative.primitives import select_p

pytestmark = pytest.mark.usefixtures("compiled_quickly", "promotion_as_usual")
X = np.random.default_rng(0).integers(-3, 6, (2, 8, 6, 3)).astype(np.float32)


def pool(x, window=(1, 2, 2, 1), strides=(1, 2, 2, 1), padding="VALID", by=lax.max, init=-jnp.inf, **options):
    return lax.reduce_window(x, np.asarray(init, x.dtype), by, window, strides, padding, **options)


same = partial(pool, window=(1, 3, 3, 1), strides=(1, 1, 1, 1), padding="SAME")
TWO = (1, 1, 2, 2), (1, 1, 2, 2)  # windows and strides, channels first
ZEROS = ((0, 0), (1, 1), (2, 1), (0, 0))


def with_rule(rule):
    """The double of a pooling, with its derivative by hand: every element of a window receives the cotangent."""
    spread = lambda ct: jnp.repeat(jnp.repeat(ct, 2, 1), 2, 2)  # noqa: E731
    if rule == "jvp":
        function = jax.custom_jvp(lambda x: 2 * pool(x))
        function.defjvp(lambda xs, ts: (2 * pool(xs[0]), pool(xs[0]) * (ts[0][:, ::2, ::2] + ts[0][:, 1::2, 1::2])))
    else:
        function = jax.custom_vjp(lambda x: 2 * pool(x))
        function.defvjp(lambda x: (2 * pool(x), pool(x)), lambda pooled, ct: (spread(ct * pooled),))
    return function


of_devices = partial(jax.shard_map, in_specs=P("d"), out_specs=P("d"))
devices = lambda kind=AxisType.Auto: jax.make_mesh((2,), ("d",), devices=jax.devices()[:2], axis_types=(kind,))  # noqa: E731
POOLING = {
    "VALID": pool,
    "SAME": same,
    "padded": partial(pool, window=(1, 3, 3, 1), padding=ZEROS),
    "minimum": partial(pool, window=(1, 3, 2, 1), by=lax.min, init=jnp.inf, padding="SAME"),
    "over all axes": partial(pool, window=(2, 3, 2, 2), strides=(1, 2, 1, 1), padding="SAME"),
    "over the first and the last": partial(pool, window=(2, 1, 1, 3), strides=(1, 1, 1, 1)),
    "rank 1": lambda x: lax.reduce_window(x.ravel(), -jnp.inf, lax.max, (3,), (2,), "SAME"),
    "rank 5": lambda x: lax.reduce_window(x[None], -jnp.inf, lax.max, (1, 1, 2, 2, 1), (1, 1, 2, 2, 1), "VALID"),
    "negated": lambda x: -pool(-x),
    "channels moved last, and back": lambda x: pool(x.transpose(0, 2, 1, 3).transpose(0, 2, 3, 1)[:, None].swapaxes(0, 1)[0].transpose(0, 3, 2, 1)),
    "over new axes": lambda x: lax.reduce_window(x.T[:, None, :, :, None], -np.inf, lax.max, (1, 1, 2, 3, 1, 2), (1, 1, 2, 1, 1, 1), "VALID"),
    "over a new axis with padding": lambda x: lax.reduce_window(x.T[None], -np.inf, lax.max, (2, 1, 2, 3, 1), (1, 1, 2, 1, 1), "SAME"),
    "over a repeated axis": lambda x: lax.reduce_window(jnp.broadcast_to(x.T[None], (2, 3, 6, 8, 2)), -np.inf, lax.max, (2, 1, 2, 3, 1), (1, 1, 2, 1, 1), "SAME"),
    "in jit": jax.jit(pool),
    "in vmap": jax.vmap(lambda x: pool(x[None])[0]),
    "in vmap with a name": jax.vmap(lambda x: pool(x[None])[0] - lax.pmax(lax.stop_gradient(x).max(), "i"), axis_name="i"),
    "in scan": lambda x: lax.scan(lambda total, x: (total + pool(x).sum(), pool(x)), 0.0, x[None]),
    "carried by scan": lambda x: lax.scan(lambda x, _: (same(x), None), x, None, length=2)[0],
    "in fori_loop": lambda x: lax.fori_loop(0, 2, lambda _, x: same(x), x),
    "in cond": lambda x: lax.cond(x.sum() > 0, pool, lambda x: -pool(-x), x),
    "in checkpoint": jax.checkpoint(lambda x: pool(jax.nn.relu(x))),
    "in custom_jvp": with_rule("jvp"),
    "in custom_vjp": with_rule("vjp"),
    "in custom_vjp in scan": lambda x: lax.scan(lambda none, x: (none, with_rule("vjp")(x)), None, x[None])[1],
}  # fmt: skip
ON_DEVICES = {
    "in shard_map": lambda x: of_devices(pool, mesh=devices())(x),
    "in custom_vjp in shard_map": lambda x: of_devices(with_rule("vjp"), mesh=devices())(x),
}
WITHOUT_GRADIENT = {  # lax has none of these, and no reverse mode of the first four
    "dilated": partial(pool, window=(1, 3, 2, 1), window_dilation=(1, 2, 3, 1)),
    "by jnp.maximum": partial(pool, by=jnp.maximum),
    "from another value": partial(same, init=1.0),
    "the minimum from another value": partial(same, by=jnp.minimum, init=1.0),
    "in while_loop": lambda x: lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, same(c[1])), (0, x))[1],
    **{str(dtype): lambda x, dtype=dtype: same(x.astype(dtype), init=limit(dtype)).astype(float) for dtype in (bool, np.int8, np.uint8, jnp.bfloat16, jnp.float8_e4m3fn)},
}  # fmt: skip


def limit(dtype):
    floating = jnp.issubdtype(dtype, jnp.floating)
    return False if dtype is bool else jnp.finfo(dtype).min if floating else jnp.iinfo(dtype).min


def weighted(function):
    """A sum of the results with whole numbers as weights."""

    def of(x):
        leaves = jax.tree.leaves(function(x))
        return sum((leaf * (1 + jnp.arange(leaf.size).reshape(leaf.shape) % 7)).sum() for leaf in leaves)

    return of


@pytest.mark.parametrize(
    ("with_gradient", "others"), [(POOLING, WITHOUT_GRADIENT), (ON_DEVICES, {})], ids=["one device", "several"]
)
def test_values_and_gradients_of_lax_without_its_scatter(with_gradient, others):
    """In one program each; that for one device is apart, because XLA divides lax's gradients wrongly over several."""

    def of_all(x, transformed):
        values = {name: transformed(function)(x) for name, function in (with_gradient | others).items()}
        return values, {name: jax.grad(weighted(transformed(function)))(x) for name, function in with_gradient.items()}

    theirs, ours = (
        jax.jit(partial(of_all, transformed=transformed)).lower(X)
        for transformed in (lambda f: f, jpool.replace_pooling)
    )
    assert "select_and_scatter" in theirs.as_text()
    for instruction in ("reduce_window", "scatter"):
        assert instruction not in ours.as_text()
    expected, actual = jax.device_get((theirs.compile()(X), ours.compile()(X)))
    for of_theirs, of_ours in zip(expected, actual, strict=True):
        for name in of_theirs:
            equal = partial(np.testing.assert_array_equal, strict=True, err_msg=name)
            jax.tree.map(equal, of_ours[name], of_theirs[name])


def test_gradients_that_lax_does_not_have():
    """Windows that begin with 0: an element equal to it wins against it."""
    x = jnp.array([[-1.0, 0.0, -2.0, 3.0], [-1.0, -1.0, 3.0, 1.0]])
    from_zero = jpool.replace_pooling(lambda x: lax.reduce_window(x, 0.0, lax.max, (2, 2), (1, 2), "VALID"))
    assert from_zero(x).tolist() == [[0, 3]]
    assert jax.grad(lambda x: from_zero(x).sum())(x).tolist() == [[0, 1, 0, 1], [0, 0, 0, 0]]
    assert jnp.isnan(
        jpool.replace_pooling(lambda x: lax.reduce_window(x, jnp.nan, lax.max, (2, 4), (1, 1), "VALID"))(x)
    ).all()


def test_forward_mode_and_gradients_of_gradients():
    replaced, x = jpool.replace_pooling(pool), X[:1, :4, :4, :1]
    cubes = lambda function: lambda x: (function(x) ** 3).sum()  # noqa: E731
    both = lambda function: (jax.hessian(cubes(function))(x), jax.jvp(function, (x,), (x + 1,)))  # noqa: E731
    jax.tree.map(np.testing.assert_array_equal, both(replaced), both(pool))


def test_a_pooling_between_moves_of_axes_is_done_before_them_if_the_same_element_stays_first():
    def pooled_shape(*order):
        moved = jpool.replace_pooling(lambda x: lax.reduce_window(x.transpose(order), -np.inf, lax.max, *TWO, "VALID"))
        (select,) = [one for one in equations(jax.make_jaxpr(moved)(X).jaxpr) if one.primitive is select_p]
        return select.invars[0].aval.shape

    assert pooled_shape(0, 3, 1, 2) == X.shape  # height and width in their order
    assert pooled_shape(0, 3, 2, 1) == (2, 3, 6, 8)


# --- the function stays the same ---


def test_arguments_and_results_stay_what_they_are():
    def of_many(x, rows, *, activation, name, nothing=None, options):
        """Its docstring."""
        assert nothing is None
        assert (type(options["array"]), type(rows)) == (np.ndarray, int)
        options["changed"] = name
        return {
            "pooled": activation(pool(x)).reshape(rows, -1),
            "others": (x, rows, name, activation, options["array"]),
        }

    replaced, options, x = jpool.replace_pooling(of_many), {"array": np.ones(2)}, jnp.asarray(X)
    results = replaced(x, 2, activation=jnp.tanh, name="a", options=options)
    np.testing.assert_array_equal(results["pooled"], jnp.tanh(pool(X)).reshape(2, -1))
    assert all(
        one is other for one, other in zip(results["others"], (x, 2, "a", jnp.tanh, options["array"]), strict=True)
    )
    assert set(options) == {"array"}  # it changed its own copy, as under jax.jit
    assert (replaced.__name__, replaced.__doc__) == ("of_many", "Its docstring.")
    assert inspect.signature(replaced) == inspect.signature(of_many)
    jitted = jax.jit(replaced, static_argnames=("rows", "activation", "name"))  # by the signature
    with pytest.raises(KeyError, match="array"):
        jitted(x, 2, activation=jnp.tanh, name="a", options={})


def test_arrays_of_a_surrounding_transformation():
    scaled = lambda transformed: jax.grad(lambda a: transformed(lambda: pool(a * X).sum())())(2.0)  # noqa: E731
    assert scaled(jpool.replace_pooling) == scaled(lambda f: f)
    each = lambda transformed: jax.vmap(lambda x: transformed(lambda: pool(x[None]) * X.max())())(X)  # noqa: E731
    np.testing.assert_array_equal(each(jpool.replace_pooling), each(lambda f: f))


def test_per_example_gradients_donation_and_export():
    loss = lambda w, x: weighted(lambda x: pool(x[None] * w))(x)  # noqa: E731
    replaced = jpool.replace_pooling(loss)
    jax.tree.map(
        np.testing.assert_array_equal,
        jpool.per_example_value_and_grad(replaced)(2.0, X),
        jpool.per_example_value_and_grad(loss)(2.0, X),
    )
    donated = jnp.array(X)
    np.testing.assert_array_equal(jax.jit(jpool.replace_pooling(same), donate_argnums=0)(donated), same(X))
    assert donated.is_deleted()
    (size,) = export.symbolic_shape("size")
    exported = export.export(jax.jit(jpool.replace_pooling(pool)))(jax.ShapeDtypeStruct((size, *X.shape[1:]), X.dtype))
    np.testing.assert_array_equal(exported.call(X), pool(X))


def test_an_explicit_mesh():
    with jax.set_mesh(devices(AxisType.Explicit)):
        x = jax.device_put(X, NamedSharding(devices(AxisType.Explicit), P("d")))
        for function in (pool, partial(pool, init=0.0), POOLING["in cond"], of_devices(partial(pool, init=0.0))):
            ours, theirs = (jax.jit(f)(x) for f in (jpool.replace_pooling(function), function))
            np.testing.assert_array_equal(ours, theirs)
            assert jax.typeof(ours).sharding == jax.typeof(theirs).sharding


def test_outside_of_jit_nothing_is_compiled_twice_and_no_tracer_is_left(caplog):
    inner = jax.jit(pool)
    replaced = jpool.replace_pooling(lambda x: inner(x) + 1)
    replaced(X)
    with jax.log_compiles():
        replaced(X)
    assert "Compiling" not in caplog.text
    with jax.checking_leaks():
        replaced(X)
    with jax.disable_jit():
        np.testing.assert_array_equal(replaced(X), pool(X) + 1)


# --- what is left, and refused ---

LEFT = {
    "base dilation": partial(pool, base_dilation=(1, 2, 2, 1)),
    "negative padding": partial(pool, padding=((0, 0), (-1, 0), (0, 0), (0, 0))),
    "sums": partial(pool, by=lax.add, init=0),
    "another function of two elements": partial(pool, by=lambda a, b: jnp.maximum(a, a), init=0),
    "of two arrays": lambda x: lax.reduce_window((x, x), (0.0, 0.0), lambda a, b: (lax.max(a[0], b[0]), a[1]), (1, 2, 2, 1), (1, 1, 1, 1), "VALID"),
    "no window": partial(pool, window=(1, 9, 9, 1)),
    "no element": lambda x: pool(x[:, :0], padding=ZEROS),
    "reduce_max": lambda x: x.max((1, 2)),
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT)
def test_what_is_left_is_as_before_and_the_first_call_says_so(name):
    def loss(x):
        return LEFT[name](x)

    replaced = jpool.replace_pooling(loss)
    with pytest.warns(
        UserWarning, match=r"^replace_pooling: loss has no max or min pooling that can be replaced"
    ) as all_of_them:
        results = replaced(X)
    assert [warning.filename for warning in all_of_them] == [__file__]
    jax.tree.map(np.testing.assert_array_equal, results, loss(X))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        replaced(X)


def test_poolings_of_jpool_are_no_reason_to_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jpool.replace_pooling(jpool.replace_pooling(pool))(X)
        jpool.replace_pooling(partial(jpool.max_pool, window_shape=(2, 2)))(X[0])


TOTAL = weighted(pool)
DIFFERENTIATED = {
    "grad": jax.grad(TOTAL),
    "grad in jit": jax.jit(jax.grad(TOTAL)),
    "grad in cond": lambda x: lax.cond(x.sum() > 0, jax.grad(TOTAL), jnp.zeros_like, x),
    "jvp": lambda x: jax.jvp(TOTAL, (x,), (x,)),
    "linearize": lambda x: jax.linearize(TOTAL, x)[1](x),
}


@pytest.mark.parametrize("name", DIFFERENTIATED)
def test_what_is_differentiated_is_refused_with_the_way_out(name):
    def step(x):
        return DIFFERENTIATED[name](x)

    with pytest.raises(
        ValueError,
        match=r"^replace_pooling: function must not differentiate a pooling, as step does: apply replace_pooling to what is differentiated, as in jax.grad\(jpool.replace_pooling\(loss\)\)\.$",
    ):
        jpool.replace_pooling(step)(X)


@pytest.mark.parametrize("value", [3, None, "loss", X])
def test_what_is_not_a_function_is_refused(value):
    with pytest.raises(
        TypeError,
        match=r"^replace_pooling: function must be callable.* got (int: 3|NoneType: None|str: 'loss'|ndarray: array)",
    ):
        jpool.replace_pooling(value)
