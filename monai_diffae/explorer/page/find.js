// The field that finds cases by their id or label.

import { caseButton } from "./controls.js";

const MOST_MATCHES = 50;

/** Wire the field: onFound(set of rows, or null) marks them on the map, onOpen(row, isSecond) opens one. */
export function wireFind({ input, list, count }, { ids, labels, splits }, { onFound, onOpen }) {
  let rows = [];

  function search() {
    const text = input.value.trim().toLowerCase();
    const values = Object.values(labels);
    const fits = (row) => ids[row].toLowerCase().includes(text) || values.some((each) => each[row] !== null && String(each[row]).toLowerCase() === text);
    rows = text ? [...ids.keys()].filter(fits) : [];
    count.textContent = text ? `${rows.length.toLocaleString("en")} found` : "";
    onFound(text ? new Set(rows) : null);
    list.replaceChildren(...rows.slice(0, MOST_MATCHES).map((row) => caseButton(row, { id: ids[row], note: splits[row] }, openFound)));
    list.hidden = rows.length === 0;
  }

  function openFound(row, isSecond) {
    onOpen(row, isSecond);
    list.hidden = true;
  }

  function empty() {
    input.value = "";
    search();
    input.blur();
  }

  const isInside = (node) => node === input || list.contains(node);
  const leave = (event) => isInside(event.relatedTarget) || (list.hidden = true);
  input.addEventListener("input", search);
  input.addEventListener("focus", () => (list.hidden = rows.length === 0));
  input.addEventListener("keydown", (event) => {
    if (event.key === "Escape") empty();
    if (event.key === "Enter" && rows.length) {
      openFound(rows[0], event.shiftKey);
      input.blur();
    }
  });
  list.addEventListener("keydown", (event) => event.key === "Escape" && empty());
  for (const each of [input, list]) each.addEventListener("focusout", leave);
  list.addEventListener("pointerdown", (event) => event.preventDefault()); // some browsers do not focus a button
}
