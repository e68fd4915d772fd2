"""The catalogue of methods as tables: what `mtljax methods` prints and `docs/methods.md` contains."""

import inspect

from mtljax import methods
from mtljax.markdown import markdown_table


def signature(name: str) -> str:
    """A method with its hyperparameters and their defaults, those that all methods share left out."""
    shared = ("num_tasks", "update_every", "optimizer", "seed")
    parameters = inspect.signature(methods.describe(name).build).parameters
    own = [p for p in parameters.values() if p.name not in shared]
    return f"{name}({', '.join(p.name if p.default is p.empty else f'{p.name}={p.default!r}' for p in own)})"


def markdown() -> str:
    """The catalogue as Markdown: what each method costs, and which properties the tests found."""
    names = methods.names()
    costs, properties = [], []
    for name in names:
        method = methods.describe(name)
        paper = f"[{method.paper}](https://arxiv.org/abs/{method.paper})" if method.paper[0].isdigit() else method.paper
        costs.append([f"`{signature(name)}`", method.family, method.needs, method.backward_passes, paper])
        marks = ("✓" if prop in method.properties else "" for prop in methods.PROPERTIES)
        properties.append([f"`{name}`", *marks])
    return "\n".join(
        [
            markdown_table(["method", "family", "needs", "backward passes", "paper"], costs),
            "",
            markdown_table(["method", *methods.PROPERTIES], properties),
            "",
            *(f"- *{prop}*: {meaning}" for prop, meaning in methods.PROPERTIES.items()),
            "",
        ]
    )
