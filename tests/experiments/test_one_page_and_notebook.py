"""The page and the notebook that tell the idea: they run from top to bottom, and print what is stored beside them."""

import re
import runpy
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.usefixtures("promotion_as_usual")
EXPERIMENTS = Path(__file__).parents[2] / "experiments"
NUMBER = re.compile(r"-?\d[\d,]*\.?\d*")


def test_the_page_has_at_most_45_lines_and_prints_the_gradients_of_two_examples(capsys):
    assert len((EXPERIMENTS / "one_page.py").read_text().splitlines()) <= 45
    runpy.run_path(str(EXPERIMENTS / "one_page.py"))
    assert (
        capsys.readouterr().out
        == """\
example 1:
[[ 0. 10.  4.  0.]
 [ 0.  0.  0.  0.]]
example 2:
[[-16.   0.   0. -20.]
 [  0.   0.   0.   0.]]
w after the step:
[[1.08 0.95 0.98 1.1 ]
 [1.   1.   1.   1.  ]]
equal to jpool.max_pool, bit for bit, with ties, NaN and -inf
"""
    )


def test_the_page_has_no_options(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["one_page.py", "--bogus"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(EXPERIMENTS / "one_page.py"), run_name="__main__")
    assert ended.value.code == 2
    assert "unrecognized arguments: --bogus" in capsys.readouterr().err


def test_the_page_stops_if_its_pooling_differs(tmp_path):
    page = (EXPERIMENTS / "one_page.py").read_text()
    changed = page.replace("windows.argmax(-1)", "3 - windows[..., ::-1].argmax(-1)")  # the last of equal ones wins
    assert changed != page
    (tmp_path / "page.py").write_text(changed)
    with pytest.raises(AssertionError):
        runpy.run_path(str(tmp_path / "page.py"))


def printed(cell):
    """The text that a cell prints, and the number of its pictures."""
    outputs = cell.get("outputs", [])
    assert all(output.output_type == "stream" or "image/png" in output.data for output in outputs), outputs
    text = "".join(output.text for output in outputs if output.output_type == "stream")
    return text, sum(output.output_type != "stream" for output in outputs)


@pytest.mark.filterwarnings("default")  # of Jupyter
def test_the_notebook_prints_what_it_shows():
    stored, ran = (nbformat.read(EXPERIMENTS / "tutorial.ipynb", as_version=4) for _ in range(2))
    assert 12 <= len(stored.cells) <= 20
    assert [cell.execution_count for cell in stored.cells if cell.cell_type == "code"] == list(range(1, 11))
    NotebookClient(ran, timeout=300, resources={"metadata": {"path": str(EXPERIMENTS)}}).execute()
    for cell, shown in zip(ran.cells, stored.cells, strict=True):
        (text, pictures), (shown_text, shown_pictures) = printed(cell), printed(shown)
        assert pictures == shown_pictures
        assert NUMBER.sub("#", text).split() == NUMBER.sub("#", shown_text).split()
        numbers, shown_numbers = (
            np.array([float(number.replace(",", "")) for number in NUMBER.findall(t)]) for t in (text, shown_text)
        )
        np.testing.assert_allclose(numbers, shown_numbers, rtol=0.02)  # training rounds differently elsewhere


def test_the_links_of_the_notebook_lead_to_files():
    cells = nbformat.read(EXPERIMENTS / "tutorial.ipynb", as_version=4).cells
    links = re.findall(r"\]\(([^)]+)\)", "".join(cell.source for cell in cells if cell.cell_type == "markdown"))
    assert len(links) >= 3
    assert [link for link in links if not (EXPERIMENTS / link.partition("#")[0]).exists()] == []
