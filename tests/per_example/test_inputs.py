"""Arguments of the wrong kind are refused by name, before JAX sees them, and the state survives."""

import datetime

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from shared.regression import MAKERS, PARAMS, SGD, XS, YS, assert_close, assert_equal, by_definition, loss

import jpool

pytestmark = pytest.mark.usefixtures("promotion_as_usual", "compiled_quickly")
ADAM = optax.adam(0.1)
STEP, STATISTICS = jpool.make_train_step(loss, SGD), jpool.gradient_statistics(loss)
KEY = jax.random.key(0)
DELETED = jnp.ones(3)
DELETED.delete()


def step(loss):
    """A step of a state whose parameters are given, as the other two functions are called."""
    function = jpool.make_train_step(loss, SGD)
    state = lambda params: jpool.TrainState(params, SGD.init({}), jnp.int32(0))  # noqa: E731
    return lambda params, /, *batch, **named: function(state(params), *batch, **named)


FUNCTIONS = {
    "per_example_value_and_grad": jpool.per_example_value_and_grad,
    "gradient_statistics": jpool.gradient_statistics,
    "step": step,
}


@pytest.fixture(autouse=True)
def _no_refused_call_has_donated_anything():
    yield
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(PARAMS))


def after_a_step(ys=YS):
    """The parameters after one step of SGD."""
    _, gradients = by_definition(PARAMS, ys=ys)
    return {name: np.asarray(PARAMS[name]) - 0.125 * gradients[name].mean(0) for name in PARAMS}


# --- options ---


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize(("options", "error", "text"), [
    ({"loss": 3}, TypeError, "loss must be a function.*got 3"),
    ({"axis_name": 3}, TypeError, 'axis_name must be a string, the name of a mesh axis such as "data"; got 3'),
    ({"mesh": 4}, TypeError, r"mesh must be a jax\.sharding\.Mesh.*got 4"),
    ({"mesh": jax.make_mesh((1,), ("rows",))}, ValueError, r"axis_name must be one of .*\('rows',\); got 'data'.*axis_name='rows'"),
    ({"microbatch_size": 0}, ValueError, "microbatch_size must be an int >= 1, or None .*got 0"),
    ({"microbatch_size": -1}, ValueError, "microbatch_size must be an int >= 1, or None .*got -1"),
    ({"microbatch_size": 1.5}, TypeError, "microbatch_size must be an int >= 1, or None .*got 1.5"),
    ({"microbatch_size": True}, TypeError, "microbatch_size must be an int >= 1, or None .*got True"),
    ({"has_aux": "a"}, TypeError, "has_aux must be True or False; got 'a' of type str"),
])  # fmt: skip
def test_wrong_options_are_refused_by_name(options, error, text, name):
    accepted = {"loss", "axis_name", "mesh", "has_aux" if name == "per_example_value_and_grad" else "microbatch_size"}
    if accepted >= set(options):
        with pytest.raises(error, match=f"{name}: {text}"):
            MAKERS[name](**{"loss": loss, **options})


def test_what_is_no_optimizer_or_no_parameters_is_refused():
    with pytest.raises(TypeError, match=r"make_train_step: optimizer must be an optax optimiser.*got 0\.1"):
        jpool.make_train_step(loss, 0.1)
    with pytest.raises(TypeError, match=r"TrainState.create: optimizer must be an optax optimiser.*got None"):
        jpool.TrainState.create(PARAMS, None)
    with pytest.raises(TypeError, match=r"TrainState.create: params must hold float arrays only; got 3 of type int at params\['w'\]"):  # fmt: skip
        jpool.TrainState.create({"w": 3}, SGD)


# --- parameters, batch and loss ---


# What is no array of numbers, how an error names it, and where it is refused: floats are parameters, keys are a batch.
EVERYWHERE = ("params", "batch", "weights")
LEAVES = {
    "function": (jax.nn.relu, "got .* of type .*", EVERYWHERE),
    "words": ("words", "got 'words' of type str", EVERYWHERE),
    "date": (datetime.date(2026, 11, 25), "got datetime.date", EVERYWHERE),
    "object": (object(), "got <object object", EVERYWHERE),
    "shape": (jax.ShapeDtypeStruct((5,), jnp.float32), r"got ShapeDtypeStruct float32\[5\]", EVERYWHERE),
    "strings": (np.array(["a"] * 5), r"got ndarray <U1\[5\]", EVERYWHERE),
    "objects": (np.array([None] * 5), r"got ndarray object\[5\]", EVERYWHERE),
    "dates": (np.array(["2026-11-25"] * 5, "M8[D]"), r"got ndarray datetime64\[D\]\[5\]", EVERYWHERE),
    "differences": (np.ones(5, "m8[s]"), "got ndarray timedelta64", EVERYWHERE),
    "masked": (np.ma.masked_array(np.ones(5), [0, 0, 0, 1, 1]), r"got MaskedArray float64\[5\]", EVERYWHERE),
    "long": (np.ones(5, np.longdouble), "got ndarray (float128|longdouble)", EVERYWHERE),
    "other byte order": (np.ones(5, ">f4"), r"got ndarray >f4\[5\]", EVERYWHERE),
    "keys": (jax.random.wrap_key_data(np.ones((5, 2), np.uint32)), r"got array key<fry>\[5\]", ("params", "weights")),
    "complex": (np.ones(5, complex), r"got ndarray complex128\[5\]", ("params", "weights")),
    "int": (3, "got 3 of type int", ("params",)),
    "bool": (True, "got True of type bool", ("params",)),
    "complex number": (1j, "got 1j of type complex", ("params",)),
    "ints": (jnp.asarray(np.arange(3)), r"got array int32\[3\]", ("params",)),
    "bools": (np.ones(2, bool), r"got ndarray bool\[2\]", ("params",)),
    "dict": ({"a": 1}, "got {'a': 1} of type dict", ("weights",)),
    "ragged": ([[1], [1, 0], 1, 1, 1], "got a list of unequal rows", ("weights",)),
}  # fmt: skip


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("name", LEAVES)
def test_what_is_no_array_of_numbers_is_refused_with_its_path(name, function):
    leaf, got, wheres = LEAVES[name]
    f, params = FUNCTIONS[function](loss), "state.params" if function == "step" else "params"
    advice = r".*eqx\.partition.*nnx\.split"
    floats, numbers = f"{params} must hold float arrays only", "batch must hold arrays of numbers"
    ones = "weights must be an array of zeros and ones, one for each example"
    calls = {
        "params": [(rf"{floats}; {got}.* at {params}\['extra'\]\[1\]{advice}", {**PARAMS, "extra": (1.0, leaf)}, (XS, YS), {})],
        "batch": [(rf"{numbers}; {got}.* at batch\[1\]", PARAMS, (XS, leaf), {}), (rf"{numbers}; {got}.* at batch\['y'\]", PARAMS, (XS,), {"y": leaf})],
        "weights": [] if function == "per_example_value_and_grad" else [(f"{ones}; {got}", PARAMS, (XS, YS), {"weights": leaf})],
    }  # fmt: skip
    for text, first, batch, named in [one for where in wheres for one in calls[where]]:
        with pytest.raises(TypeError, match=f"{function}: {text}"):
            f(first, *batch, **named)


def test_none_floats_and_numpy_arrays_are_parameters():
    params = {"w": np.asarray(PARAMS["w"]), "b": 0.25, "absent": None}
    values, gradients = jpool.per_example_value_and_grad(loss)(params, XS, YS)
    assert_equal((values, gradients), (by_definition(params)[0], {**by_definition(params)[1], "absent": None}))
    after, _ = STEP(jpool.TrainState.create(params, SGD), XS, YS)
    assert_close(after.params, {**after_a_step(), "absent": None}, 1e-6)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(("result", "text"), [
    (lambda value: jnp.stack([value, value]), r"must return one float, the loss of ONE example; got array float32\[2\]. Reduce it"),
    (lambda value: None, "must return one float.*got None of type NoneType"),
    (lambda value: "loss", "must return one float.*got 'loss' of type str"),
    (lambda value: (value, 1), r"must return one float.*of type tuple. Return only the scalar, or use has_aux=True"),
    (lambda value: 3, "must return a float, because other dtypes have no gradient; got 3 of type int"),
    (lambda value: value > 0, r"must return a float.*got array bool\[\]"),
    (lambda value: value.astype(int), r"must return a float.*got array int32\[\]"),
    (lambda value: value + 1j, r"must return a float.*got array complex64\[\]"),
])  # fmt: skip
def test_a_loss_that_returns_something_else_is_refused(result, text, function):
    with pytest.raises(TypeError, match=f"{function}: loss {text}"):
        FUNCTIONS[function](lambda params, x, y: result(params["b"] * y))(PARAMS, XS, YS)


@pytest.mark.parametrize(("result", "text"), [
    (lambda value: value, r"with has_aux=True, loss must return \(scalar, aux\) for ONE example; got array float32\[\]"),
    (lambda value: (value, {"name": "text"}), r"aux must hold arrays; got 'text' of type str at aux\['name'\]"),
])  # fmt: skip
def test_a_loss_without_aux_is_refused(result, text):
    with pytest.raises(TypeError, match=text):
        jpool.per_example_value_and_grad(lambda params, x, y: result(params["b"] * y), has_aux=True)(PARAMS, XS, YS)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_batch_by_keyword_whose_names_are_any_but_weights(function):
    names = ["params", "state", "batch", "self", "arguments", "positional", "named"]
    f = FUNCTIONS[function](lambda params, x, /, **others: loss(params, x, sum(others[name] for name in names)))
    actual, ys = f(jax.tree.map(jnp.array, PARAMS), XS, **dict.fromkeys(names, YS)), 7 * YS
    losses, gradients = by_definition(PARAMS, ys=ys)
    if function == "step":
        assert_close(actual[0].params, after_a_step(ys=ys), 1e-6)
    else:
        assert_equal(actual[0], losses)
    if function == "per_example_value_and_grad":
        assert_equal(actual[1], gradients)


# --- weights ---

NO_BATCH = r"every array of the batch must have the examples on its first axis, the same number in each; got"
NO_EXAMPLES = "the mean of no examples is undefined; got"
SHAPE = r"weights must have shape \(5,\), one for each example; got shape"
VALUES = "weights must be 1 for an example and 0 for padding; got"
EVERY, WEIGHTED = list(FUNCTIONS), ["gradient_statistics", "step"]
CALLS = {
    "no batch": (EVERY, (), {}, rf"{NO_BATCH} no array\. Give the inputs of the loss"),
    "an empty tree": (EVERY, ({},), {}, f"{NO_BATCH} no array"),
    "other lengths": (EVERY, (XS, YS[:4]), {}, rf"{NO_BATCH} arrays of shapes \[\(5, 3\), \(4,\)\]"),
    "by keyword": (EVERY, (XS,), {"y": YS[:4]}, rf"{NO_BATCH} arrays of shapes \[\(5, 3\), \(4,\)\]"),
    "a number": (EVERY, (XS, np.float32(1)), {}, rf"{NO_BATCH} arrays of shapes \[\(5, 3\), \(\)\]"),
    "no examples": (WEIGHTED, (XS[:0], YS[:0]), {}, f"{NO_EXAMPLES} a batch of shapes"),
    "weights of zero": (["step"], (XS, YS), {"weights": np.zeros(5)}, f"{NO_EXAMPLES} weights that are all 0"),
    "too few weights": (WEIGHTED, (XS, YS), {"weights": np.ones(4)}, rf"{SHAPE} \(4,\)"),
    "a column": (WEIGHTED, (XS, YS), {"weights": np.ones((5, 1))}, rf"{SHAPE} \(5, 1\)"),
    "one weight": (WEIGHTED, (XS, YS), {"weights": 1}, rf"{SHAPE} \(\)"),
    "halves": (WEIGHTED, (XS, YS), {"weights": np.full(5, 0.5)}, rf"{VALUES} \[0.5\]"),
    # Checked as they are given: JAX would narrow these to zeros and ones.
    "2**32": (WEIGHTED, (XS, YS), {"weights": np.array([1, 0, 2**32, 1, 1])}, rf"{VALUES} \[4294967296\]"),
    "2**63": (WEIGHTED, (XS, YS), {"weights": np.array([1, 0, 2**63, 1, 1], np.uint64)}, rf"{VALUES} \[9223372036854775808\]"),
    "almost 0": (WEIGHTED, (XS, YS), {"weights": np.array([1, 0, 1e-320, 1, 1])}, rf"{VALUES} \[1e-320\]"),
    "almost 1": (WEIGHTED, (XS, YS), {"weights": [1, 0, 1 - 1e-12, 1, 1]}, rf"{VALUES} \[0.999999999999\]"),
    "nan": (WEIGHTED, (XS, YS), {"weights": np.array([1, 1, 1, 1, np.nan])}, rf"{VALUES} \[nan\]"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "function"), [(name, function) for name in CALLS for function in CALLS[name][0]])
def test_batches_and_weights_with_wrong_values_or_shapes_are_refused(name, function):
    _, batch, named, text = CALLS[name]
    with pytest.raises(ValueError, match=f"{function}: {text}"):
        FUNCTIONS[function](loss)(PARAMS, *batch, **named)


@pytest.mark.parametrize("weights", [[1, 1, 0, 1, 0], (True, True, False, True, False), np.array([1.0, 1, 0, 1, 0])])
def test_weights_may_be_any_sequence_of_zeros_and_ones(weights):
    _, gradients = by_definition(PARAMS)
    actual = STATISTICS(PARAMS, XS, YS, weights=weights).mean
    assert_close(actual, jax.tree.map(lambda gradient: gradient[[0, 1, 3]].mean(0), gradients), 1e-6)


def test_traced_weights_that_are_all_zero_change_nothing():
    """Not the random key of the optimiser either."""
    next_key = lambda key: jax.random.wrap_key_data(jax.random.key_data(key) + 1)  # noqa: E731
    moved = optax.GradientTransformation(
        lambda params: (KEY, params),
        lambda g, state, params=None: (jax.tree.map(lambda g: -0.125 * g, g), (next_key(state[0]), g)),
    )
    train_step = jax.jit(jpool.make_train_step(loss, moved))  # weights are traced
    numbers = lambda state: state._replace(opt_state=(jax.random.key_data(state.opt_state[0]), state.opt_state[1]))  # noqa: E731
    state = jpool.TrainState.create(PARAMS, moved)
    after, metrics = train_step(state, XS, YS, weights=np.zeros(5))
    assert_equal(numbers(after), numbers(state))
    assert np.isnan([metrics.loss, metrics.gradient_norm]).all()
    stepped, _ = train_step(after, XS, YS, weights=np.ones(5))
    assert_close(stepped.params, after_a_step(), 1e-6)
    assert jax.random.key_data(stepped.opt_state[0]).tolist() == [1, 1]


# --- the state ---


KIND = r"state must be a TrainState; got .*TrainState.create\(params, optimizer\)"
NUMBERS, STEPS = "state must hold arrays of numbers; got", "state.step must be an integer from 0 to 2\\*\\*31 - 1; got"


@pytest.mark.parametrize(("state", "error", "text"), [
    (None, TypeError, KIND),
    (PARAMS, TypeError, KIND),
    ((PARAMS, (), 0), TypeError, KIND),
    (jpool.TrainState(PARAMS, SGD.init({}), "0"), TypeError, f"{NUMBERS} '0' of type str at state.step"),
    (jpool.TrainState(PARAMS, SGD.init({}), None), ValueError, f"{STEPS} None"),
    (jpool.TrainState(PARAMS, SGD.init({}), np.int64(2**32)), ValueError, f"{STEPS} np.int64"),
    (jpool.TrainState(PARAMS, SGD.init({}), 2**31), ValueError, f"{STEPS} 2147483648"),
    (jpool.TrainState(PARAMS, "adam", 0), TypeError, f"{NUMBERS} 'adam' of type str at state.opt_state"),
])  # fmt: skip
def test_a_state_of_another_kind_is_refused(state, error, text):
    with pytest.raises(error, match=f"step: {text}"):
        STEP(state, XS, YS)


def test_deleted_arrays_are_refused_with_their_path():
    text = r"{}: {} must not be deleted, for example by donation to an earlier call; got array float32\[3\] at {}"
    deleted, at = {**PARAMS, "w": DELETED}, r"params\['w'\]"
    state = jpool.TrainState(deleted, SGD.init({}), jnp.int32(0))
    for name, argument, path, call in [
        ("TrainState.create", "params", at, lambda: jpool.TrainState.create(deleted, SGD)),
        ("per_example_value_and_grad", "params", at, lambda: jpool.per_example_value_and_grad(loss)(deleted, XS, YS)),
        ("gradient_statistics", "params", at, lambda: STATISTICS(deleted, XS, YS)),
        ("step", "state", rf"state\.{at}. Continue with the state that the step returned", lambda: STEP(state, XS, YS)),
        ("gradient_statistics", "weights", "weights", lambda: STATISTICS(PARAMS, XS, YS, weights=DELETED)),
        *[(name, "batch", r"batch\[1\]", lambda name=name: FUNCTIONS[name](loss)(PARAMS, XS, DELETED)) for name in FUNCTIONS],
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=text.format(name, argument, path)):
            call()


@pytest.mark.parametrize(("optimizer", "other", "params"), [
    (SGD, ADAM, PARAMS),
    (SGD, optax.sgd(0.1, momentum=0.9), PARAMS),
    (ADAM, SGD, PARAMS),
    (optax.rmsprop(0.1), optax.sgd(0.1, momentum=0.9), PARAMS),  # arrays of the same shapes
    (ADAM, ADAM, {**PARAMS, "w": np.ones(7, np.float32)}),
])  # fmt: skip
def test_a_step_refuses_the_state_of_another_optimizer_or_of_other_parameters(optimizer, other, params):
    text = r"step: state.opt_state must be a state of the step's own optimizer.*TrainState.create"
    with pytest.raises(ValueError, match=text):
        jpool.make_train_step(loss, optimizer)(jpool.TrainState(PARAMS, other.init(params), jnp.int32(0)), XS, YS)


# Optimisers whose state has another form after the first step, or whose init cannot be repeated without values.
UNUSUAL = {
    "monitor": optax.chain(optax.monitor({"norm": optax.tree.norm}), optax.sgd(0.1)),
    "reads values": optax.GradientTransformation(
        lambda params: float(np.abs(params["w"]).max()), lambda g, s, p=None: (jax.tree.map(lambda g: -s * g, g), s)
    ),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_a_step_accepts_the_state_that_it_returned(name):
    step, state = jpool.make_train_step(loss, UNUSUAL[name]), jpool.TrainState.create(PARAMS, UNUSUAL[name])
    for _ in range(3):
        state, _ = step(state, XS, YS)
    assert state.step == 3


def test_a_restored_state_may_have_lists_and_the_state_may_be_given_by_keyword():
    step = jpool.make_train_step(loss, ADAM)
    create = lambda: jpool.TrainState.create(PARAMS, ADAM)  # noqa: E731
    expected, _ = step(state=create(), x=XS, y=YS)
    restored = create()._replace(opt_state=list(create().opt_state), step=np.int64(0))
    assert_equal(step(restored, XS, YS)[0].params, expected.params)
    assert step.lower(state=create(), x=XS, y=YS).as_text()
