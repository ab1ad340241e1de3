"""Arguments of the wrong kind are refused by name, before JAX sees them, and the state survives."""

import datetime
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from shared.regression import PARAMS, XS, YS, loss

import jpool

pytestmark = pytest.mark.usefixtures("promotion_as_usual", "compiled_quickly")
SGD = optax.sgd(0.1)
KEY = jax.random.key(0)
DELETED = jnp.ones(3)
DELETED.delete()


def statistics(loss):
    return jpool.gradient_statistics(loss)


def step(loss):
    """A step of a fresh state whose parameters are given, as the other two functions are called."""
    function = jpool.make_train_step(loss, SGD)
    create = lambda params: jpool.TrainState(params, optax.sgd(0.5).init({}), jnp.int32(0))  # noqa: E731
    return lambda params, /, *batch, **named: function(create(params), *batch, **named)


FUNCTIONS = {
    "per_example_value_and_grad": jpool.per_example_value_and_grad,
    "gradient_statistics": statistics,
    "step": step,
}


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    ("leaf", "text"),
    [
        (jax.nn.relu, r"got .* of type .* at {0}\['extra'\]\[1\]"),
        (3, r"got 3 of type int at {0}\['extra'\]\[1\]"),
        (True, "got True of type bool"),
        (1j, "got 1j of type complex"),
        ("relu", "got 'relu' of type str"),
        (jnp.arange(3), r"got array int32\[3\]"),
        (np.ones(2, bool), r"got ndarray bool\[2\]"),
        (jnp.ones(2, complex), r"got array complex64\[2\]"),
        (KEY, r"got array key<fry>\[\]"),
        (jax.ShapeDtypeStruct((2,), jnp.float32), r"got ShapeDtypeStruct float32\[2\]"),
        (np.array([None]), r"got ndarray object\[1\]"),
    ],
)
def test_params_that_are_no_floats_are_refused_with_their_path(leaf, text, function):
    argument = "state.params" if function == "step" else "params"
    with pytest.raises(
        TypeError,
        match=f"{function}: {argument} must hold float arrays only; {text.format(argument)}.*eqx.partition.*nnx.split",
    ):
        FUNCTIONS[function](loss)({**PARAMS, "extra": (1.0, leaf)}, XS, YS)


def test_none_floats_and_numpy_arrays_are_parameters():
    params = {"w": np.asarray(PARAMS["w"]), "b": 0.25, "absent": None}
    values, gradients = jpool.per_example_value_and_grad(loss)(params, XS, YS)
    np.testing.assert_array_equal(values, jpool.per_example_value_and_grad(loss)(PARAMS, XS, YS)[0])
    assert gradients["absent"] is None
    state = jpool.TrainState.create(params, SGD)
    assert jpool.make_train_step(loss, SGD)(state, XS, YS)[0].params["absent"] is None


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    ("leaf", "text"),
    [
        ("words", r"got 'words' of type str at batch\[1\]"),
        (np.array(["a"] * 5), r"got ndarray <U1\[5\] at batch\[1\]"),
        (np.array([{}] * 5), r"got ndarray object\[5\]"),
        (np.array(["2026-11-25"] * 5, "M8[D]"), r"got ndarray datetime64\[D\]\[5\]"),
        (datetime.date(2026, 11, 25), "got datetime.date"),
        (jax.ShapeDtypeStruct((5,), jnp.float32), r"got ShapeDtypeStruct float32\[5\]"),
        (np.ma.masked_array(np.ones(5)), r"got MaskedArray float64\[5\]"),
        (np.ones(5, np.longdouble), "got ndarray float128|got ndarray longdouble"),
        (np.ones(5, np.float32).astype(">f4"), r"got ndarray >f4\[5\]"),
        (np.ones(5, "m8[s]"), r"got ndarray timedelta64"),
        (object(), "got <object object"),
    ],
)
def test_a_batch_of_other_things_than_numbers_is_refused_with_its_path(leaf, text, function):
    with pytest.raises(TypeError, match=rf"{function}: batch must hold arrays of numbers; {text}"):
        FUNCTIONS[function](lambda params, x, y: loss(params, x, 0.0))(PARAMS, XS, leaf)
    with pytest.raises(TypeError, match=rf"{function}: batch must hold .* at batch\['y'\]"):
        FUNCTIONS[function](lambda params, x, y: loss(params, x, 0.0))(PARAMS, XS, y=leaf)


def test_random_keys_are_a_batch():
    noisy = lambda params, x, key: loss(params, x, jax.random.normal(key))  # noqa: E731
    keys = jax.random.split(KEY, len(XS))
    values, _ = jpool.per_example_value_and_grad(noisy)(PARAMS, XS, keys)
    for value, x, key in zip(values, XS, keys, strict=True):
        np.testing.assert_allclose(value, noisy(PARAMS, x, key), rtol=1e-6)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    ("result", "text"),
    [
        (lambda value: jnp.stack([value, value]), r"must return one float, the loss of ONE example; got array float32\[2\]. Reduce it"),
        (lambda value: None, "must return one float.*got None of type NoneType"),
        (lambda value: "loss", "must return one float.*got 'loss' of type str"),
        (lambda value: (value, 1), r"must return one float.*of type tuple. Return only the scalar, or use has_aux=True"),
        (lambda value: 3, "must return a float, because other dtypes have no gradient; got 3 of type int"),
        (lambda value: value > 0, r"must return a float.*got array bool\[\]"),
        (lambda value: value.astype(int), r"must return a float.*got array int32\[\]"),
        (lambda value: value + 1j, r"must return a float.*got array complex64\[\]"),
    ],
)  # fmt: skip
def test_a_loss_that_returns_something_else_is_refused(result, text, function):
    with pytest.raises(TypeError, match=f"{function}: loss {text}"):
        FUNCTIONS[function](lambda params, x, y: result(loss(params, x, y)))(PARAMS, XS, YS)


def test_has_aux_must_match_the_loss():
    with pytest.raises(TypeError, match=r"has_aux must be True or False; got 'a' of type str"):
        jpool.per_example_value_and_grad(loss, has_aux="a")
    with pytest.raises(
        TypeError, match=r"with has_aux=True, loss must return \(scalar, aux\) for ONE example; got array float32\[\]"
    ):
        jpool.per_example_value_and_grad(loss, has_aux=True)(PARAMS, XS, YS)
    with pytest.raises(TypeError, match=r"aux must hold arrays; got 'text' of type str at aux\['name'\]"):
        jpool.per_example_value_and_grad(lambda *a: (loss(*a), {"name": "text"}), has_aux=True)(PARAMS, XS, YS)
    (values, aux), _ = jpool.per_example_value_and_grad(lambda *a: (loss(*a), a[1]), has_aux=np.True_)(PARAMS, XS, YS)
    assert (values.shape, aux.shape) == ((5,), XS.shape)


@pytest.mark.parametrize(
    "make", [jpool.per_example_value_and_grad, statistics, lambda loss, **a: jpool.make_train_step(loss, SGD, **a)]
)
def test_axis_name_must_be_a_string(make):
    if make is statistics:
        make = jpool.gradient_statistics
    with pytest.raises(TypeError, match=r'axis_name must be a string, the name of a mesh axis such as "data"; got 3'):
        make(loss, axis_name=3)


# --- state and weights ---


def test_a_state_of_another_kind_is_refused():
    train_step = jpool.make_train_step(loss, SGD)
    for wrong in (None, PARAMS, (PARAMS, (), 0)):
        with pytest.raises(
            TypeError, match=r"step: state must be a TrainState; got .*TrainState.create\(params, optimizer\)"
        ):
            train_step(wrong, XS, YS)
    with pytest.raises(TypeError, match=r"TrainState.create: optimizer must be an optax optimiser.*got None"):
        jpool.TrainState.create(PARAMS, None)
    with pytest.raises(
        TypeError, match=r"TrainState.create: params must hold float arrays only; got 3 of type int at params\['w'\]"
    ):
        jpool.TrainState.create({"w": 3}, SGD)


def test_a_state_that_was_donated_is_refused():
    train_step, state = jpool.make_train_step(loss, SGD), jpool.TrainState.create(PARAMS, SGD)
    train_step(state, XS, YS)
    with pytest.raises(
        ValueError,
        match=r"step: state must not be deleted, for example by donation to an earlier call; got array float32.* at state.params\['b'\]. Continue with the state that the step returned",
    ):
        train_step(state, XS, YS)


def test_deleted_params_are_refused():
    for call in (
        lambda: jpool.TrainState.create({"w": DELETED}, SGD),
        lambda: jpool.per_example_value_and_grad(loss)({"w": DELETED}, XS, YS),
        lambda: jpool.gradient_statistics(loss)({"w": DELETED}, XS, YS),
    ):
        with pytest.raises(ValueError, match=r"params must not be deleted.*got array float32\[3\] at params\['w'\]"):
            call()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_deleted_arrays_are_refused(function):
    with pytest.raises(ValueError, match=rf"{function}: batch must not be deleted.*got array float32\[3\] at batch"):
        FUNCTIONS[function](loss)(PARAMS, XS, DELETED)


WEIGHTS = {
    "strings": (["1", "0", "1", "1", "1"], TypeError, "list|'1'"),
    "ragged": ([[1], [1, 0], 1, 1, 1], TypeError, "unequal rows"),
    "objects": (np.array([None] * 5), TypeError, r"ndarray object\[5\]"),
    "object": (object(), TypeError, "object"),
    "dict": ({"a": 1}, TypeError, "of type dict"),
    "keys": (jax.random.split(KEY, 5), TypeError, r"key<fry>\[5\]"),
    "masked": (np.ma.masked_array(np.ones(5), [0, 0, 0, 1, 1]), TypeError, "MaskedArray"),
    "complex": (np.ones(5, complex), TypeError, r"complex128\[5\]"),
    "dates": (np.array(["2026-11-25"] * 5, "M8[D]"), TypeError, "datetime64"),
    "too few": (np.ones(4), ValueError, r"must have shape \(5,\), one for each example; got shape \(4,\)"),
    "a number": (1, ValueError, r"must have shape \(5,\)"),
    "halves": (np.full(5, 0.5), ValueError, r"must be 1 for an example and 0 for padding; got \[0.5\]"),
    # Checked as they are given: JAX would narrow these to zeros and ones.
    "2**32": (np.array([1, 0, 2**32, 1, 1]), ValueError, r"must be 1 for an example.*got \[4294967296\]"),
    "2**63": (np.array([1, 0, 2**63, 1, 1], np.uint64), ValueError, r"got \[9223372036854775808\]"),
    "almost 0": (np.array([1, 0, 1e-320, 1, 1]), ValueError, r"got \[1e-320\]"),
    "almost 1": ([1, 0, 1 - 1e-12, 1, 1], ValueError, r"got \[0.999999999999\]"),
    "long": (np.ones(5, np.longdouble), TypeError, "float128|longdouble"),
    "other byte order": (np.ones(5, ">i4"), TypeError, ">i4"),
    "nan": (np.array([1, 1, 1, 1, np.nan]), ValueError, "must be 1 for an example"),
}


@pytest.mark.parametrize("function", ["gradient_statistics", "step"])
@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_of_another_kind_are_refused_by_name(name, function):
    weights, error, text = WEIGHTS[name]
    with pytest.raises(error, match=f"{function}: weights .*({text})"):
        FUNCTIONS[function](loss)(PARAMS, XS, YS, weights=weights)


@pytest.mark.parametrize("weights", [[1, 1, 0, 1, 0], (True, True, False, True, False), np.array([1.0, 1, 0, 1, 0])])
def test_weights_may_be_any_sequence_of_zeros_and_ones(weights):
    expected = jpool.gradient_statistics(loss)(PARAMS, XS[jnp.array([0, 1, 3])], YS[jnp.array([0, 1, 3])]).mean
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
        jpool.gradient_statistics(loss)(PARAMS, XS, YS, weights=weights).mean,
        expected,
    )


def test_weights_that_are_all_zero_are_refused_and_the_state_survives():
    train_step, state = jpool.make_train_step(loss, SGD), jpool.TrainState.create(PARAMS, SGD)
    with pytest.raises(ValueError, match="step: the mean of no examples is undefined; got weights that are all 0"):
        train_step(state, XS, YS, weights=jnp.zeros(5))
    train_step(state, XS, YS, weights=jnp.ones(5))


@pytest.mark.parametrize("optimizer", [optax.adam(0.1), optax.noisy_sgd(0.1, key=KEY)])
def test_traced_weights_that_are_all_zero_change_nothing(optimizer):
    train_step = jax.jit(jpool.make_train_step(loss, optimizer))  # weights are traced
    state = jpool.TrainState.create(PARAMS, optimizer)
    after, metrics = train_step(state, XS, YS, weights=jnp.zeros(5))
    as_numbers = lambda leaf: jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf  # noqa: E731
    fresh = jpool.TrainState.create(PARAMS, optimizer)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(as_numbers(a), as_numbers(b)), after, fresh)
    assert np.isnan(metrics.loss)
    assert np.isnan(metrics.gradient_norm)
    stepped, _ = train_step(after, XS, YS, weights=jnp.ones(5))
    expected, _ = jpool.make_train_step(loss, optimizer)(fresh, XS, YS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), stepped.params, expected.params)


# --- batches by keyword ---


def test_a_batch_by_keyword_is_the_same_as_by_position():
    results = [
        jpool.per_example_value_and_grad(loss)(PARAMS, XS, y=YS),
        jpool.per_example_value_and_grad(loss)(PARAMS, y=YS, x=XS),
        jpool.per_example_value_and_grad(loss)(PARAMS, XS, YS),
    ]
    for result in results[:2]:
        jax.tree.map(np.testing.assert_array_equal, result, results[2])
    weights = np.array([1, 1, 0, 1, 1])
    of_keywords = jpool.gradient_statistics(loss, microbatch_size=2)(PARAMS, x=XS, y=YS, weights=weights)
    jax.tree.map(
        np.testing.assert_array_equal,
        of_keywords,
        jpool.gradient_statistics(loss, microbatch_size=2)(PARAMS, XS, YS, weights=weights),
    )


@pytest.mark.parametrize("devices", [None, 5])
def test_a_step_takes_a_batch_by_keyword(devices):
    mesh = devices and jax.make_mesh((devices,), ("data",), devices=jax.devices()[:devices])
    train_step = jpool.make_train_step(loss, SGD, mesh=mesh)
    states = [jpool.TrainState.create(PARAMS, SGD) for _ in range(2)]
    by_keyword, _ = train_step(states[0], x=XS, y=YS)
    by_position, _ = train_step(states[1], XS, YS)
    jax.tree.map(np.testing.assert_array_equal, by_keyword.params, by_position.params)
    with pytest.raises(
        ValueError,
        match=re.escape(
            "step: every array of the batch must have the examples on its first axis, the same number in each; got arrays of shapes [(5, 3), (4,)]"
        ),
    ):
        train_step(by_keyword, x=XS, y=YS[:4])
    with pytest.raises(
        ValueError, match=r"first axis, the same number in each; got no array\. Give the inputs of the loss"
    ):
        train_step(by_keyword)


def test_a_step_refuses_the_state_of_another_optimizer_or_of_other_parameters():
    adam, text = (
        optax.adam(0.1),
        r"step: state.opt_state must be a state of the step's own optimizer.*TrainState.create",
    )
    of = {"sgd": jpool.TrainState.create(PARAMS, SGD), "adam": jpool.TrainState.create(PARAMS, adam)}
    of["momentum"] = jpool.TrainState.create(PARAMS, optax.sgd(0.1, momentum=0.9))
    other = jpool.TrainState.create({**PARAMS, "w": jnp.ones(7)}, adam)
    of["other parameters"] = of["adam"]._replace(opt_state=other.opt_state)
    for optimizer, own in ((SGD, "sgd"), (adam, "adam")):
        step = jpool.make_train_step(loss, optimizer)
        for name, state in of.items():
            if name != own:
                with pytest.raises(ValueError, match=text):
                    step(state, XS, YS)
    jpool.make_train_step(loss, adam)(of["adam"], XS, YS)  # no refused call has donated it


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("argument", ["params", "state", "batch", "self", "arguments", "positional", "named"])
def test_an_argument_of_the_loss_may_have_any_name_but_weights(function, argument):
    named = lambda params, x, /, **others: loss(params, x, others[argument])  # noqa: E731
    fresh = lambda: jax.tree.map(jnp.array, PARAMS)  # noqa: E731
    actual = FUNCTIONS[function](named)(fresh(), XS, **{argument: YS})
    jax.tree.map(np.testing.assert_array_equal, actual, FUNCTIONS[function](loss)(fresh(), XS, YS))


def grows(params):
    return optax.EmptyState()


# Optimisers whose state has another form after the first step, or whose init cannot be repeated without values.
UNUSUAL = {
    "monitor": optax.chain(optax.monitor({"norm": optax.tree.norm}), optax.sgd(0.1)),
    "grows": optax.GradientTransformation(grows, lambda g, s, p=None: (jax.tree.map(lambda g: -g, g), (jnp.ones(3),))),
    "reads values": optax.GradientTransformation(
        lambda params: float(jnp.abs(params["w"]).max()), lambda g, s, p=None: (jax.tree.map(lambda g: -s * g, g), s)
    ),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_a_step_accepts_the_state_that_it_returned(name):
    step = jpool.make_train_step(loss, UNUSUAL[name])
    state = jpool.TrainState.create(PARAMS, UNUSUAL[name])
    for _ in range(3):
        state, _ = step(state, XS, YS)
    assert state.step == 3


@pytest.mark.parametrize("optimizer", [SGD, optax.adam(0.1)])
def test_a_restored_state_may_have_lists_and_the_state_may_be_given_by_keyword(optimizer):
    step = jpool.make_train_step(lambda params, x, y: loss(params, x, y), optimizer)
    create = lambda: jpool.TrainState.create(PARAMS, optimizer)  # noqa: E731
    expected, _ = step(create(), XS, YS)
    restored = create()._replace(opt_state=list(create().opt_state), step=np.int64(0))
    for after, _ in (step(restored, XS, YS), step(state=create(), x=XS, y=YS)):
        jax.tree.map(np.testing.assert_array_equal, after.params, expected.params)
    assert step.lower(state=create(), x=XS, y=YS).as_text()


@pytest.mark.parametrize(
    ("part", "value", "error", "text"),
    [
        ("step", "0", TypeError, "state must hold arrays of numbers; got '0' of type str at state.step"),
        ("step", None, ValueError, r"state.step must be an integer from 0 to 2\*\*31 - 1; got None"),
        ("step", np.int64(2**32), ValueError, "state.step must be an integer.*got np.int64"),
        ("step", 2**31, ValueError, "state.step must be an integer.*got 2147483648"),
        (
            "opt_state",
            "adam",
            TypeError,
            "state must hold arrays of numbers; got 'adam' of type str at state.opt_state",
        ),
    ],
)
def test_parts_of_a_state_of_another_kind_are_refused(part, value, error, text):
    state = jpool.TrainState.create(PARAMS, SGD)._replace(**{part: value})
    with pytest.raises(error, match=f"step: {text}"):
        jpool.make_train_step(loss, SGD)(state, XS, YS)
