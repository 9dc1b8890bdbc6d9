// The sliders, the table of scores, and small lists of cases.

import { thumbnail } from "./api.js";
import { number, percent, shortened, signed } from "./text.js";

export function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

/** Sliders for directions and components: {kind, key, input, output, mark, node}; onMove() is called after each move. */
export function strengthSliders(specs, onMove) {
  return specs.map(({ kind, key, title: [name, note], id }) => {
    const input = element("input", { type: "range", id, min: -4, max: 4, step: 0.1, value: 0 });
    const output = element("output", { htmlFor: id, textContent: "0" });
    const mark = element("i", { className: "own", hidden: true });
    const label = element("span", { className: "name", title: `${name}: ${note}` }, name, element("small", { textContent: note }));
    const node = element("label", { className: "slider" }, label, element("span", { className: "track" }, input, mark), output);
    const slider = { kind, key, input, output, mark, node };
    input.addEventListener("input", () => {
      output.textContent = signed(Number(input.value));
      onMove();
    });
    input.addEventListener("dblclick", () => {
      setStrength(slider, 0);
      onMove();
    });
    return slider;
  });
}

export const fixedSpecs = ({ directions, components }) =>
  [
    ...directions.map((each) => ({ kind: "directions", key: each.name, title: directionTitle(each) })),
    ...components.map((each) => ({
      kind: "components", key: each.name, title: [`Component ${each.name}`, `${percent(each.explained)} of the variance`],
    })),
  ].map((spec, i) => ({ ...spec, id: `move-${spec.kind}-${i}` }));

export const extremeSpec = ({ component, position, share }, i) => ({
  kind: "components", key: String(component), id: `move-extreme-${i}`,
  title: [`Component ${component}`, `at ${signed(position)} SD, ${percent(share)}`],
});

function directionTitle({ target, kind, classes }) {
  return [target, kind === "binary" ? `${classes[0]} to ${classes[1]}` : "lower to higher"];
}

export function setStrength(slider, value) {
  slider.input.value = value;
  slider.output.textContent = Number(value) ? signed(Number(value)) : "0";
}

/** Mark the mean, for a case at a position in standard deviations, and let the slider reach it. */
export function markMean(slider, position) {
  const most = Math.max(4, Math.ceil(Math.abs(position)));
  Object.assign(slider.input, { min: -most, max: most });
  // strength 0 is the case itself, so the mean lies at minus its own position
  const share = (most - position) / (2 * most);
  slider.mark.hidden = false;
  slider.mark.style.left = `calc(${(100 * share).toFixed(1)}% + ${(8 - 16 * share).toFixed(1)}px)`;
  slider.input.title = `The mark is the mean of the training cases. This case is at ${signed(position)} standard deviations.`;
}

/** A case as a button with its thumbnail; onOpen(row, isSecond). */
export function caseButton(row, { id, note, isMarked }, onOpen) {
  const picture = element("img", { src: thumbnail(row), alt: "", width: 64, height: 64, loading: "lazy" });
  const button = element(
    "button", { type: "button", className: "case", title: id },
    picture, element("span", { className: "id", textContent: shortened(id) }), element("small", { textContent: note }),
  );
  button.classList.toggle("marked", Boolean(isMarked));
  button.setAttribute("aria-label", `${id}, ${note}`);
  button.addEventListener("click", (event) => onOpen(row, event.shiftKey));
  return element("li", {}, button);
}

const predicted = ({ kind }, value) => (kind === "binary" ? `${(100 * value).toFixed(0)} %` : number(value));

const OUTLIER = "Outlier score: mean distance to the 5 nearest training cases of other patients, in standard deviations along "
  + "the principal components (whitened)";
const DISTANCE = "Distance in z_sem, each number of which is divided by its standard deviation among the training cases";

/** The table of scores; those of a preview are grey, as few network evaluations overstate an edit. */
export function drawScores(table, { scores, quality }, directions, nearestId, onOpen) {
  const isPreview = quality === "preview";
  const head = element("tr", {}, ...[isPreview ? "preview" : "", "scan", "requested", "image", "drift"].map((text) => element("th", { textContent: text })));
  const rows = scores.directions.map((each) => {
    const direction = directions.find(({ name }) => name === each.name);
    const title = direction.kind === "binary" ? `${direction.target}: ${direction.classes[1]}` : direction.target;
    const drift = each.drift === undefined ? "" : `${signed(each.drift)} SD`;
    return scoreRow(title, "", [...["case", "target", "image"].map((key) => each[key]).map((value) => (value === undefined ? "" : predicted(direction, value))), drift]);
  });
  if (isPreview || scores.outlier) {
    const values = ["case", "target", "image"].map((key) => (scores.outlier ? scores.outlier[key] : undefined));
    const texts = values.map((value) => (value === undefined ? (isPreview ? "\u2026" : "") : value.toFixed(1)));
    rows.push(scoreRow("Outlier score", OUTLIER, [...texts, ""]));
  }
  const body = element("tbody", {}, ...rows, distanceRow("Distance of the image to its scan", scores.to_itself.toFixed(2)));
  if (scores.nearest !== null) {
    const open = element("button", { type: "button", className: "link", textContent: shortened(nearestId, 20), title: nearestId });
    open.addEventListener("click", (event) => onOpen(scores.nearest_row, event.shiftKey));
    body.append(distanceRow("Distance to the nearest other patient", scores.nearest.toFixed(2), open));
  }
  if (scores.nearest !== null && scores.to_itself > scores.nearest) {
    const note = element("td", { colSpan: 5, className: "note", textContent: "The image is closer to another patient than to its own scan." });
    body.append(element("tr", {}, note));
  }
  table.classList.toggle("preview", isPreview);
  table.title = isPreview ? "Scores of a preview, which overstates edits; those of the full image follow" : "";
  table.replaceChildren(...(rows.length ? [element("thead", {}, head)] : []), body);
}

function scoreRow(name, title, texts) {
  const key = texts.map((textContent) => element("td", { textContent }));
  return element("tr", {}, element("th", { textContent: name, title }), ...key);
}

function distanceRow(name, value, ...more) {
  const cell = element("td", { colSpan: 4 }, element("b", { textContent: value }), " ", ...more);
  return element("tr", {}, element("th", { textContent: name, title: DISTANCE }), cell);
}
