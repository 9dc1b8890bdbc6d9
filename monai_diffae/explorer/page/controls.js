// The sliders, the table of scores, and small lists of cases.

import { thumbnail } from "./api.js";

export function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

const signed = (value) => `${value > 0 ? "+" : ""}${value.toFixed(1)}`;

/** One slider per direction and component: {row, input, key, kind}; onMove() is called after each move. */
export function strengthSliders(root, { directions, components }, onMove) {
  const sliders = [
    ...directions.map((each) => ({ kind: "directions", key: each.name, title: directionTitle(each) })),
    ...components.map((each) => ({
      kind: "components", key: each.name, title: [`Component ${each.name}`, `${(100 * each.explained).toFixed(0)} % of the variance`],
    })),
  ];
  for (const slider of sliders) {
    const id = `move-${slider.kind}-${sliders.indexOf(slider)}`;
    const [name, note] = slider.title;
    slider.input = element("input", { type: "range", id, min: -4, max: 4, step: 0.1, value: 0 });
    slider.output = element("output", { htmlFor: id, textContent: "0" });
    slider.own = element("i", { className: "own", title: "Where the case lies" });
    const track = element("span", { className: "track" }, slider.input, slider.own);
    const label = element("span", { className: "name" }, name, element("small", { textContent: note }));
    root.append(element("label", { className: "slider" }, label, track, slider.output));
    slider.input.addEventListener("input", () => {
      slider.output.textContent = signed(Number(slider.input.value));
      onMove();
    });
    slider.input.addEventListener("dblclick", () => {
      setStrength(slider, 0);
      onMove();
    });
  }
  return sliders;
}

function directionTitle({ target, kind, classes }) {
  return [target, kind === "binary" ? `${classes[0]} to ${classes[1]}` : "lower to higher"];
}

export function setStrength(slider, value) {
  slider.input.value = value;
  slider.output.textContent = Number(value) ? signed(Number(value)) : "0";
}

/** Mark where the case lies along a component, in standard deviations from the mean. */
export function markOwn(slider, position) {
  slider.own.hidden = position === undefined;
  if (position === undefined) return;
  // strength 0 is the case itself, so the mean lies at minus its own position
  const share = (Math.min(Math.max(-position, -4), 4) + 4) / 8;
  slider.own.style.left = `calc(${(100 * share).toFixed(1)}% + ${(8 - 16 * share).toFixed(1)}px)`;
  slider.own.title = `The mean of the training cases: this case is at ${signed(position)} standard deviations`;
}

/** A case as a button with its thumbnail; onOpen(row, isSecond). */
export function caseButton(row, { id, note, isMarked }, onOpen) {
  const picture = element("img", { src: thumbnail(row), alt: "", width: 64, height: 64, loading: "lazy" });
  const button = element(
    "button", { type: "button", className: "case", title: id },
    picture, element("span", { className: "id", textContent: id }), element("small", { textContent: note }),
  );
  button.classList.toggle("marked", Boolean(isMarked));
  button.setAttribute("aria-label", `${id}, ${note}`);
  button.addEventListener("click", (event) => onOpen(row, event.shiftKey));
  return element("li", {}, button);
}

const predicted = ({ kind }, value) => (kind === "binary" ? `${(100 * value).toFixed(0)} %` : value.toPrecision(3));

/** The table of scores; names are those of the directions. */
export function drawScores(table, scores, directions, nearestId, onOpen) {
  const head = element("tr", {}, ...["", "case", "requested", "image", "drift"].map((text) => element("th", { textContent: text })));
  const rows = scores.directions.map((each) => {
    const direction = directions.find(({ name }) => name === each.name);
    const title = direction.kind === "binary" ? `${direction.target}: ${direction.classes[1]}` : direction.target;
    const cells = [each.case, each.target, each.image].map((value) => (value === undefined ? "" : predicted(direction, value)));
    const drift = each.drift === undefined ? "" : `${signed(each.drift)} SD`;
    return element("tr", {}, element("th", { textContent: title }), ...[...cells, drift].map((text) => element("td", { textContent: text })));
  });
  const body = element("tbody", {}, ...rows, distanceRow("Distance to the case itself", scores.to_itself.toFixed(2)));
  if (scores.nearest !== null) {
    const open = element("button", { type: "button", className: "link", textContent: nearestId });
    open.addEventListener("click", (event) => onOpen(scores.nearest_row, event.shiftKey));
    body.append(distanceRow("Nearest other patient", scores.nearest.toFixed(2), open));
  }
  if (scores.nearest !== null && scores.to_itself > scores.nearest) {
    const note = element("td", { colSpan: 5, className: "note", textContent: "The image is closer to another patient than to its own case." });
    body.append(element("tr", {}, note));
  }
  table.replaceChildren(...(rows.length ? [element("thead", {}, head)] : []), body);
}

function distanceRow(title, value, ...more) {
  const cell = element("td", { colSpan: 4 }, element("b", { textContent: value }), " ", ...more);
  return element("tr", {}, element("th", { textContent: title }), cell);
}
