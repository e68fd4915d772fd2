"""The report of a study: one HTML file that needs nothing else, the figures as files, and the tables for pandas.

`write` joins what the others make: `sections` puts numbers into tables, `page` turns text into HTML, `figures` and
`curves` draw, `drawing` has the style of all figures and saves them. `template.html`, `style.css` and `sort.js` are the
page itself.
"""

from mtljax.ablation.report.write import read_cells, write_report

__all__ = ["read_cells", "write_report"]
