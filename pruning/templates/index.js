"use strict";
// Without this script the page is a plain table: what it needs, buttons and a form, is made or shown here.
const table = document.querySelector("table"), body = table.tBodies[0], rows = [...body.rows];
const form = document.querySelector("form");

function compare(a, b, column, sign) {  // cells without a figure stay last
  const [x, y] = [a, b].map(row => row.cells[column]);
  if (x.dataset.value === undefined)
    return sign * x.textContent.localeCompare(y.textContent, "en", { numeric: true });
  if (x.dataset.value === "" || y.dataset.value === "")
    return (x.dataset.value === "") - (y.dataset.value === "");
  return sign * (x.dataset.value - y.dataset.value);
}

function sort(head) {  // best first, worst first, as it was
  const first = head.dataset.first, before = head.getAttribute("aria-sort");
  const other = first === "ascending" ? "descending" : "ascending";
  const order = { [first]: other, [other]: null }[before] ?? (before ? null : first);
  for (const each of head.parentNode.cells) each.removeAttribute("aria-sort");
  if (order) head.setAttribute("aria-sort", order);
  table.classList.toggle("sorted", order !== null);
  const sign = order === "descending" ? -1 : 1;
  body.append(...(order ? [...rows].sort((a, b) => compare(a, b, head.cellIndex, sign)) : rows));
}

function filter() {  // table rows, panels of the figure, its points and its legend
  const { task, method } = Object.fromEntries(new FormData(form));
  for (const part of document.querySelectorAll("[data-task], [data-method]")) {
    const hide = (mine, chosen) => chosen && mine !== undefined && mine !== chosen;
    part.toggleAttribute("hidden", hide(part.dataset.task, task) || hide(part.dataset.method, method) || false);
  }
  const shown = rows.filter(row => !row.hidden).length;
  form.querySelector("output").value = `${shown} of ${rows.length} rows`;
}

for (const head of table.tHead.rows[0].cells) {
  const button = document.createElement("button");
  button.append(...head.childNodes);
  button.addEventListener("click", () => sort(head));
  head.append(button);
}
form.hidden = false;
form.addEventListener("input", filter);
addEventListener("pageshow", filter);  // also when the browser comes back, with what was chosen
