"""`mtljax methods`."""

import argparse
import inspect

from rich.table import Table

from mtljax import methods as registry
from mtljax.commands.output import console
from mtljax.methods import catalogue


def methods(options: argparse.Namespace, overrides: list[str]) -> int:
    """Lists the methods, or explains one."""
    del overrides
    if options.name is not None:
        build = registry.describe(options.name).build
        print(f"{catalogue.signature(options.name)}\n\n{inspect.getdoc(build)}")
        return 0
    if options.markdown:
        print(catalogue.markdown(), end="")
        return 0
    table = Table(title="multi-task methods")
    for column in ("name", "family", "needs", "backward passes", "properties", "paper"):
        table.add_column(column)
    for name in registry.names():
        method = registry.describe(name)
        properties = ", ".join(prop for prop in registry.PROPERTIES if prop in method.properties)
        table.add_row(name, method.family, method.needs, method.backward_passes, properties, method.paper)
    out = console(140)
    out.print(table)
    for prop, meaning in registry.PROPERTIES.items():
        out.print(f"{prop}: {meaning}", highlight=False)
    out.print("One method in full: mtljax methods NAME", highlight=False)
    return 0
