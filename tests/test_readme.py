"""The READMEs are true: examples print the output below them; commands, signatures, tables and links are right."""

import contextlib
import inspect
import io
import re
from pathlib import Path

import pytest

import jpool
import jpool.per_example
import jpool.pooling

ROOT = Path(__file__).resolve().parent.parent
NAMES = "README.md", "jpool/README.md", "experiments/README.md", "experiments/SPEED.md"
PAGES = {name: (ROOT / name).read_text() for name in NAMES}
README, REFERENCE = PAGES["README.md"], PAGES["jpool/README.md"]


def blocks(page):
    return re.findall(r"^```(\w*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(("page", "examples"), [("README.md", 3), ("jpool/README.md", 1), ("experiments/README.md", 0)])
def test_examples_print_the_output_below_them(page, examples):
    shown = [block for block in blocks(PAGES[page]) if block[0] in ("python", "text")]
    assert [language for language, _ in shown] == ["python", "text"] * examples
    codes, texts = ([block for language, block in shown if language == kind] for kind in ("python", "text"))
    names = {}  # later examples continue the first
    for code, text in zip(codes, texts, strict=True):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, page, "exec"), names)
        assert printed.getvalue().strip() == text.strip()


def test_the_front_page_is_short_and_each_command_makes_its_own_environment():
    assert len(README.splitlines()) <= 170
    commands = [block for language, block in blocks(README) if language == "bash"]
    for command, purpose in zip(commands, ["python -m experiments.train_digits", "python -m pytest"], strict=True):
        assert re.fullmatch(rf"python3 -m venv \.venv && [^\n]*pip install [^\n]* && [^\n]*{purpose}[^\n]*\n", command)


# --- the reference ---


def bare_signature(function):
    bare = [one.replace(annotation=one.empty) for one in inspect.signature(function).parameters.values()]
    return str(inspect.Signature(bare)).replace("'", '"')


def test_every_public_name_has_its_row_with_its_real_signature_and_file():
    rows = re.findall(r"^\| \[`(\w+)\((.*?)\)`\]\((\S+)\) \| \S", REFERENCE, re.MULTILINE)
    assert sorted(name for name, *_ in rows) == sorted(jpool.__all__)
    for name, shown, file in rows:
        function = getattr(jpool, name)
        assert (ROOT / "jpool" / file).samefile(inspect.getsourcefile(function)), name
        if shown == "x, ...":
            theirs, ours = (inspect.signature(pooling).parameters for pooling in (function, jpool.max_pool))
            assert list(theirs) == list(ours)
        else:
            assert f"({shown})" == bare_signature(function), name


def test_the_tables_have_every_argument_of_max_pool_and_the_edge_cases_of_its_docstring():
    table = re.findall(r"^    (\S.*?)  +\S", inspect.getdoc(jpool.max_pool).replace("\n", "\n    "), re.MULTILINE)
    rows = [row for row in table if not row.startswith("=")]
    assert len(rows) == 7
    for row in (*rows, *(f"`{name}`" for name in inspect.signature(jpool.max_pool).parameters)):
        assert re.search(rf"^\| {re.escape(row)} \|", REFERENCE, re.MULTILINE), row


def test_the_history_has_this_version():
    assert f"the version is {jpool.__version__}" in REFERENCE
    assert f"version = {{{jpool.__version__}}}" in REFERENCE


# --- links ---


def anchors(page):
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", PAGES[page], re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_first_link_is_the_whole_idea_on_one_page():
    assert re.search(r"(?<!!)\[[^\]]*\]\(([^)#]+)\)", README)[1] == "experiments/one_page.py"


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file_and_a_heading(page):
    for link in re.findall(r"\]\((?!https://)([^)]+)\)", PAGES[page]):
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent.joinpath(path).resolve() if path else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.relative_to(ROOT).as_posix()), link


def test_every_module_has_a_row_in_the_order_of_its_package():
    links = re.findall(r"\]\(([^)]+)\)", REFERENCE)
    modules = {path.relative_to(ROOT / "jpool").as_posix() for path in (ROOT / "jpool").rglob("*.py")}
    described = {path for path in modules if "/cpu/" not in path and not path.endswith("__init__.py")}
    packages = {f"pooling/{name}__init__.py" for name in ("", "cpu/", "gpu/", "tpu/")} | {"per_example/__init__.py"}
    assert described | packages <= set(links)
    for package in (jpool.pooling, jpool.per_example):
        name = package.__name__.rpartition(".")[2]
        ordered = re.findall(r"^    ([\w/]+) +\S", package.__doc__, re.MULTILINE)
        paths = [f"{name}/{module}{'__init__' if module.endswith('/') else ''}.py" for module in ordered]
        table = REFERENCE.split("## Modules")[1].split("\n## ")[0]
        positions = [table.rindex(f"]({path})") for path in paths]
        assert positions == sorted(positions)
