"use strict";

// The table of markers: filtered, sorted, a hundred rows at a time; all text by textContent.
(() => {
  const source = document.getElementById("marker-data");
  if (!source) return;
  const { tables } = JSON.parse(source.textContent);
  const at = (id) => document.getElementById(`marker-${id}`);
  const STEP = 100;
  let table, rows, shown, sorting;

  const element = (name, text, parent) => {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (parent) parent.append(made);
    return made;
  };

  const options = (select, pairs) => {
    select.replaceChildren();
    for (const [value, text] of pairs) element("option", text, select).value = value;
  };

  const titled = (group) => (table.called[group] ? `${group} ${table.called[group]}` : group);

  const FORMATS = {
    text: (value) => value,
    number: (value) => value.toFixed(2),
    percent: (value) => `${(100 * value).toFixed(0)} %`,
    p: (value) => (value === 0 ? "0" : value < 0.001 ? value.toExponential(1) : value.toPrecision(2)),
  };

  const written = (value, column) => {
    if (value === null) return "–";
    if (column === 0) return titled(value);
    const format = table.formats[column];
    const text = FORMATS[format](value);
    return format === "text" ? text : text.replace("-", "−");
  };

  const choose = () => {
    table = tables[Number(at("rep").value)];
    const groups = [...new Set(table.rows.map((row) => row[0]))];
    const before = at("group").value;
    options(at("group"), [["", "all"], ...groups.map((group) => [`=${group}`, titled(group)])]);
    at("group").value = [...at("group").options].some((one) => one.value === before) ? before : "";
    sorting = { column: null, descending: false };
    const head = element("tr");
    table.headings.forEach((heading, column) => {
      const th = element("th", undefined, head);
      th.scope = "col";
      if (table.formats[column] !== "text") th.className = "n";
      const button = element("button", heading, th);
      button.type = "button";
      button.addEventListener("click", () => sort(column));
    });
    document.querySelector("#marker-table thead").replaceChildren(head);
    filter();
  };

  const sort = (column) => {
    const isText = table.formats[column] === "text";
    const again = sorting.column === column;
    sorting = { column, descending: again ? !sorting.descending : !isText && table.formats[column] !== "p" };
    filter();
  };

  const compare = (a, b) => {
    const [x, y] = [a[sorting.column], b[sorting.column]];
    if (x === null || y === null) return (x === null) - (y === null);
    const order = typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y;
    return sorting.descending ? -order : order;
  };

  const filter = () => {
    const group = at("group").value;
    const words = at("text").value.toLowerCase().split(/[\s,;]+/).filter(Boolean);
    rows = table.rows.filter(
      (row) =>
        (!group || row[0] === group.slice(1)) &&
        (!words.length || words.some((word) => row[1].toLowerCase().includes(word))),
    );
    if (sorting.column !== null) rows.sort(compare);
    document.querySelectorAll("#marker-table th").forEach((th, column) => {
      if (column !== sorting.column) th.removeAttribute("aria-sort");
      else th.setAttribute("aria-sort", sorting.descending ? "descending" : "ascending");
    });
    shown = 0;
    document.querySelector("#marker-table tbody").replaceChildren();
    more();
  };

  const more = () => {
    const body = document.querySelector("#marker-table tbody");
    for (const row of rows.slice(shown, shown + STEP)) {
      const line = element("tr", undefined, body);
      row.forEach((value, column) => {
        const cell = element("td", written(value, column), line);
        if (table.formats[column] !== "text") cell.className = "n";
      });
    }
    shown = Math.min(shown + STEP, rows.length);
    const number = (n) => n.toLocaleString("en");
    at("count").textContent = rows.length
      ? `${number(shown)} of ${number(rows.length)} rows shown`
      : "No gene found. This table has the top genes of each group; markers.csv has all genes.";
    at("more").hidden = shown === rows.length;
  };

  const NUMBER = /^([+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|nan))$/;
  const quoted = (value) => {
    let text = value === null ? "" : String(value);
    // as in markers.csv (scrna/data/spreadsheet.py), so that no spreadsheet reads a name as a formula
    if (typeof value === "string" && /^'*[=+\-@\t\r＝＋－＠]/.test(text) && !NUMBER.test(text))
      text = `'${text}`;
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };

  const download = () => {
    const lines = [table.columns, ...rows].map((row) => row.map(quoted).join(","));
    const link = element("a");
    link.href = URL.createObjectURL(new Blob([lines.join("\n") + "\n"], { type: "text/csv" }));
    link.download = table.file;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };

  options(at("rep"), tables.map((one, place) => [String(place), one.label]));
  at("rep-label").hidden = tables.length < 2;
  at("rep").addEventListener("change", choose);
  at("group").addEventListener("change", filter);
  at("text").addEventListener("input", filter);
  at("csv").addEventListener("click", download);
  at("more").addEventListener("click", more);
  at("controls").addEventListener("submit", (event) => event.preventDefault());
  at("controls").hidden = false;
  choose();
})();

// Figures in full size.
(() => {
  const dialog = document.getElementById("large");
  for (const button of document.querySelectorAll(".enlarge")) {
    button.addEventListener("click", () => {
      const image = button.querySelector("img").cloneNode();
      image.removeAttribute("style");
      dialog.querySelector("div").replaceChildren(image);
      dialog.showModal();
    });
  }
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
})();

// Mark the current section in the navigation.
(() => {
  const links = new Map([...document.querySelectorAll("nav a")].map((a) => [a.hash.slice(1), a]));
  const visible = new Set();
  const observer = new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) {
        if (isIntersecting) visible.add(target.id);
        else visible.delete(target.id);
      }
      const first = [...links.keys()].find((id) => visible.has(id));
      for (const [id, link] of links) {
        if (id === first) link.setAttribute("aria-current", "true");
        else link.removeAttribute("aria-current");
      }
    },
    { rootMargin: "-10% 0px -60% 0px" },
  );
  for (const id of links.keys()) observer.observe(document.getElementById(id));
})();
