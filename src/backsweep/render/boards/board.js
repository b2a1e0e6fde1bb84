"use strict";
// Filters and sorts the tables of this page. Nothing is asked for, and without it the page is whole.
(function () {
  const tables = Array.from(document.querySelectorAll("main table"));
  const rowsOf = (table) => Array.from(table.tBodies[0].rows);

  function value(row, column) {
    const text = row.cells[column].querySelector("bdi").textContent.trim();
    const number = parseFloat(text.replace(/^[^0-9.-]+/, "").replace(/,/g, ""));
    return { text: text, number: /^[<>]?\s*-?[0-9]/.test(text) ? number : NaN };
  }

  function sort(table, column, down) {
    const rows = rowsOf(table).map((row) => ({ row: row, value: value(row, column) }));
    rows.sort(function (a, b) {
      const x = a.value, y = b.value;
      if (isNaN(x.number) !== isNaN(y.number)) return isNaN(x.number) ? 1 : -1;
      const order = isNaN(x.number) ? x.text.localeCompare(y.text) : x.number - y.number;
      return down ? -order : order;
    });
    rows.forEach((r) => table.tBodies[0].appendChild(r.row));
  }

  tables.forEach(function (table) {
    Array.from(table.tHead.rows[0].cells).forEach(function (head, column) {
      const button = document.createElement("button");
      button.type = "button";
      while (head.firstChild) button.appendChild(head.firstChild);
      head.appendChild(button);
      button.addEventListener("click", function () {
        const down = head.getAttribute("aria-sort") === "ascending";
        Array.from(table.tHead.rows[0].cells).forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        sort(table, column, down);
      });
    });
  });

  const label = document.createElement("label"), input = document.createElement("input");
  const said = document.createElement("span");
  label.append("Show rows with ", input, said);
  label.className = "filter";
  said.setAttribute("role", "status");
  input.type = "search";
  input.autocomplete = "off";
  document.querySelector("main").prepend(label);
  input.addEventListener("input", function () {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0, all = 0;
    tables.forEach(function (table) {
      rowsOf(table).forEach(function (row) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
        shown += row.hidden ? 0 : 1;
        all += 1;
      });
      const fold = table.closest("details");
      if (fold && words.length) fold.open = true;
    });
    said.textContent = words.length ? shown + " of " + all + " rows" : "";
  });
})();
