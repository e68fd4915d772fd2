"""The catalogue of methods as tables: what `mtljax methods` prints and `docs/methods.md` contains."""

import inspect

from mtljax import methods


def signature(name: str) -> str:
    """A method with its hyperparameters and their defaults, those that all methods share left out."""
    shared = ("num_tasks", "update_every", "optimizer", "seed")
    parameters = inspect.signature(methods.describe(name).build).parameters
    own = [p for p in parameters.values() if p.name not in shared]
    return f"{name}({', '.join(p.name if p.default is p.empty else f'{p.name}={p.default!r}' for p in own)})"


def markdown() -> str:
    """The catalogue as Markdown: what each method costs, and which properties the tests found."""
    names = methods.names()
    lines = ["| method | family | needs | backward passes | paper |", "|---|---|---|---|---|"]
    for name in names:
        method = methods.describe(name)
        paper = f"[{method.paper}](https://arxiv.org/abs/{method.paper})" if method.paper[0].isdigit() else method.paper
        lines.append(f"| `{signature(name)}` | {method.family} | {method.needs} | {method.backward_passes} | {paper} |")
    lines += ["", "| method | " + " | ".join(methods.PROPERTIES) + " |", "|---" * (len(methods.PROPERTIES) + 1) + "|"]
    for name in names:
        declared = methods.describe(name).properties
        marks = ("✓" if prop in declared else "" for prop in methods.PROPERTIES)
        lines.append(f"| `{name}` | " + " | ".join(marks) + " |")
    lines += ["", *(f"- *{prop}*: {meaning}" for prop, meaning in methods.PROPERTIES.items())]
    return "\n".join(lines) + "\n"
