// A click on a heading (or Enter, or space) sorts the lines of each group; what has no value comes last.
const pieces = (text) => text.split(/(\d+(?:\.\d+)?(?:e[-+]?\d+)?)/);
const byText = (a, b) => {
  const [x, y] = [pieces(a), pieces(b)];
  for (let i = 0; i < Math.min(x.length, y.length); i++) {
    const order = i % 2 ? x[i] - y[i] : x[i].localeCompare(y[i]);
    if (order) return order;
  }
  return x.length - y.length;
};
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const text = head.classList.contains("text");
    const ascending = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const key = (row) => (text ? row.cells[column].textContent : row.cells[column].dataset.value) ?? "";
    const known = (row) => key(row) !== "" && key(row) !== "\u2013";
    const compare = (a, b) => (text ? byText(key(a), key(b)) : key(a) - key(b)) * (ascending ? 1 : -1);
    for (const body of table.tBodies) {
      const rows = [...body.rows].filter((row) => !row.classList.contains("group"));
      body.append(...rows.filter(known).sort(compare), ...rows.filter((row) => !known(row)));
    }
  }));
}
