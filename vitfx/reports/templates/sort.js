for (const table of document.querySelectorAll("table.sorts")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const text = (row, column) => row.cells[column].textContent.trim();
  const number = (row, column) => parseFloat(text(row, column).replaceAll(",", ""));
  const byText = new Intl.Collator(undefined, { numeric: true }).compare;
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      // What is not known stands at the end, whichever way the others run.
      const known = [...body.rows].filter((row) => text(row, column) !== "\u2013");
      const numbers = known.every((row) => !Number.isNaN(number(row, column)));
      known.sort((one, other) => sign * (numbers
        ? number(one, column) - number(other, column) : byText(text(one, column), text(other, column))));
      body.prepend(...known);
    });
  });
}
