"""On 1, 2, 4 and 8 devices, with both kinds of mesh: results are the same bit for bit. And canaries for JAX."""

import copy
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from shared.regression import MAKERS, SGD

import jpool

pytestmark = pytest.mark.usefixtures("promotion_as_usual", "compiled_quickly")
AUTO, EXPLICIT = KINDS = [AxisType.Auto, AxisType.Explicit]
RNG = np.random.default_rng(0)
MOMENTUM = optax.sgd(0.125, momentum=0.5)


def whole_numbers(*shape):
    return RNG.integers(-2, 3, shape).astype(np.float32)  # sums are exact in any order


PARAMS = {"w": whole_numbers(3, 3, 2, 3), "v": whole_numbers(12)}
XS, YS = whole_numbers(8, 6, 6, 2), whole_numbers(8)


def convolve(x, w):
    return jax.lax.conv_general_dilated(x[None], w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))[0]


def loss(params, x, y):
    """A convolution, whose gradients JAX partitions wrongly (see the canaries), and a pooling."""
    pooled = jpool.max_pool(convolve(x, params["w"]), (2, 2), strides=2)
    return (pooled.ravel() @ params["v"] - y) ** 2


def with_aux(params, x, y):
    return loss(params, x, y), {"twice": 2 * y, "constant": jnp.float32(3)}


@pytest.fixture(scope="module")
def expected():
    """((losses, aux), gradients) by JAX alone, on one device."""
    f = jax.vmap(jax.value_and_grad(with_aux, has_aux=True), (None, 0, 0))
    return jax.tree.map(np.asarray, jax.jit(f)(PARAMS, XS, YS))


def dense(params, x, y):
    """A loss that compiles quickly, where its content does not matter."""
    return (x.ravel()[:12] @ params["v"] - y) ** 2 + params["w"].sum() * y


def dense_by_definition():
    """Its values and gradients for the whole batch."""
    rows = XS.reshape(8, -1)[:, :12]
    errors, ones = rows @ PARAMS["v"] - YS, np.ones_like(PARAMS["w"])
    gradients = {"w": YS.reshape(8, 1, 1, 1, 1) * ones, "v": 2 * errors[:, None] * rows}
    return errors**2 + PARAMS["w"].sum() * YS, gradients


def make_mesh(devices, kind=AUTO, name="data"):
    return jax.make_mesh((devices,), (name,), axis_types=(kind,), devices=jax.devices()[:devices])


def assert_equal(actual, expected):
    jax.tree.map(lambda a, e: np.testing.assert_array_equal(a, e, strict=True), actual, expected)


def is_split(leaf, mesh, axis="data"):
    return leaf.sharding.is_equivalent_to(NamedSharding(mesh, P(axis)), leaf.ndim)


@pytest.mark.parametrize(("sizes", "names", "kind"), [((1,), ("data",), EXPLICIT), ((2, 4), ("model", "rows"), AUTO)])
def test_in_a_program_results_are_those_of_one_device_and_split_like_the_examples(sizes, names, kind, expected):
    """On one device, and with an axis of any name beside another."""
    mesh = jax.make_mesh(sizes, names, axis_types=(kind,) * len(sizes), devices=jax.devices()[: np.prod(sizes)])
    f = jpool.per_example_value_and_grad(with_aux, has_aux=True, mesh=mesh, axis_name=names[-1])
    actual = jax.jit(f)(PARAMS, XS, YS)
    assert_equal(actual, expected)
    assert all(is_split(leaf, mesh, names[-1]) for leaf in jax.tree.leaves(actual))


@pytest.mark.parametrize("kind", KINDS)
def test_outside_of_a_program_the_arguments_may_be_on_any_devices(kind, expected):
    mesh = make_mesh(4, kind)
    f = jpool.per_example_value_and_grad(with_aux, has_aux=True, mesh=mesh)
    split = jax.device_put((XS, YS), NamedSharding(mesh, P("data")))
    for params, batch in [
        (jax.device_put(PARAMS, NamedSharding(mesh, P())), split),
        (PARAMS, split),
        (jax.device_put(PARAMS, jax.devices()[5]), jax.device_put((XS, YS), jax.devices()[0])),
        (PARAMS, (XS, YS)),
    ]:
        actual = f(params, *batch)
        assert_equal(actual, expected)
        assert all(is_split(leaf, mesh) for leaf in jax.tree.leaves(actual))
    with jax.set_mesh(mesh):
        assert_equal(f(PARAMS, XS, YS), expected)


def test_inside_a_shard_map_of_the_user_nothing_must_be_marked_varying():
    f, specs = jpool.per_example_value_and_grad(dense), (P(), P("data"), P("data"))
    f = jax.jit(jax.shard_map(f, mesh=make_mesh(4), in_specs=specs, out_specs=P("data")))
    assert_equal(f(PARAMS, XS, YS), dense_by_definition())


def test_examples_split_by_a_surrounding_jit_have_right_gradients(expected):
    """It cannot be detected, because XLA alone knows of it; as JAX writes the gradients they are wrong: see the canary."""
    (values, _), gradients = expected
    f, split = jpool.per_example_value_and_grad(loss), NamedSharding(make_mesh(4), P("data"))
    whole = NamedSharding(make_mesh(4), P())
    assert_equal(jax.jit(f, in_shardings=(whole, split, split))(PARAMS, XS, YS), (values, gradients))
    weighted = jax.jit(lambda params, weights: jnp.einsum("b,b...->b...", weights, f(params, XS, YS)[1]["w"]))
    np.testing.assert_array_equal(weighted(PARAMS, jax.device_put(np.ones(8, np.float32), split)), gradients["w"])
    constrained = jax.jit(lambda params: jax.lax.with_sharding_constraint(f(params, XS, YS)[1], split))
    assert_equal(constrained(PARAMS), gradients)
    statistics = jpool.gradient_statistics(loss, microbatch_size=3)
    in_jit = jax.jit(lambda *arguments: statistics(*arguments)[:3], in_shardings=(whole, split, split))
    norms = sum(np.square(leaf).reshape(8, -1).sum(1) for leaf in gradients.values())
    assert_equal(in_jit(PARAMS, XS, YS), (values, norms, jax.tree.map(lambda leaf: leaf.mean(0), gradients)))


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_pass_through_a_function_over_a_mesh(kind):
    """On an Explicit mesh JAX itself differentiates a sum only under jit, or with the mesh as context."""
    f = jpool.per_example_value_and_grad(dense, mesh=make_mesh(4, kind))
    expected = jax.tree.map(lambda leaf: leaf.sum(0), dense_by_definition()[1])
    assert_equal(jax.jit(jax.grad(lambda params: f(params, XS, YS)[0].sum()))(PARAMS), expected)


# --- training step and statistics ---


@pytest.mark.parametrize(("devices", "kind", "microbatch_size", "dtype"), [
    (1, EXPLICIT, 3, None),  # a loop and a remainder on the only device
    (2, AUTO, 1, None),
    (4, EXPLICIT, 1, bool),
    (8, AUTO, None, np.float32),
])  # fmt: skip
def test_step_and_statistics_are_those_of_one_device_without_padding(devices, kind, microbatch_size, dtype):
    """With weights, half of the examples are padding, which is nan, and a whole device has only padding."""
    kept = np.array([1, 1, 1, 0, 1, 0, 0, 0], bool) if dtype else np.ones(8, bool)
    xs = np.where(kept.reshape(8, 1, 1, 1), XS, np.float32(np.nan))
    named = {"weights": kept.astype(dtype)} if dtype else {}
    options = {"mesh": make_mesh(devices, kind), "microbatch_size": microbatch_size}
    losses, gradients = dense_by_definition()
    mean = jax.tree.map(lambda leaf: leaf[kept].mean(0), gradients)
    rows = np.concatenate([leaf[kept].reshape(kept.sum(), -1) for leaf in gradients.values()], axis=1)

    statistics = jpool.gradient_statistics(dense, **options)(PARAMS, xs, y=YS, **named)
    norms = np.zeros(8, np.float32)
    norms[kept] = np.square(rows).sum(1)
    assert_equal(statistics[:3], (losses * kept, norms, mean))
    trace = np.trace(np.cov(rows.T.astype(np.float64)))
    signal = np.square(rows.mean(0, dtype=np.float64)).sum() - trace / kept.sum()
    np.testing.assert_allclose(statistics[3:], (trace, signal, trace / signal), rtol=1e-6)
    assert is_split(statistics.losses, options["mesh"])

    step, before = jpool.make_train_step(dense, MOMENTUM, **options), jpool.TrainState.create(PARAMS, MOMENTUM)
    after, metrics = step(before, xs, y=YS, **named)
    assert_equal(after.params, jax.tree.map(lambda leaf, g: leaf - np.float32(0.125) * g, PARAMS, mean))
    assert_equal((metrics.loss, after.opt_state[0].trace), (losses[kept].mean(), mean))
    np.testing.assert_allclose(metrics.gradient_norm, np.linalg.norm(rows.mean(0)), rtol=1e-6)
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves((after, metrics, statistics[2:])))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
    step(after, xs, y=YS, **named)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(after))
    assert step._cache_size() == 1


@pytest.mark.parametrize(("kind", "microbatch_size"), [(AUTO, None), (EXPLICIT, 1)])
def test_a_step_has_one_all_reduce_of_the_size_of_the_parameters_and_no_gather(kind, microbatch_size):
    mesh, optimizer = make_mesh(4, kind), optax.adam(0.1)
    step = jpool.make_train_step(dense, optimizer, mesh=mesh, microbatch_size=microbatch_size)
    state = jax.device_put(jpool.TrainState.create(PARAMS, optimizer), NamedSharding(mesh, P()))
    compiled = step.lower(state, *jax.device_put((XS, YS), NamedSharding(mesh, P("data")))).compile().as_text()
    lines_with = lambda operation: re.findall(rf"= .*\b{operation}(?:-start)?\(", compiled)  # noqa: E731
    (reduce,) = lines_with("all-reduce")
    shapes = re.findall(r"f32\[([\d,]*)\]", reduce)
    numbers = sum(np.prod([int(n) for n in shape.split(",") if n], dtype=int) for shape in shapes)
    assert numbers == sum(leaf.size for leaf in PARAMS.values()) + 2  # plus the number of examples and the loss
    for operation in ("all-gather", "all-to-all", "collective-permute", "reduce-scatter", "collective-broadcast"):
        assert lines_with(operation) == []


def test_a_loss_that_fails_while_it_is_traced_does_not_donate_the_state():
    step = jpool.make_train_step(lambda params, x, y: params["v"] @ x, MOMENTUM, mesh=make_mesh(4))
    state = jpool.TrainState.create(PARAMS, MOMENTUM)
    with pytest.raises(TypeError):
        step(state, XS, YS)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert copy.copy(step).lower


# --- errors: nothing is compiled, and nothing donated ---


def operands(name):
    """What the function of this maker reads, by the name in its errors; each may be on devices of its own."""
    first = {"state": jpool.TrainState.create(PARAMS, SGD)} if name == "make_train_step" else {"params": PARAMS}
    weights = {} if name == "per_example_value_and_grad" else {"weights": np.ones(8, np.float32)}
    return {**first, "batch": (XS, YS), **weights}


def call(f, arguments):
    weights = {"weights": arguments["weights"]} if "weights" in arguments else {}
    return f(arguments["state" if "state" in arguments else "params"], *arguments["batch"], **weights)


OPERANDS = [(name, operand) for name in MAKERS for operand in operands(name)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "operand"), OPERANDS)
def test_without_a_mesh_an_operand_split_over_devices_is_refused_by_name(kind, name, operand):
    """Parameters may be whole on an Auto mesh. While tracing with an Auto mesh, it cannot be read whether parameters are split: the reference says so."""
    mesh, f, arguments = make_mesh(4, kind, "rows"), MAKERS[name](dense), operands(name)
    place = lambda leaf, spec: jax.device_put(leaf, NamedSharding(mesh, spec))  # noqa: E731
    split = lambda leaf: place(leaf, P("rows") if np.shape(leaf)[:1] in ((8,), (12,)) else P())  # noqa: E731
    moved, whole = (
        jax.tree.map(split, arguments[operand]),
        jax.tree.map(lambda leaf: place(leaf, P()), arguments[operand]),
    )
    is_params = operand in ("params", "state")
    shape = r"\(.*\)" if is_params else re.escape(str(jax.tree.leaves(moved)[0].shape))
    text = rf"{name}.*: an array of shape {shape} is on several devices \({{'rows': 4}}\), as part of {operand}, .*{name}\(\.\.\., mesh=mesh, axis_name='rows'\)"
    unreadable = is_params and kind == AUTO
    for of, wrong in [(f, moved)] if unreadable else [(f, moved), (jax.jit(f), moved), (f, whole)]:
        with pytest.raises(ValueError, match=text):
            call(of, {**jax.tree.map(np.asarray, arguments), operand: wrong})
        with jax.set_mesh(mesh), pytest.raises(ValueError, match=rf"{name}.*: a mesh is set as context"):
            call(of, arguments)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((moved, arguments)) if isinstance(leaf, jax.Array))


@pytest.mark.parametrize("name", MAKERS)
def test_a_batch_on_one_device_of_an_explicit_mesh_or_without_a_mesh_is_refused(name):
    shardings = pytest.importorskip("jax._src.sharding_impls")  # JAX makes them, and has no public name for them
    split = NamedSharding(make_mesh(2), P("data"))._to_xla_hlo_sharding(4)
    for sharding, axes in [
        (shardings.GSPMDSharding(tuple(jax.devices()[:2]), split), "{'devices': 2}"),
        (NamedSharding(make_mesh(1, EXPLICIT), P("data")), "{'data': 1}"),
    ]:
        xs = jax.make_array_from_callback(XS.shape, sharding, lambda index: XS[index])
        text = rf"{name}.*: an array of shape \(8, 6, 6, 2\) is on several devices \({axes}\), as part of batch,"
        with pytest.raises(ValueError, match=text):
            call(MAKERS[name](dense), {**operands(name), "batch": (jnp.asarray(YS), xs)})


def test_without_a_mesh_parameters_may_be_on_all_devices_of_an_auto_mesh():
    """As a step over a mesh returns them."""
    whole, (losses, gradients) = NamedSharding(make_mesh(4), P()), dense_by_definition()
    assert_equal(jpool.per_example_value_and_grad(dense)(jax.device_put(PARAMS, whole), XS, YS), (losses, gradients))
    state = jax.device_put(jpool.TrainState.create(PARAMS, MOMENTUM), whole)
    after, metrics = jpool.make_train_step(dense, MOMENTUM)(state, jnp.asarray(XS), YS)  # where JAX may move it from
    assert_equal((metrics.loss, after.opt_state[0].trace["v"]), (losses.mean(), gradients["v"].mean(0)))


@pytest.mark.parametrize(("name", "operand"), OPERANDS)
def test_operands_on_different_devices_are_refused_by_name(name, operand):
    arguments = jax.device_put(operands(name), jax.devices()[1])
    first = operand in ("params", "state")
    for elsewhere, shown in [
        (jax.devices()[2], str(jax.devices()[2])),
        *[(NamedSharding(make_mesh(4), P()), "4 devices")] * first,
    ]:
        moved = jax.device_put(arguments[operand], elsewhere)
        got = rf"{operand}.* on {shown}.*batch\[0\]\[0\] on" if first else rf".* on .*\b{operand}.* on {shown}"
        text = rf"{name}.*: all arrays must be on the same devices; got {got}.*device_put"
        with pytest.raises(ValueError, match=text):
            call(MAKERS[name](dense), {**arguments, operand: moved})


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("options", [{}, {"mesh": make_mesh(4, EXPLICIT)}])
def test_a_loss_that_closes_over_an_array_elsewhere_is_refused(name, options):
    elsewhere = jax.device_put(np.float32(2), NamedSharding(make_mesh(4, EXPLICIT), P()))
    f = MAKERS[name](lambda params, x, y: params["v"][0] * elsewhere, **options)
    with pytest.raises(ValueError, match=f"{name}.*: loss must not close over arrays of an Explicit mesh"):
        call(f, jax.device_put(operands(name), jax.devices()[1]))


@pytest.mark.parametrize("name", MAKERS)
def test_a_batch_that_does_not_divide_evenly_and_another_mesh_than_that_of_the_context_are_refused(name):
    f, arguments = MAKERS[name](dense, mesh=make_mesh(4, EXPLICIT)), operands(name)
    text = rf"{name}.*: the examples must divide evenly over the 4 devices of mesh axis 'data'; got a batch of 6\. Pad it to 8 examples.*weights="
    with pytest.raises(ValueError, match=text):
        call(f, {**arguments, "batch": (XS[:6], YS[:6])})
    text = f"{name}.*: mesh must be the one that jax.set_mesh has set"
    with jax.set_mesh(make_mesh(4, AUTO)), pytest.raises(ValueError, match=text):
        call(f, arguments)


# --- canaries: if one of these fails, JAX has changed, and the workaround for it can be removed ---


def test_canary_jax_partitions_per_example_gradients_wrongly(expected):
    """Under an Auto mesh, weight gradients of all examples outside the first device are wrong, and only they.

    If this fails, `convolutions` is needed only for the speed of loops on a CPU.
    """
    f = jax.jit(jax.vmap(jax.value_and_grad(loss), (None, 0, 0)))
    values, gradients = f(PARAMS, *jax.device_put((XS, YS), NamedSharding(make_mesh(4), P("data"))))
    assert_equal((values, gradients["v"]), (expected[0][0], expected[1]["v"]))
    right = (np.asarray(gradients["w"]) == expected[1]["w"]).all(axis=(1, 2, 3, 4))
    assert right.tolist() == [True] * 2 + [False] * 6


def test_canary_jax_sums_gradients_of_unmarked_parameters_over_devices():
    """In shard_map without pcast, each device has the sum over all devices."""
    specs = {"in_specs": (P(), P("data"), P("data")), "out_specs": P("data")}
    f = jax.shard_map(jax.vmap(jax.grad(dense), (None, 0, 0)), mesh=make_mesh(4), check_vma=True, **specs)
    gradients, (_, expected) = jax.jit(f)(PARAMS, XS, YS), dense_by_definition()
    for name in PARAMS:
        summed = expected[name].reshape(4, 2, *PARAMS[name].shape).sum(axis=0)
        np.testing.assert_array_equal(gradients[name], np.concatenate([summed] * 4))
