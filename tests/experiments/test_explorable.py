"""The explorable page in a browser: the committed copy, offline, and its arithmetic against jpool's."""

import base64
import json
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jpool
from experiments import wrong_averages
from experiments.explorable import __main__ as explorable
from jpool.pooling.plain.ties import RULES

pytestmark = pytest.mark.usefixtures("promotion_as_usual", "compiled_quickly")

PAGE = explorable.FOLDER / "explorable.html"
SHAPES = {
    "images": (28, 28), "maps": (24, 24), "winners": (12, 12), "cotangents": (12, 12), "gradients": (5, 5),
    "filter": (5, 5), "after": (5, 5), "full": (5, 5),
}  # fmt: skip
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync")
POOL = jax.vmap(lambda x: jpool.max_pool(x, (2, 2), 2, channel_axis=None))
MINUS = "\N{MINUS SIGN}"
inf, nan = np.inf, np.nan


def numbers_of(html):
    """The numbers in a page, arrays in their shapes."""
    shown = json.loads(re.search(r'id="data">(.*?)</script>', html)[1])
    for name, shape in SHAPES.items():
        dtype = np.uint8 if name in ("images", "winners") else np.dtype("<f4")
        array = np.frombuffer(base64.b64decode(shown[name]), dtype)
        shown[name] = array.reshape(shape if array.size == np.prod(shape) else (-1, *shape))
    return shown


@pytest.fixture(scope="module")
def shown():
    return numbers_of(PAGE.read_text())


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="no browser: playwright is not installed")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no browser: Chromium is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """Opens the page offline; afterwards there must have been no message in the console, and no request."""
    contexts, troubles, requests = [], [], []

    def open_page(**options):
        context = browser.new_context(offline=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.clock.install(time=0)
        page.clock.pause_at(1)  # from here time passes by `run_for` alone, however slow the machine is
        page.goto(PAGE.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert troubles == []
    assert requests == [PAGE.as_uri()] * len(contexts)


def said(page, part):
    return page.locator(f"#said-{part}").inner_text()


# --- the file ---


def test_the_committed_page_is_small_and_up_to_date(shown):
    html = PAGE.read_text()
    assert len(html.encode()) < 1_000_000
    about = re.search(r"experiments.explorable</code>: (.*?)\.</p>", html)[1]
    data = re.search(r'id="data">(.*?)</script>', html)[1]
    steps = re.search(r"of (\d+) training steps, as", html)[1]
    step = re.search(r"after (\d+) training steps", html)[1]
    again = explorable.fill(
        examples=len(shown["images"]), step=step, steps=steps, digits="4,000", about=about, data=data
    )
    assert again == html
    assert (len(shown["images"]), steps, step) == (100, "300", "100")


def test_template_and_script_are_short():
    files = ("template.html", "script.js")
    assert sum(len((explorable.FOLDER / name).read_text().splitlines()) for name in files) <= 525


def test_the_angles_are_those_of_the_gallery(shown):
    gallery = (Path(__file__).parents[2] / "experiments/README.md").read_text()
    for way in shown["ways"]:
        (row,) = re.findall(rf"^\| {re.escape(way['name'][:3])} .*", gallery, re.MULTILINE)[:1]
        assert row.endswith(f"| {way['cosine']:.2f} | {way['norm']:.2f} |")


@pytest.mark.exhaustive
def test_a_page_of_few_steps_has_the_numbers_of_wrong_averages(tmp_path, capsys):
    explorable.main(["--steps", "2", "--seed", "3", "--out", str(tmp_path)])
    assert re.search(r"^page: .*/explorable.html, \d+ kB\n", capsys.readouterr().out, re.MULTILINE)
    ways = numbers_of((tmp_path / "explorable.html").read_text())["ways"]
    results = wrong_averages.measure(3, 2)
    for way in ways:
        expected = np.median(results.likenesses[f"LeNet {way['name'][:3]}"], 0)
        np.testing.assert_array_equal([way["cosine"], way["norm"]], expected)


# --- its arithmetic ---


@pytest.mark.parametrize("rule", RULES)
def test_the_tie_rules_of_the_page_are_jpools(visit, rule):
    rng = np.random.default_rng(0)
    windows = [rng.choice([-inf, -1.0, -0.0, 0.0, 1.0, inf, nan], size) for size in (2, 4) for _ in range(150)]
    page = visit()
    actual = page.evaluate(f"windows => windows.map(window => shares(window, '{rule}'))", [w.tolist() for w in windows])
    for size in (2, 4):
        xs = jnp.array([window for window in windows if len(window) == size], jnp.float32)
        pool = lambda x, size=size: jpool.max_pool(x, (size,), channel_axis=None, ties=rule)[0]  # noqa: E731
        _, backward = jax.vjp(jax.vmap(pool), xs)
        theirs = np.array([part for part in actual if len(part) == size], np.float32)  # a third is rounded
        np.testing.assert_array_equal(theirs, backward(jnp.ones(len(xs)))[0])


def test_winners_values_and_routing_of_the_page_are_jpools(visit, shown):
    page = visit()
    values, backward = jax.vjp(POOL, jnp.asarray(shown["maps"]))
    winners = np.array(page.evaluate("winners"))
    np.testing.assert_array_equal(
        np.take_along_axis(shown["maps"].reshape(100, -1), winners, 1), values.reshape(100, -1)
    )
    routed = page.evaluate("winners.map((one, i) => Array.from(route(one, cotangents[i])))")
    np.testing.assert_array_equal(np.array(routed), backward(jnp.asarray(shown["cotangents"]))[0].reshape(100, -1))
    won = np.asarray(backward(jnp.ones_like(values))[0]).reshape(100, -1)
    for n in (1, 2, 37, 100):
        np.testing.assert_array_equal(page.evaluate(f"wins({n})"), won[:n].sum(0))
    assert "14,400 of 14,400 winners agreed with jpool's" in page.locator("#check").inner_text()


def test_running_mean_and_step_of_the_page_are_jpools(visit, shown):
    page, gradients = visit(), shown["gradients"]
    means = np.array(page.evaluate("means"))
    exact = gradients.reshape(100, -1).astype(float).cumsum(0) / np.arange(1, 101)[:, None]
    np.testing.assert_array_equal(means, exact)
    for n in (1, 7, 100):
        ours = jpool.mean_over_examples().update(jnp.asarray(gradients[:n]), None)[0]
        np.testing.assert_allclose(means[n - 1], ours.ravel(), rtol=0, atol=1e-6 * np.abs(gradients[:n]).max())
    after = page.evaluate("afterStep(means.at(-1), data.rate)")
    np.testing.assert_allclose(after, shown["after"].ravel(), rtol=0, atol=1e-6 * np.abs(shown["after"]).max())
    distances = np.linalg.norm(exact - shown["full"].ravel(), axis=1)
    np.testing.assert_allclose(page.evaluate("distances"), distances, rtol=1e-12)


# --- what the reader sees and does ---


@pytest.mark.parametrize("width", [360, 1600])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_loads_offline_fits_and_has_words_for_every_picture_and_control(visit, width, scheme):
    page = visit(viewport={"width": width, "height": 800}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    pictures = page.locator("canvas, svg")
    assert pictures.count() >= 32
    for i in range(pictures.count()):
        picture = pictures.nth(i)
        assert picture.get_attribute("role") == "img"
        assert len(picture.get_attribute("aria-label")) > 20
        assert picture.bounding_box()["width"] >= 100
    assert page.evaluate("[...document.querySelectorAll('input')].every(input => input.labels[0]?.innerText.trim())")
    paper = page.evaluate("Array.from($('digit').getContext('2d').getImageData(1, 1, 1, 1).data)")
    assert (paper[:3] == [255, 255, 255]) == (scheme == "light")


def test_the_colours_follow_the_scheme_while_the_page_is_open(visit):
    page = visit(color_scheme="light")
    picture = lambda: page.evaluate("$('digit').toDataURL()")  # noqa: E731
    light = picture()
    page.emulate_media(color_scheme="dark")
    page.screenshot()  # the page hears of the change with its next frame, and a screenshot waits for one
    assert picture() != light


def covered(shown, n):
    """The text about the elements that have won, computed by jpool."""
    values, backward = jax.vjp(POOL, jnp.asarray(shown["maps"][:n]))
    count = int((backward(jnp.ones_like(values))[0] > 0).any(0).sum())
    return f"examples 1 to {n}: {count} of 576, {100 * count / 576:.1f} %."


def test_slider_keys_and_play_step_through_the_batch(visit, shown):
    page = visit()
    slider = page.locator("#example-batch")
    assert covered(shown, 1) in said(page, "batch")
    slider.press("ArrowRight")
    assert covered(shown, 2) in said(page, "batch")
    slider.press("End")
    assert covered(shown, 100) in said(page, "batch")
    assert f"Example 100 is a {shown['labels'][99]}." in said(page, "batch")
    page.locator("#example-one").press("Home")
    assert slider.input_value() == "1"  # all parts show the same example
    page.locator("h1").click()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert covered(shown, 2) in said(page, "batch")
    play = page.get_by_role("button", name="Play")
    play.click()
    page.clock.run_for(10 * 150)
    page.get_by_role("button", name="Pause").click()
    page.clock.run_for(1000)
    assert covered(shown, 12) in said(page, "batch")
    slider.press("End")
    play.click()  # starts again from the first
    page.clock.run_for(100 * 150)
    assert slider.input_value() == "100"
    assert play.inner_text() == "Play"


def test_with_reduced_motion_playing_is_slow(visit):
    page = visit(reduced_motion="reduce")
    page.get_by_role("button", name="Play").click()
    page.clock.run_for(2500)
    assert page.locator("#example-batch").input_value() == "3"


@pytest.mark.parametrize("way", ["mouse", "touch", "keys"])
def test_a_pooled_cell_shows_its_window_its_winner_and_its_cotangent(visit, shown, way):
    page, row, column, example = visit(has_touch=way == "touch"), 7, 3, 5
    for _ in range(example - 1):
        page.locator("#example-one").press("ArrowRight")
    before = page.evaluate("$('routed').toDataURL()")
    if way == "keys":
        for name, presses in {"row": row - 5, "column": column - 6}.items():
            for _ in range(abs(presses)):
                page.locator(f"#{name}").press("ArrowRight" if presses > 0 else "ArrowLeft")
    else:
        pooled = page.locator("#pooled")
        pooled.scroll_into_view_if_needed()
        area = pooled.bounding_box()
        at = area["x"] + area["width"] * (column - 0.5) / 12, area["y"] + area["height"] * (row - 0.5) / 12
        (page.mouse.move if way == "mouse" else page.touchscreen.tap)(*at)
    assert [page.locator(f"#{name}").input_value() for name in ("row", "column")] == [str(row), str(column)]
    assert page.evaluate("$('routed').toDataURL()") != before
    values, argmax = jpool.max_pool_with_argmax(jnp.asarray(shown["maps"][4]), (2, 2), 2, channel_axis=None)
    at = np.add(divmod(int(argmax[row - 1, column - 1]), 24), 1)
    text = said(page, "one").replace(MINUS, "-")
    assert f"Example {example}, a {shown['labels'][4]}; window in row {row}, column {column}." in text
    assert f"The winner is in row {at[0]}, column {at[1]} of the feature map" in text
    kept, received = map(float, re.search(r"its value (\S+) is kept.*the cotangent (\S+), the other", text).groups())
    assert (kept, received) == pytest.approx((float(values[6, 2]), float(shown["cotangents"][4, 6, 2])), rel=0.006)


def test_one_window_follows_sliders_rules_and_dragging(visit):
    page = visit()
    assert said(page, "window") == f"a = 1, b = {MINUS}0.5: m = 1. Ja = 1, Jb = 0: a is larger."
    for _ in range(6):
        page.locator("#b").press("ArrowRight")
    words = {"first": (1, 0), "last": (0, 1), "split": (0.5, 0.5), "none": (0, 0)}
    for rule, (to_a, to_b) in words.items():
        page.locator(f"input[value={rule}]").check()
        assert said(page, "window").startswith(f"a = 1, b = 1: m = 1. Ja = {to_a}, Jb = {to_b}: a = b: ")
    page.locator("#plane").scroll_into_view_if_needed()
    area = page.locator("#plane").bounding_box()
    page.mouse.move(area["x"] + area["width"] / 2, area["y"] + area["height"] / 2)
    assert "a = 1, b = 1" in said(page, "window")  # only moved over it
    page.mouse.down()
    page.mouse.move(area["x"] + area["width"] * 1.6 / 5.2, area["y"] + area["height"] * 0.6 / 5.2)
    page.mouse.up()
    page.mouse.move(area["x"] + area["width"] / 2, area["y"] + area["height"] / 2)  # no longer held
    assert said(page, "window") == f"a = {MINUS}1, b = 2: m = 2. Ja = 0, Jb = 1: b is larger."


def test_the_order_is_shown_stage_by_stage(visit, shown):
    page = visit()
    for stage, later in {"1": 10, "2": 2, "3": 1, "4": 0}.items():
        page.locator(f"#stage input[value='{stage}']").check()
        assert page.locator("#lanes .later").count() == later
        assert said(page, "order").startswith(f"{stage}. ")
    angles = page.locator("#angles figcaption").all_inner_texts()
    for text, way in zip(angles, shown["ways"], strict=True):
        degrees = np.degrees(np.arccos(way["cosine"]))
        assert text.startswith(f"{way['name']}: {degrees:.0f}° from the right gradient (cosine {way['cosine']:.2f})")


def test_the_learning_rate_scales_the_step(visit, shown):
    page = visit()
    page.locator("#example-step").press("End")
    norm = np.linalg.norm(shown["gradients"].mean(0))
    for key, rate in {"End": 2, "Home": 0}.items():
        page.locator("#rate").press(key)
        text = said(page, "step")
        assert f"A step with learning rate {rate} changes" in text
        assert float(re.search(r"changes the filter, of norm \S+, by (\S+)\.$", text)[1]) == pytest.approx(
            rate * norm, rel=0.006
        )
    assert page.evaluate("$('before').toDataURL() === $('after').toDataURL()")
