"use strict";
document.documentElement.classList.add("scripted");

// Sort the table of sets by a column; the same heading again turns the order around.
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th");
    const table = head.closest("table");
    const rows = [...table.tBodies[0].rows];
    const descending = head.getAttribute("aria-sort") === "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const value = (row) => row.cells[head.cellIndex].dataset.value ?? "";
    const number = (row) => (value(row) === "" ? NaN : Number(value(row)));
    const compare = head.classList.contains("number")
      ? (a, b) => number(a) - number(b)
      : (a, b) => value(a).localeCompare(value(b), "en", { numeric: true });
    const empty = (row) => value(row) === "";
    rows.sort((a, b) => empty(a) - empty(b) || (descending ? compare(b, a) : compare(a, b)) || 0);
    table.tBodies[0].append(...rows);
  });
}

// Enlarge the images by a whole factor.
const size = document.getElementById("size");
size?.addEventListener("input", () => {
  for (const image of document.images) image.width = Number(image.dataset.width) * Number(size.value);
});
