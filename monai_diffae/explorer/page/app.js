// The page of monai-diffae explore: what is chosen, and what happens when something is.
// CaseMap and coloured come from case_map.js and case_colours.js, which the report uses, too.

import * as api from "./api.js";
import { caseButton, drawScores, element, markOwn, setStrength, strengthSliders } from "./controls.js";
import { Editor } from "./editor.js";
import { Viewer } from "./viewer.js";

const $ = (id) => document.getElementById(id);
const MOST_MATCHES = 50;
const NUM_UNUSUAL = 24;
const NUM_SAMPLES = 8;

const state = { row: -1, second: -1, noise: "own", seed: 0, order: [] };
let data, map, viewer, sliders, editor, scoresOf;

history.replaceState(null, "", location.pathname + location.hash); // the token stays out of the history

function recipe(detail = "model") {
  const strengths = (kind) =>
    Object.fromEntries(sliders.filter((s) => s.kind === kind && Number(s.input.value)).map((s) => [s.key, Number(s.input.value)]));
  const weight = Number($("weight").value);
  const made = { case: state.row, directions: strengths("directions"), components: strengths("components"), detail };
  if (state.second >= 0 && weight > 0) Object.assign(made, { blend: state.second, weight });
  if (state.noise === "second" && state.second >= 0) made.noise_of = state.second;
  if (state.noise === "drawn") made.noise_seed = state.seed;
  return made;
}

const hasOwnNoise = (made) => !("blend" in made || "noise_of" in made || "noise_seed" in made);

/** What the page shows: the scan's own detail where it is wanted and possible. */
function shownRecipe() {
  const made = recipe();
  if ($("own").checked && viewer && !viewer.isVolume && hasOwnNoise(made)) made.detail = "own";
  return made;
}

const isEdited = (made) => !hasOwnNoise(made) || Object.keys({ ...made.directions, ...made.components }).length > 0;

function say(text, isError = false) {
  $("status").textContent = text;
  $("status").classList.toggle("failed", isError);
}

// -- a case ----------------------------------------------------------------------------------------------------------

async function open(row, isSecond = false) {
  if (isSecond && state.row >= 0 && row !== state.row) {
    chooseSecond(row);
    return;
  }
  if (row === state.row) return;
  Object.assign(state, { row, second: state.second === row ? -1 : state.second, isShown: false });
  $("case-panel").hidden = false;
  $("empty").hidden = true;
  resetMoves();
  $("weight").value = 0;
  state.noise = "own";
  drawSecond();
  viewer.clear();
  map.setChosen(row, state.second);
  $("case-id").textContent = data.ids[row];
  history.replaceState(null, "", `#${encodeURIComponent(data.ids[row])}`);
  say("Reading the scan ...");
  try {
    const [known, read] = await Promise.all([api.about(row), api.scan(row)]);
    if (state.row !== row || !read) return;
    state.scan = read.arrays.image;
    viewer.show({ scan: state.scan });
    describe(known);
    editor.refresh();
  } catch (error) {
    if (state.row === row) say(error.message, true);
  }
}

function describe(known) {
  state.known = known;
  const chips = [known.split, ...Object.entries(known.labels).map(([name, value]) => (value === null ? null : `${name}: ${value}`))];
  const nodes = chips.filter(Boolean).map((text) => element("span", { className: "chip", textContent: text }));
  $("chips").replaceChildren(...nodes, outlierChip(known.row));
  sliders.forEach((slider) => markOwn(slider, slider.kind === "components" ? known.components[Number(slider.key) - 1] : undefined));
  drawNeighbors();
  const [extreme, position] = mostExtreme();
  $("extreme").textContent = `Most extreme: component ${extreme.key}, ${position.toFixed(1)} standard deviations from the mean.`;
}

function drawNeighbors() {
  const noted = ({ row, distance }) => ({ id: data.ids[row], note: distance.toFixed(2), isMarked: row === state.second });
  map.setNear(state.known.neighbors.map(({ row }) => row));
  $("neighbors").replaceChildren(...state.known.neighbors.map((each) => caseButton(each.row, noted(each), open)));
}

function outlierChip(row) {
  if (!scoresOf) return "";
  const p = scoresOf.p[row];
  const node = element("span", { className: "chip", textContent: `outlier score ${scoresOf.scores[row].toFixed(2)}, p ${p < 0.001 ? "< 0.001" : p.toFixed(3)}` });
  node.classList.toggle("unusual", p < 0.05);
  node.title = "The p-value is about the share of training cases with at least as high a score";
  return node;
}

// -- moves -----------------------------------------------------------------------------------------------------------

function resetMoves() {
  sliders.forEach((slider) => setStrength(slider, 0));
}

function mostExtreme() {
  const ones = sliders.filter((slider) => slider.kind === "components");
  const position = (slider) => state.known.components[Number(slider.key) - 1];
  const extreme = ones.reduce((best, each) => (Math.abs(position(each)) > Math.abs(position(best)) ? each : best));
  return [extreme, position(extreme)];
}

function makeTypical() {
  const [extreme, position] = mostExtreme();
  setStrength(extreme, Math.min(Math.max(-position, -4), 4).toFixed(1));
  editor.refresh();
}

function chooseSecond(row) {
  state.second = row;
  map.setChosen(state.row, row);
  drawSecond();
  drawNeighbors();
  if (!Number($("weight").value) && state.noise === "own") $("weight").value = 0.5;
  drawSecond();
  editor.refresh();
}

function drawSecond() {
  const has = state.second >= 0;
  $("weight").disabled = !has;
  $("noise").querySelector('[value="second"]').disabled = !has;
  if (!has && state.noise === "second") state.noise = "own";
  $("noise").value = state.noise;
  document.querySelector('output[for="weight"]').textContent = `${Math.round(100 * Number($("weight").value))} %`;
  if (!has) {
    $("weight").value = 0;
    $("second").replaceChildren(element("span", { className: "muted small", textContent: "Shift-click a case on the map, or a neighbor, to choose it." }));
    return;
  }
  const drop = element("button", { type: "button", textContent: "Remove" });
  drop.addEventListener("click", () => {
    state.second = -1;
    map.setChosen(state.row, -1);
    drawSecond();
    drawNeighbors();
    editor.refresh();
  });
  const list = element("ul", { className: "strip" }, caseButton(state.second, { id: data.ids[state.second], note: "second case" }, open));
  $("second").replaceChildren(list, drop);
}

function showImage({ header, arrays }, seconds) {
  state.isShown = true;
  viewer.show({ scan: state.scan, ...arrays }); // the scan itself comes along if it is shown in its own grid
  drawScores($("scores"), header.scores, data.directions, data.ids[header.scores.nearest_row], open);
  const made = recipe();
  const at = header.scores.components.map((position, k) => position * data.component_stds[k]);
  map.setEdited(isEdited(made) && data.is_pca ? [at[0], at.length > 1 ? at[1] : 0] : null);
  const text = `${header.quality === "preview" ? "Preview" : "Image"}, ${header.steps} network evaluations, ${Math.round(1000 * seconds)} ms`;
  say(text);
  $("status").dataset.quality = header.quality;
  $("status").dataset.milliseconds = Math.round(1000 * seconds);
  $("save-own").disabled = !hasOwnNoise(made);
}

// -- the map, the list of unusual cases, the search -------------------------------------------------------------------

function columns() {
  const made = new Map(Object.entries(data.labels));
  made.set("split", data.splits);
  if (scoresOf) made.set("outlier score", scoresOf.scores);
  return made;
}

function fillColours() {
  const targets = data.directions.map(({ target }) => target).filter((name) => name in data.labels);
  const chosen = $("colour").value || targets[0] || Object.keys(data.labels)[0] || "split";
  $("colour").replaceChildren(...[...columns().keys()].map((name) => element("option", { value: name, textContent: name })));
  $("colour").value = columns().has(chosen) ? chosen : "split";
  colour();
}

function colour() {
  const made = coloured(columns().get($("colour").value));
  map.setColours(made);
  const rows = (made.legend || []).map(([shade, text, count]) => {
    const dot = element("i");
    dot.style.background = shade;
    return element("div", {}, dot, text, element("small", { textContent: count.toLocaleString("en") }));
  });
  if (made.scale) {
    const bar = element("i", { className: "ramp" });
    bar.style.background = `linear-gradient(90deg, ${made.scale.stops.join(",")})`;
    rows.push(element("div", {}, made.scale.low, bar, made.scale.high));
  }
  $("legend").replaceChildren(...rows);
}

function point(row, x, y) {
  const tip = $("tip");
  tip.hidden = row < 0;
  if (row < 0) return;
  const [picture, text] = [tip.querySelector("img"), tip.querySelector("div")];
  if (picture.dataset.row !== String(row)) {
    picture.src = api.thumbnail(row);
    picture.dataset.row = row;
    const labels = Object.entries(data.labels).filter(([, values]) => values[row] !== null);
    const lines = [data.splits[row], ...labels.map(([name, values]) => `${name}: ${values[row]}`)];
    if (scoresOf) lines.push(`outlier score ${scoresOf.scores[row].toFixed(2)}`);
    text.replaceChildren(element("b", { textContent: data.ids[row] }), ...lines.map((line) => element("span", { textContent: line })));
  }
  tip.style.left = `${Math.min(x + 16, map.width - 246)}px`;
  tip.style.top = `${Math.min(y + 16, map.height - 126)}px`;
}

function search() {
  const text = $("search").value.trim().toLowerCase();
  if (!text) {
    $("match-count").textContent = "";
    $("matches").hidden = true;
    map.setFound(null);
    return;
  }
  const values = Object.values(data.labels);
  const fits = (row) => data.ids[row].toLowerCase().includes(text) || values.some((each) => each[row] !== null && String(each[row]).toLowerCase() === text);
  const rows = [...data.ids.keys()].filter(fits);
  $("match-count").textContent = `${rows.length.toLocaleString("en")} found`;
  map.setFound(new Set(rows));
  $("matches").replaceChildren(...rows.slice(0, MOST_MATCHES).map((row) => caseButton(row, { id: data.ids[row], note: data.splits[row] }, openFound)));
  $("matches").hidden = rows.length === 0;
}

function openFound(row, isSecond) {
  open(row, isSecond);
  $("matches").hidden = true;
}

async function loadOutliers() {
  const answer = await api.outliers();
  const rows = [...data.ids.keys()];
  if (answer.reason) {
    $("unusual-note").textContent = `cannot be told: ${answer.reason}`;
    state.order = rows;
  } else {
    scoresOf = answer;
    state.order = rows.sort((a, b) => scoresOf.scores[b] - scoresOf.scores[a]);
    $("unusual-note").textContent = "by distance to the training cases of other patients, whitened";
  }
  const noted = (row) => ({ id: data.ids[row], note: scoresOf ? scoresOf.scores[row].toFixed(2) : data.splits[row] });
  $("unusual").replaceChildren(...state.order.slice(0, NUM_UNUSUAL).map((row) => caseButton(row, noted(row), open)));
  fillColours();
  if (state.known) describe(state.known);
}

function go(step) {
  if (!state.order.length) return;
  const place = state.row < 0 ? (step > 0 ? -1 : 0) : state.order.indexOf(state.row);
  open(state.order[Math.min(Math.max(place + step, 0), state.order.length - 1)]);
}

// -- taking away -----------------------------------------------------------------------------------------------------

async function copy(kind, made, shown = "call") {
  try {
    const text = (await made)[kind];
    $(shown).textContent = text;
    $(shown).hidden = false;
    await navigator.clipboard.writeText(text).then(() => say("Copied."), () => say("Copy the text below: the browser does not allow it here."));
  } catch (error) {
    say(error.message, true);
  }
}

async function save(detail) {
  say("Decoding for the file ...");
  try {
    say(`Saved ${await api.save(recipe(detail))}.`);
  } catch (error) {
    say(error.message, true);
  }
}

async function drawSamples() {
  $("draw").disabled = true;
  try {
    const result = await api.samples(NUM_SAMPLES, Number($("sample-seed").value));
    if (result) $("samples").replaceChildren(...sampleCanvases(result.arrays.images));
  } catch (error) {
    $("samples").textContent = error.message;
  } finally {
    $("draw").disabled = false;
  }
}

function sampleCanvases({ shape, values }) {
  const size = values.length / shape[0];
  return Array.from({ length: shape[0] }, (_, i) => {
    const root = element("div", { className: "views sample" });
    const one = new Viewer(root, { modelRange: data.model_range, imageShape: data.image_shape, spacing: data.spacing, only: "image" });
    one.show({ image: { shape: shape.slice(1), values: values.subarray(i * size, (i + 1) * size) } });
    return root;
  });
}

// -- wiring ----------------------------------------------------------------------------------------------------------

function setWindow(window, level) {
  $("window").value = window;
  $("level").value = level;
  viewer.setWindow(window, level);
}

function flip(isFlipped) {
  viewer.setFlipped(isFlipped);
  $("flip").setAttribute("aria-pressed", isFlipped);
}

function wire() {
  $("colour").addEventListener("change", colour);
  $("search").addEventListener("input", search);
  $("search").addEventListener("keydown", (event) => event.key === "Escape" && ((event.target.value = ""), search()));
  $("fit").addEventListener("click", () => map.fit());
  $("previous").addEventListener("click", () => go(1));
  $("next").addEventListener("click", () => go(-1));
  for (const name of ["window", "level"])
    $(name).addEventListener("input", () => viewer.setWindow(Number($("window").value), Number($("level").value)));
  $("reset-window").addEventListener("click", () => setWindow(1, 0.5));
  viewer.onWindow = setWindow;
  $("flip").addEventListener("click", () => flip($("flip").getAttribute("aria-pressed") !== "true"));
  $("own").addEventListener("change", () => editor.refresh());
  $("own-label").hidden = viewer.isVolume;
  $("typical").addEventListener("click", makeTypical);
  $("reset").addEventListener("click", reset);
  $("weight").addEventListener("input", () => {
    drawSecond();
    editor.refresh();
  });
  $("noise").addEventListener("change", () => {
    state.noise = $("noise").value;
    editor.refresh();
  });
  $("redraw").addEventListener("click", redraw);
  $("copy-command").addEventListener("click", () => copy("command", api.calls(shownRecipe())));
  $("copy-python").addEventListener("click", () => copy("python", api.calls(shownRecipe())));
  $("save-model").addEventListener("click", () => save("model"));
  $("save-own").addEventListener("click", () => save("own"));
  $("draw").addEventListener("click", drawSamples);
  $("copy-samples").addEventListener("click", () => copy("command", api.sampleCalls(NUM_SAMPLES, Number($("sample-seed").value)), "sample-call"));
  $("help-button").addEventListener("click", () => $("help").showModal());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", colour);
  document.addEventListener("keydown", key);
  document.addEventListener("keyup", (event) => event.key === "f" && flip(false));
}

function reset() {
  resetMoves();
  Object.assign(state, { noise: "own" });
  $("weight").value = 0;
  drawSecond();
  editor.refresh();
}

function redraw() {
  state.seed = state.noise === "drawn" ? state.seed + 1 : state.seed;
  state.noise = "drawn";
  drawSecond();
  editor.refresh();
}

function key(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input:not([type=range]), select, textarea")) return;
  const actions = { "/": () => $("search").focus(), n: () => go(-1), p: () => go(1), "?": () => $("help").showModal() };
  if (state.row >= 0) Object.assign(actions, { f: () => flip(true), r: reset, d: redraw });
  if (!(event.key in actions)) return;
  actions[event.key]();
  event.preventDefault();
}

async function start() {
  data = await api.overview();
  $("about").textContent = `${data.bundle} on ${data.cohort}: ${data.ids.length.toLocaleString("en")} cases, z_sem of ${data.z_channels} numbers`;
  document.title = `${data.bundle}: explore`;
  map = new CaseMap($("points"), $("overlay"), { onOpen: open, onPoint: point, pictureOf: api.thumbnail });
  map.setPlaces(data.x, data.y);
  viewer = new Viewer($("views"), { modelRange: data.model_range, imageShape: data.image_shape, spacing: data.spacing });
  editor = new Editor({
    recipe: shownRecipe, onImage: showImage, onError: (message) => say(message, true),
    onBusy: () => state.isShown || say("Inverting the scan ..."),
  });
  sliders = strengthSliders($("sliders"), data, () => editor.refresh());
  $("samples-panel").hidden = !data.has_samples;
  wire();
  fillColours();
  const named = data.ids.indexOf(decodeURIComponent(location.hash.slice(1)));
  if (named >= 0) open(named);
  await loadOutliers();
  document.body.dataset.ready = "yes";
}

start().catch((error) => ($("about").textContent = error.message));
