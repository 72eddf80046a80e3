"use strict";
// Sorting and filtering of tables; the page is complete without them.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    const numeric = header.classList.contains("num");
    button.addEventListener("click", () => {
      const first = numeric ? "descending" : "ascending";
      const other = numeric ? "ascending" : "descending";
      const order = header.getAttribute("aria-sort") === first ? other : first;
      headers.forEach((each) => each.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
      const rows = [...body.rows].sort((a, b) => {
        const [one, two] = [key(a), key(b)];
        if (one === "" || two === "") return (one === "") - (two === ""); // what is missing goes last, either way
        return sign * (numeric ? Number(one) - Number(two) : one.localeCompare(two));
      });
      body.append(...rows);
    });
  });
}
for (const form of document.querySelectorAll("form.controls")) {
  const rows = [...document.getElementById(form.getAttribute("data-table")).tBodies[0].rows];
  const apply = () => {
    const words = form.elements.text.value.toLowerCase().split(/\s+/).filter(Boolean);
    const { model, dataset } = form.elements;
    for (const row of rows) {
      const named = `${row.dataset.model} ${row.dataset.dataset}`.toLowerCase();
      row.hidden =
        !words.every((word) => named.includes(word)) ||
        (model.value !== "" && row.dataset.model !== model.value) ||
        (dataset.value !== "" && row.dataset.dataset !== dataset.value);
    }
    form.querySelector("output").textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows`;
  };
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  apply();
}
