"use strict";
// Sorting, filtering and the origin of each row. Without it the page shows every row.
(() => {
  const table = document.querySelector("table.rows");
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const rows = [...body.rows];
  const form = document.querySelector("form.filters");
  const cards = JSON.parse(document.getElementById("cards").textContent);

  // ---- sorting: numbers where a cell has data-value, else text; what is undefined comes last
  const key = (row, column) => {
    const cell = row.cells[column];
    if (cell.dataset.value === undefined) return cell.textContent.trim().toLowerCase();
    return cell.dataset.value === "" ? null : Number(cell.dataset.value);
  };
  const sort = (column, direction) => {
    heads.forEach((head, at) => head.setAttribute("aria-sort", at === column ? direction : "none"));
    const sign = direction === "ascending" ? 1 : -1;
    const keyed = rows.map((row, at) => [key(row, column), at, row]);
    keyed.sort(([a, i], [b, j]) => {
      if (a === null || b === null) return (a === null) - (b === null) || i - j;
      return (a < b ? -sign : a > b ? sign : 0) || i - j;
    });
    for (const [, , row] of keyed) {
      body.append(row);
      if (row.detail) row.after(row.detail);
    }
  };
  heads.forEach((head, column) => {
    head.querySelector("button")?.addEventListener("click", () => {
      sort(column, head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending");
    });
  });

  // ---- filtering
  const selects = [...form.querySelectorAll("select")];
  const filter = () => {
    const words = form.elements.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden =
        !selects.every((select) => !select.value || row.dataset[select.name] === select.value) ||
        !words.every((word) => text.includes(word)) ||
        (row.dataset.further !== undefined && !form.elements.further.checked);
      if (row.detail) row.detail.hidden = row.hidden || !row.open;
      shown += !row.hidden;
    }
    // What all rows have in common is said above them.
    table.classList.toggle("one-metric", selects.some((select) => select.name === "metric" && select.value));
    form.elements.count.value = `${shown} of ${rows.length} rows`;
  };
  for (const event of ["input", "change"]) form.addEventListener(event, filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  filter();

  // ---- where a number comes from
  const element = (name, text, attributes = {}) => {
    const made = document.createElement(name);
    made.textContent = text;
    for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
    return made;
  };
  const detail = (row) => {
    const { files, card } = cards[row.dataset.card];
    const list = document.createElement("dl");
    const add = (name, ...values) => {
      const value = document.createElement("dd");
      value.append(...values);
      list.append(element("dt", name), value);
    };
    add("command", element("code", card.command ?? "not recorded by the version that ran it"));
    files.forEach(({ what, path, link }) => add(what, element("a", path, { href: link })));
    add("commit", element("code", card.commit ?? "unknown"));
    add("versions", Object.entries(card.versions).map((pair) => pair.join(" ")).join(", "));
    add("made on", `${card.device}, threads ${card.threads}`);
    add("seconds", Object.entries(card.seconds).map(([what, time]) => `${what} ${time}`).join(", "));
    add("keys", element("code", Object.entries(card.keys).filter(([, value]) => value).map((pair) => pair.join(" ")).join(", ")));
    const whole = document.createElement("details");
    whole.append(element("summary", "the whole card"), element("pre", JSON.stringify(card, null, 1)));
    add("card", whole);
    const made = document.createElement("tr");
    made.className = "detail";
    const cell = made.insertCell();
    cell.colSpan = heads.length;
    cell.append(list);
    return made;
  };
  for (const row of rows) {
    const button = row.querySelector(".more button");
    if (!button) continue;
    button.hidden = false;
    button.addEventListener("click", () => {
      row.open = !row.open;
      if (!row.detail) {
        row.detail = detail(row);
        row.after(row.detail);
      }
      row.detail.hidden = !row.open;
      button.setAttribute("aria-expanded", String(row.open));
      button.textContent = row.open ? "−" : "+";
    });
  }
})();
