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
from shared.cases import mostly_exhaustive

import jpool

KINDS = [AxisType.Auto, AxisType.Explicit]
RNG = np.random.default_rng(0)
SGD = optax.sgd(0.125)


def whole_numbers(*shape):
    return jnp.asarray(RNG.integers(-2, 3, shape), jnp.float32)  # sums are exact in any order


PARAMS = {"w": whole_numbers(3, 3, 2, 3), "v": whole_numbers(12)}
XS, YS = whole_numbers(8, 6, 6, 2), whole_numbers(8)


def convolve(x, w):
    return jax.lax.conv_general_dilated(x[None], w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))[0]


def loss(params, x, y):
    """A convolution, whose gradients JAX partitions wrongly (see the canaries), and a pooling."""
    pooled = jpool.max_pool(convolve(x, params["w"]), (2, 2), strides=2)
    return (pooled.ravel() @ params["v"] - y) ** 2


EXPECTED = jax.jit(jpool.per_example_value_and_grad(loss))(PARAMS, XS, YS)


def make_mesh(devices, kind=AxisType.Auto, name="data"):
    return jax.make_mesh((devices,), (name,), axis_types=(kind,), devices=jax.devices()[:devices])


def assert_equal(actual, expected):
    jax.tree.map(lambda a, e: np.testing.assert_array_equal(a, e, strict=True), actual, expected)


def lines_with(operation, compiled):
    return [line for line in compiled.as_text().splitlines() if re.search(rf"= .*\b{operation}(-start)?\(", line)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("devices", "wrap"), [(1, jax.jit), (2, lambda f: f), (4, jax.jit), (8, lambda f: f)])
def test_values_and_gradients_are_those_of_one_device_and_sharded_like_the_examples(devices, kind, wrap):
    mesh = make_mesh(devices, kind)
    values, gradients = wrap(jpool.per_example_value_and_grad(loss, mesh=mesh))(PARAMS, XS, YS)
    assert_equal((values, gradients), EXPECTED)
    for leaf in jax.tree.leaves((values, gradients)):
        assert leaf.sharding.is_equivalent_to(NamedSharding(mesh, P("data")), leaf.ndim)


@pytest.mark.parametrize("kind", KINDS)
def test_arguments_may_be_on_any_devices(kind):
    mesh = make_mesh(4, kind)
    f = jpool.per_example_value_and_grad(loss, mesh=mesh)
    sharded, replicated = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    for params, batch in [
        (jax.device_put(PARAMS, replicated), jax.device_put((XS, YS), sharded)),
        (PARAMS, jax.device_put((XS, YS), sharded)),
        (jax.device_put(PARAMS, jax.devices()[5]), jax.device_put((XS, YS), jax.devices()[0])),
        (PARAMS, (np.asarray(XS), np.asarray(YS))),
    ]:
        assert_equal(f(params, *batch), EXPECTED)
    with jax.set_mesh(mesh):
        assert_equal(f(PARAMS, XS, YS), EXPECTED)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mesh_axis_of_any_name_beside_another(kind):
    mesh = jax.make_mesh((2, 4), ("model", "rows"), axis_types=(kind,) * 2)
    actual = jpool.per_example_value_and_grad(loss, mesh=mesh, axis_name="rows")(PARAMS, XS, YS)
    assert_equal(actual, EXPECTED)
    assert actual[0].sharding.spec == P("rows")


def test_aux_is_sharded_too():
    def with_aux(params, x, y):
        return loss(params, x, y), {"twice": 2 * y, "constant": jnp.float32(3)}

    (values, aux), _ = jpool.per_example_value_and_grad(with_aux, has_aux=True, mesh=make_mesh(4))(PARAMS, XS, YS)
    assert_equal((values, aux), (EXPECTED[0], {"twice": 2 * YS, "constant": jnp.full(8, 3, jnp.float32)}))


def test_inside_a_shard_map_of_the_user_nothing_must_be_marked_varying():
    mesh = make_mesh(4)
    f = jax.shard_map(
        jpool.per_example_value_and_grad(loss),
        mesh=mesh,
        in_specs=(P(), P("data"), P("data")),
        out_specs=P("data"),
    )
    assert_equal(f(PARAMS, XS, YS), EXPECTED)


def test_examples_split_by_a_surrounding_jit_have_right_gradients():
    """It cannot be detected, because XLA alone knows of it; as JAX writes the gradients they are wrong: see the canary."""
    f, split = jpool.per_example_value_and_grad(loss), NamedSharding(make_mesh(4), P("data"))
    whole = NamedSharding(make_mesh(4), P())
    assert_equal(jax.jit(f, in_shardings=(whole, split, split))(PARAMS, XS, YS), EXPECTED)
    assert_equal(jax.jit(f, out_shardings=split)(PARAMS, XS, YS), EXPECTED)
    weighted = jax.jit(lambda params, weights: jnp.einsum("b,b...->b...", weights, f(params, XS, YS)[1]["w"]))
    np.testing.assert_array_equal(weighted(PARAMS, jax.device_put(jnp.ones(8), split)), EXPECTED[1]["w"])
    constrained = jax.jit(lambda params: jax.lax.with_sharding_constraint(f(params, XS, YS)[1], split))
    assert_equal(constrained(PARAMS), EXPECTED[1])
    statistics = jpool.gradient_statistics(loss, microbatch_size=3)
    in_jit = jax.jit(lambda *arguments: statistics(*arguments)[:3], in_shardings=(whole, split, split))
    assert_equal(in_jit(PARAMS, XS, YS), jpool.gradient_statistics(loss)(PARAMS, XS, YS)[:3])


# --- training step and statistics ---


@pytest.fixture(scope="module")
def one_device():
    optimizer = optax.sgd(0.125, momentum=0.5)
    step, state = jpool.make_train_step(loss, optimizer), jpool.TrainState.create(PARAMS, optimizer)
    return step(state, XS, YS), jpool.gradient_statistics(loss)(PARAMS, XS, YS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("devices", "microbatch_size"),
    mostly_exhaustive([(1, None), (2, 1), (4, None), (4, 1), (8, 3), (2, 3)], [(2, 1), (4, None)]),
)
def test_step_and_statistics_are_those_of_one_device(devices, kind, microbatch_size, one_device):
    mesh, optimizer = make_mesh(devices, kind), optax.sgd(0.125, momentum=0.5)
    options = {"mesh": mesh, "microbatch_size": microbatch_size}
    step, state = jpool.make_train_step(loss, optimizer, **options), jpool.TrainState.create(PARAMS, optimizer)
    after, metrics = step(state, XS, YS)
    statistics = jpool.gradient_statistics(loss, **options)(PARAMS, XS, YS)
    (expected, expected_metrics), expected_statistics = one_device
    assert_equal((after, metrics), (expected, expected_metrics))
    assert_equal(statistics[:3], expected_statistics[:3])
    np.testing.assert_allclose(statistics[3:], expected_statistics[3:], rtol=1e-6)
    assert statistics.losses.sharding.is_equivalent_to(NamedSharding(mesh, P("data")), 1)
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves((after, metrics, statistics[2:])))


@pytest.mark.parametrize("kind", KINDS)
def test_weights_leave_padding_out_on_any_device(kind, one_device):
    """Four of the eight examples are padding, and one of the four devices has only padding."""
    mesh, weights = make_mesh(4, kind), np.array([1, 1, 1, 0, 1, 0, 0, 0])
    kept = weights == 1
    padded = XS.at[~kept].set(jnp.nan)
    expected = jpool.gradient_statistics(loss)(PARAMS, XS[kept], YS[kept])
    actual = jpool.gradient_statistics(loss, mesh=mesh, microbatch_size=1)(PARAMS, padded, YS, weights=weights)
    losses = np.asarray(actual.losses)
    np.testing.assert_array_equal(losses[kept], expected.losses)
    assert losses[~kept].tolist() == [0] * 4
    assert_equal(actual.mean, expected.mean)
    np.testing.assert_allclose(actual[3:], expected[3:], rtol=1e-6)
    step = jpool.make_train_step(loss, optax.sgd(0.5), mesh=mesh)
    on_one_device = jpool.make_train_step(loss, optax.sgd(0.5))
    after, _ = step(jpool.TrainState.create(PARAMS, optax.sgd(0.5)), padded, YS, weights=weights)
    assert_equal(after, on_one_device(jpool.TrainState.create(PARAMS, optax.sgd(0.5)), XS[kept], YS[kept])[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("microbatch_size", [None, 1])
@pytest.mark.usefixtures("promotion_as_usual")
def test_a_step_has_one_all_reduce_of_the_size_of_the_parameters_and_no_gather(kind, microbatch_size):
    mesh, optimizer = make_mesh(4, kind), optax.adam(0.1)
    step = jpool.make_train_step(loss, optimizer, mesh=mesh, microbatch_size=microbatch_size)
    state = jax.device_put(jpool.TrainState.create(PARAMS, optimizer), NamedSharding(mesh, P()))
    batch = jax.device_put((XS, YS), NamedSharding(mesh, P("data")))
    compiled = step.lower(state, *batch).compile()
    (reduce,) = lines_with("all-reduce", compiled)
    numbers = sum(
        np.prod([int(n) for n in shape.split(",") if n], dtype=int)
        for shape in re.findall(r"f32\[([\d,]*)\]", reduce.split("all-reduce(")[0])
    )
    assert numbers == sum(leaf.size for leaf in jax.tree.leaves(PARAMS)) + 2  # plus the number of examples and the loss
    for operation in ("all-gather", "all-to-all", "collective-permute", "reduce-scatter", "collective-broadcast"):
        assert lines_with(operation, compiled) == []


def test_a_step_over_a_mesh_compiles_once_and_donates_its_state():
    traces = []

    def counted(params, x, y):
        traces.append(1)
        return loss(params, x, y)

    optimizer = optax.sgd(0.125, momentum=0.5)
    step = jpool.make_train_step(counted, optimizer, mesh=make_mesh(4))
    state = jpool.TrainState.create(PARAMS, optimizer)
    for _ in range(3):
        before = state
        state, _ = step(before, XS, YS)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
    assert (len(traces), step._cache_size()) == (1, 1)
    assert np.isfinite(state.params["v"]).all()


def test_a_loss_that_fails_while_it_is_traced_does_not_donate_the_state():
    step = jpool.make_train_step(lambda params, x, y: params["v"] @ x, optax.sgd(0.5), mesh=make_mesh(4))
    state = jpool.TrainState.create(PARAMS, optax.sgd(0.5))
    with pytest.raises(TypeError):
        step(state, XS, YS)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert copy.copy(step).lower


# --- errors ---

MAKERS = {
    "per_example_value_and_grad": jpool.per_example_value_and_grad,
    "gradient_statistics": jpool.gradient_statistics,
    "make_train_step": lambda loss, **options: jpool.make_train_step(loss, optax.sgd(0.5), **options),
}


def first_argument(name):
    """The first argument of the function that the maker of this name returns."""
    return jpool.TrainState.create(PARAMS, optax.sgd(0.5)) if name == "make_train_step" else PARAMS


def operands(name):
    """What the function of this maker reads, by the name in its errors; each may be on devices of its own."""
    weights = {} if name == "per_example_value_and_grad" else {"weights": jnp.ones(8)}
    return {first_name(name): first_argument(name), "batch": (XS, YS), **weights}


def first_name(name):
    return "state" if name == "make_train_step" else "params"


def call(f, first, batch, weights=None):
    return f(first, *batch) if weights is None else f(first, *batch, weights=weights)


OPERANDS = [(name, operand) for name in MAKERS for operand in operands(name)]


# While tracing with an Auto mesh, it cannot be read whether parameters are split: the reference says so.
READABLE = [
    (wrap, kind, *case)
    for wrap in (None, jax.jit)
    for kind in KINDS
    for case in OPERANDS
    if not (wrap and kind == AxisType.Auto and case[1] in ("params", "state"))
]


@pytest.mark.parametrize(("wrap", "kind", "name", "operand"), READABLE)
def test_without_a_mesh_an_operand_split_over_devices_is_refused_by_name(wrap, kind, name, operand):
    mesh = make_mesh(4, kind, "rows")
    f, arguments = (wrap or (lambda f: f))(MAKERS[name](loss)), operands(name)
    is_params = operand == first_name(name)
    split = lambda leaf: P("rows") if leaf.shape[:1] in ((8,), (12,)) else P()  # noqa: E731
    move = lambda leaf: jax.device_put(leaf, NamedSharding(mesh, split(leaf)))  # noqa: E731
    moved = jax.tree.map(move, arguments[operand])
    rest = {other: jax.tree.map(np.asarray, arguments[other]) for other in arguments if other != operand}
    shape = r"\(.*\)" if is_params else str(jax.tree.leaves(moved)[0].shape).replace("(", r"\(").replace(")", r"\)")
    text = rf"{name}.*: an array of shape {shape} is on several devices \({{'rows': 4}}\), as part of {operand}, .*{name}\(\.\.\., mesh=mesh, axis_name='rows'\)"
    with pytest.raises(ValueError, match=text):
        call(f, *({**arguments, **rest, operand: moved}.values()))
    with jax.set_mesh(mesh), pytest.raises(ValueError, match=rf"{name}.*: a mesh is set as context"):
        call(f, *arguments.values())
    call(f, *arguments.values())  # the refused call has donated nothing


@pytest.mark.parametrize("name", MAKERS)
def test_a_batch_whose_sharding_has_no_mesh_is_refused(name):
    shardings = pytest.importorskip("jax._src.sharding_impls")  # JAX makes them, and has no public name for them
    split = NamedSharding(make_mesh(2), P("data"))._to_xla_hlo_sharding(4)
    xs = jax.make_array_from_callback(
        XS.shape, shardings.GSPMDSharding(tuple(jax.devices()[:2]), split), lambda index: np.asarray(XS)[index]
    )
    text = rf"{name}.*: an array of shape \(8, 6, 6, 2\) is on several devices \({{'devices': 2}}\), as part of batch,"
    with pytest.raises(ValueError, match=text):
        MAKERS[name](loss)(first_argument(name), xs, np.asarray(YS))


@pytest.mark.parametrize("name", MAKERS)
def test_without_a_mesh_parameters_may_be_on_all_devices_of_an_auto_mesh(name):
    """As a step over a mesh returns them."""
    arguments = operands(name)
    whole = jax.device_put(arguments[first_name(name)], NamedSharding(make_mesh(4), P()))
    rest = [jax.tree.map(np.asarray, arguments[other]) for other in arguments if other != first_name(name)]
    assert_equal(call(MAKERS[name](loss), whole, *rest)[0], call(MAKERS[name](loss), *operands(name).values())[0])


@pytest.mark.parametrize(("name", "operand"), OPERANDS)
def test_operands_on_different_devices_are_refused_by_name(name, operand):
    arguments = {other: jax.device_put(tree, jax.devices()[1]) for other, tree in operands(name).items()}
    for elsewhere in [jax.devices()[2], *[NamedSharding(make_mesh(4), P())] * (operand == first_name(name))]:
        moved = jax.device_put(arguments[operand], elsewhere)
        text = rf"{name}.*: all arrays must be on the same devices; got .* on .*\b{operand}.* on .*device_put"
        if operand == first_name(name):
            text = rf"{name}.*: all arrays must be on the same devices; got {operand}.* on .*batch\[0\]\[0\] on .*device_put"
        with pytest.raises(ValueError, match=text):
            call(MAKERS[name](loss), *({**arguments, operand: moved}.values()))


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("options", [{}, {"mesh": make_mesh(4, AxisType.Explicit)}])
def test_a_loss_that_closes_over_an_array_elsewhere_is_refused(name, options):
    elsewhere = jax.device_put(jnp.float32(2), NamedSharding(make_mesh(4, AxisType.Explicit), P()))
    f = MAKERS[name](lambda params, x, y: loss(params, x, y) * elsewhere, **options)
    batch = jax.device_put((XS, YS), jax.devices()[1])
    with pytest.raises(ValueError, match=f"{name}.*: loss must not close over arrays of an Explicit mesh"):
        f(jax.device_put(first_argument(name), jax.devices()[1]), *batch)


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_pass_through_a_function_over_a_mesh(kind):
    """On an Explicit mesh JAX itself differentiates a sum only under jit, or with the mesh as context."""
    f = jpool.per_example_value_and_grad(loss, mesh=make_mesh(4, kind))
    expected = jax.grad(lambda params: jpool.per_example_value_and_grad(loss)(params, XS, YS)[0].sum())(PARAMS)
    assert_equal(jax.jit(jax.grad(lambda params: f(params, XS, YS)[0].sum()))(PARAMS), expected)


@pytest.mark.parametrize("name", MAKERS)
def test_a_batch_that_does_not_divide_evenly_is_refused_with_advice(name):
    f, first = MAKERS[name](loss, mesh=make_mesh(4)), first_argument(name)
    text = rf"{name}.*: the examples must divide evenly over the 4 devices of mesh axis 'data'; got a batch of 6\. Pad it to 8 examples.*weights="
    with pytest.raises(ValueError, match=text):
        f(first, XS[:6], YS[:6])
    f(first, XS, YS)


@pytest.mark.parametrize("name", MAKERS)
def test_a_wrong_mesh_or_axis_name_is_refused(name):
    with pytest.raises(TypeError, match=rf"{name}: mesh must be a jax\.sharding\.Mesh.*got 4"):
        MAKERS[name](loss, mesh=4)
    with pytest.raises(
        ValueError, match=rf"{name}: axis_name must be one of .*\('rows',\); got 'data'.*axis_name='rows'"
    ):
        MAKERS[name](loss, mesh=make_mesh(2, name="rows"))


@pytest.mark.parametrize("name", MAKERS)
def test_on_an_explicit_mesh_of_one_device_a_stated_split_is_refused(name):
    mesh = make_mesh(1, AxisType.Explicit)
    split = jax.device_put(XS, NamedSharding(mesh, P("data")))
    with pytest.raises(ValueError, match=rf"{name}.*on several devices \({{'data': 1}}\), as part of batch"):
        MAKERS[name](loss)(first_argument(name), split, np.asarray(YS))


@pytest.mark.parametrize("name", MAKERS)
def test_another_mesh_than_that_of_the_context_is_refused(name):
    f = MAKERS[name](loss, mesh=make_mesh(4, AxisType.Explicit))
    with (
        jax.set_mesh(make_mesh(4, AxisType.Auto)),
        pytest.raises(ValueError, match=f"{name}.*: mesh must be the one that jax.set_mesh has set"),
    ):
        f(first_argument(name), XS, YS)


# --- canaries: if one of these fails, JAX has changed, and the workaround for it can be removed ---


def test_canary_jax_partitions_per_example_gradients_wrongly():
    """Under an Auto mesh, weight gradients of all examples outside the first device are wrong, and only they.

    If this fails, `convolutions` is needed only for the speed of loops on a CPU.
    """
    f = jax.jit(jax.vmap(jax.value_and_grad(loss), (None, 0, 0)))
    values, gradients = f(PARAMS, *jax.device_put((XS, YS), NamedSharding(make_mesh(4), P("data"))))
    right = (gradients["w"] == EXPECTED[1]["w"]).all(axis=(1, 2, 3, 4))
    assert_equal((values, gradients["v"]), (EXPECTED[0], EXPECTED[1]["v"]))
    assert right.tolist() == [True] * 2 + [False] * 6


def test_canary_jax_sums_gradients_of_unmarked_parameters_over_devices():
    """In shard_map without pcast, each device has the sum over all devices."""
    f = jax.shard_map(
        jax.vmap(jax.grad(loss), (None, 0, 0)),
        mesh=make_mesh(4),
        in_specs=(P(), P("data"), P("data")),
        out_specs=P("data"),
        check_vma=True,
    )
    gradients = f(PARAMS, XS, YS)
    for name, expected in EXPECTED[1].items():
        summed = expected.reshape(4, 2, *expected.shape[1:]).sum(axis=0)
        np.testing.assert_array_equal(gradients[name], np.concatenate([summed] * 4))
