"""The page of the methods says what the registry says."""

import inspect
import re
from pathlib import Path

import pytest

import mtljax as mtl
from mtljax.methods import catalogue

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"


def test_the_page_holds_the_tables_of_the_registry():
    text = PAGE.read_text()
    generated = text.split("<!-- generated: begin -->\n")[1].split("<!-- generated: end -->")[0]
    assert generated == catalogue.markdown(), "write the output of `mtljax methods --markdown` into docs/methods.md"


@pytest.mark.parametrize("name", mtl.methods.names())
def test_every_method_is_exported_and_documented(name):
    build = getattr(mtl, name)
    assert build is mtl.methods.describe(name).build
    doc = inspect.getdoc(build)
    for part in ("Args:", "Returns:", "Cost", ">>> "):
        assert part in doc, part
    parameters = inspect.signature(build).parameters
    assert "num_tasks" in parameters
    if mtl.methods.describe(name).needs == "gramian":
        assert "update_every" in parameters
    for parameter in parameters:
        assert f"{parameter}:" in doc, parameter


# What the text before the example says, and the words it has for that.
SAYS = {
    "a paper": r"arXiv:\d{4}\.\d{4,5}|ICLR 2021",
    "the cost": r"Cost: (one|[23]?K)( backward and one more forward pass| backward pass)",
    "whose defaults": r"[Nn]othing (else )?to set|[Dd]efault|(code|LibMTL|Adam)'s|(is that|are those) of|the paper",
    "differences": r"[Cc]ode\b|LibMTL|TorchJD|reimplementations|[Dd]ifference",
}


@pytest.mark.parametrize("name", mtl.methods.names())
def test_every_method_names_its_paper_cost_defaults_and_differences(name):
    doc = " ".join(inspect.getdoc(mtl.methods.describe(name).build).split(">>>")[0].split())
    assert not {part for part, words in SAYS.items() if not re.search(words, doc)}
