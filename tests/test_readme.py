"""The README is true: its examples print the output below them, its commands, signatures and links are right."""

import contextlib
import inspect
import io
import re
from pathlib import Path

import jpool
import jpool.per_example
import jpool.pooling

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_examples_print_the_output_below_them():
    assert [language for language, _ in BLOCKS if language != "bash"] == ["python", "text"] * 5
    codes, texts = ([block for language, block in BLOCKS if language == kind] for kind in ("python", "text"))
    names = {}  # later examples continue the first
    for code, text in zip(codes, texts, strict=True):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "README.md", "exec"), names)
        assert printed.getvalue().strip() == text.strip()


def test_each_command_is_one_line_that_makes_its_own_environment():
    commands = [block for language, block in BLOCKS if language == "bash"]
    for command, purpose in zip(commands, ["python -m experiments.train_digits", "python -m pytest"], strict=True):
        assert re.fullmatch(r"python3 -m venv \.venv && [^\n]*pip install [^\n]* && [^\n]*\n", command)
        assert purpose in command


def bare_signature(function):
    signature = inspect.signature(function)
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    return str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))


def test_the_signature_is_the_real_one_and_every_argument_has_its_row():
    shown = re.search(r"^`jpool\.max_pool\((.*)\)`$", README, re.MULTILINE)[1]
    assert f"({shown})".replace('"', "'") == bare_signature(jpool.max_pool)
    for name in inspect.signature(jpool.max_pool).parameters:
        assert re.search(rf"^\| `{name}` \|", README, re.MULTILINE), name


def test_every_function_that_pools_has_its_row_and_its_real_signature():
    rows = re.findall(r"^\| `(\w+)\((.*?)\)` \| [a-z]", README.split("## From other libraries")[0], re.MULTILINE)
    assert [name for name in jpool.__all__ if name not in README] == ["Metrics"]
    for name, shown in rows:
        if shown == "x, ...":
            theirs, ours = (
                inspect.signature(function).parameters for function in (getattr(jpool, name), jpool.max_pool)
            )
            assert list(theirs) == list(ours)
        else:
            assert f"({shown})".replace('"', "'") == bare_signature(getattr(jpool, name)), name
    assert len(rows) == 7


def test_the_edge_table_has_the_rows_of_the_docstring():
    table = re.findall(r"^    (\S.*?)  +\S", inspect.getdoc(jpool.max_pool).replace("\n", "\n    "), re.MULTILINE)
    rows = [row for row in table if not row.startswith("=")]
    assert len(rows) == 7
    for row in rows:
        assert re.search(rf"^\| {re.escape(row)} \|", README, re.MULTILINE), row


def test_every_link_leads_to_a_file_and_every_module_has_one():
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert [link for link in links if not (ROOT / link).exists()] == []
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "jpool").rglob("*.py")}
    described = {path for path in modules if "/cpu/" not in path and not path.endswith("__init__.py")}
    packages = {"jpool/pooling/__init__.py", "jpool/pooling/cpu/__init__.py", "jpool/per_example/__init__.py"}
    assert described | packages <= set(links)


def test_modules_are_in_the_order_of_their_packages():
    for package in (jpool.pooling, jpool.per_example):
        name = package.__name__.replace(".", "/")
        ordered = re.findall(r"^    ([\w/]+) +\S", package.__doc__, re.MULTILINE)
        paths = [f"{name}/{module}{'__init__' if module.endswith('/') else ''}.py" for module in ordered]
        positions = [README.rindex(f"]({path})") for path in paths]
        assert positions == sorted(positions)
