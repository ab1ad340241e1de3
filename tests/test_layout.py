"""Imports only go down: each module imports only from those before it, in the order that the package's docstring gives."""

import ast
import re
from pathlib import Path

import jpool

PACKAGE = Path(jpool.__file__).parent
ORDER = re.findall(r"^    ([\w/]+) +\S", jpool.__doc__, re.MULTILINE)


def imported(path):
    """The modules of this package that a file imports, as the docstring names them."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "jpool":
            base = node.module.split(".")[1:]
            for name in node.names:
                for parts in ([*base, name.name], base):
                    if parts and (
                        PACKAGE.joinpath(*parts).is_dir() or PACKAGE.joinpath(*parts).with_suffix(".py").exists()
                    ):
                        yield parts
                        break


def place(parts):
    """The place of a module in the order; what is in cpu/ has that of the folder."""
    return ORDER.index("pooling/cpu/" if parts[:2] == ["pooling", "cpu"] else "/".join(parts))


def test_every_module_has_a_line():
    modules = {path.relative_to(PACKAGE).with_suffix("").as_posix() for path in PACKAGE.rglob("*.py")}
    lines = {name for name in modules if not name.endswith("__init__") and not name.startswith("pooling/cpu/")}
    assert sorted(ORDER) == sorted(lines | {"pooling/cpu/"})


def test_imports_only_go_down():
    seen = 0
    for path in PACKAGE.rglob("*.py"):
        own = list(path.relative_to(PACKAGE).with_suffix("").parts)
        if own[-1] == "__init__" and own != ["pooling", "cpu", "__init__"]:
            continue
        for parts in imported(path):
            inside_cpu = own[:2] == parts[:2] == ["pooling", "cpu"]
            assert inside_cpu or place(parts) < place(own), (own, parts)
            seen += 1
    assert seen > 50
