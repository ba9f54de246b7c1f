"use strict";
// Sorting and searching. Everything else of the page does without.
(() => {
  const table = document.getElementById("table");
  const body = table ? table.tBodies[0] : null;
  const rows = body ? [...body.rows] : [];
  const tiles = [...document.querySelectorAll(".tile")];
  const search = document.getElementById("search");
  const shown = document.getElementById("shown");
  const collator = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });

  const keyOf = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.order === undefined ? cell.textContent.trim() : Number(cell.dataset.order);
  };

  const compare = (one, other) =>
    typeof one === "number" ? one - other : collator.compare(one, other);

  const sortBy = (header, column) => {
    const down = header.getAttribute("aria-sort") === "ascending";
    const sign = down ? -1 : 1;
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", down ? "descending" : "ascending");
    const keys = new Map(rows.map((row) => [row, keyOf(row, column)]));
    rows.sort((one, other) => sign * compare(keys.get(one), keys.get(other)));
    const sorted = document.createDocumentFragment();
    for (const row of rows) sorted.append(row);
    body.append(sorted);
  };

  if (table) {
    [...table.tHead.rows[0].cells].forEach((header, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...header.childNodes);
      header.append(button);
      button.addEventListener("click", () => sortBy(header, column));
    });
  }

  const filter = () => {
    const words = search.value.toLocaleLowerCase().split(/\s+/).filter(Boolean);
    for (const item of [...rows, ...tiles]) {
      const text = item.textContent.toLocaleLowerCase();
      item.classList.toggle("unmatched", !words.every((word) => text.includes(word)));
    }
    tell();
  };

  const tell = () => {
    const visible = (items) => items.filter((item) => item.getClientRects().length).length;
    const all = document.getElementById("show-all").checked && !search.value.trim();
    const count = (number, one, many) => `${number} ${number === 1 ? one : many}`;
    shown.textContent = all
      ? ""
      : `${count(visible(rows), "finding", "findings")}, ${count(visible(tiles), "image", "images")}`;
  };

  if (!search) return;
  search.hidden = false;
  search.addEventListener("input", filter);
  for (const radio of document.querySelectorAll('input[name="show"]')) radio.addEventListener("change", tell);
})();
