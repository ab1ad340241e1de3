"""How fast jpool is: each command measures one thing and prints a table.

python -m experiments.speed pool
"""

import argparse
from collections.abc import Sequence
from types import ModuleType

from experiments.common.command import HelpFormatter
from experiments.speed import compare_networks, microbatches, pool, programs, relatives, step

COMMANDS: dict[str, ModuleType] = {
    "pool": pool,
    "step": step,
    "networks": compare_networks,
    "microbatches": microbatches,
    "relatives": relatives,
    "programs": programs,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command and its options, and measures."""
    parser = argparse.ArgumentParser(prog="python -m experiments.speed", description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        about, _, more = (module.__doc__ or "").partition("\n")
        one = commands.add_parser(name, help=about, description=about + more, formatter_class=HelpFormatter)
        module.add_options(one)
        one.set_defaults(run=module.run)
    options = parser.parse_args(arguments)
    options.run(options)


if __name__ == "__main__":
    main()
