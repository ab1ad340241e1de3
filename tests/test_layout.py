"""The layout shows the design: two packages without imports between them, and imports that only go down the lists."""

import ast
import re
from pathlib import Path

import jpool
import jpool.per_example
import jpool.pooling

LIBRARY = Path(jpool.__file__).parent
PACKAGES = {"pooling": jpool.pooling, "per_example": jpool.per_example}
SHARED = ["checks", "jax_extensions", "jaxprs"]  # each imports only those before it
INTERNALS = r"jax\.(_src|core|interpreters|extend)|manual_axis_type|(spec|sharding)\.update\("


PLATFORMS = ("cpu", "gpu", "tpu")  # folders that are listed as one


def order(package):
    """The modules in the order in which the docstring of a package lists them."""
    return re.findall(r"^    ([\w/]+) +\S", PACKAGES[package].__doc__, re.MULTILINE)


def modules(package):
    """The name in the list of every module of a package, by its path."""
    paths = [
        path for path in (LIBRARY / package).rglob("*.py") if path.parent.name in PLATFORMS or path.stem != "__init__"
    ]
    return {path: as_listed(path.relative_to(LIBRARY / package).with_suffix("").as_posix()) for path in paths}


def as_listed(name):
    folder = name.partition("/")[0]
    return f"{folder}/" if folder in PLATFORMS else name


def imported(path):
    """The modules of this library that a file imports, as paths below jpool/ without suffix."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for first, *parts in (name.split(".") for name in names):
            if first == "jpool":
                paths = [
                    "/".join(parts[:length]) for length in range(len(parts), -1, -1)
                ]  # a name in a module, or a module
                yield next(path for path in paths if (LIBRARY / path).is_dir() or (LIBRARY / f"{path}.py").exists())


def test_the_packages_import_nothing_from_each_other():
    for package in PACKAGES:
        for path in (LIBRARY / package).rglob("*.py"):
            assert {name.partition("/")[0] for name in imported(path)} <= {package, *SHARED}, path


def test_both_share_only_checks_and_what_they_use_of_jax():
    listed = {"README.md", "__init__.py", "py.typed", *PACKAGES, *(f"{name}.py" for name in SHARED)}
    assert {path.name for path in LIBRARY.iterdir()} - {"__pycache__"} == listed
    for i, name in enumerate(SHARED):
        assert set(imported(LIBRARY / f"{name}.py")) <= set(SHARED[:i])


def test_every_module_is_listed_in_its_package():
    for package in PACKAGES:
        assert sorted(order(package)) == sorted(set(modules(package).values()))


def test_imports_only_go_down_the_list():
    seen = 0
    for package in PACKAGES:
        rank = {name: i for i, name in enumerate(order(package))}
        for path, own in modules(package).items():
            for name in imported(path):
                below = as_listed(name.removeprefix(f"{package}/"))
                if name.partition("/")[0] == package:
                    assert rank[below] < rank[own] or below == own, (own, name)
                    seen += 1
    assert seen > 50


def test_all_of_jax_that_is_not_stable_is_in_one_module():
    found = {path.name for path in LIBRARY.rglob("*.py") if re.search(INTERNALS, path.read_text())}
    assert found == {"jax_extensions.py"}
