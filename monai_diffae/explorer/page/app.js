// The page of monai-diffae explore: what is chosen, and what happens when something is.
// CaseMap and coloured come from case_map.js and case_colours.js, which the report uses, too.

import * as api from "./api.js";
import { caseButton, drawScores, element, extremeSpec, fixedSpecs, markMean, setStrength, strengthSliders } from "./controls.js";
import { Editor } from "./editor.js";
import { wireFind } from "./find.js";
import { labelText, percent, signed } from "./text.js";
import { Viewer } from "./viewer.js";

const $ = (id) => document.getElementById(id);
const NUM_UNUSUAL = 24;
const NUM_SAMPLES = 8;
const NUM_EXTREMES = 4;
const PROGRESS_MS = 400;

const state = { row: -1, second: -1, noise: "own", seed: 0, order: [], moved: {}, numSaves: 0 };
let data, map, viewer, fixed, sliders, editor, scoresOf;

history.replaceState(null, "", location.pathname + location.hash); // the token stays out of the history

function recipe(detail = "model") {
  const strengths = (kind) =>
    Object.fromEntries(sliders.filter((s) => s.kind === kind && Number(s.input.value)).map((s) => [s.key, Number(s.input.value)]));
  const weight = Number($("weight").value);
  const made = { case: state.row, moves: { ...strengths("directions"), ...state.moved, ...strengths("components") }, detail };
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

const isEdited = (made) => !hasOwnNoise(made) || Object.keys(made.moves).length > 0;

function say(text, isError = false) {
  $("status").textContent = text;
  $("status").classList.toggle("failed", isError);
}

function fail(message) {
  state.hasFailed = true;
  viewer.wait("");
  say(message, true);
}

// -- a case ----------------------------------------------------------------------------------------------------------

async function open(row, isSecond = false) {
  if (isSecond && state.row >= 0 && row !== state.row) {
    chooseSecond(row);
    return;
  }
  if (row === state.row) {
    showPanel();
    return;
  }
  Object.assign(state, { row, second: state.second === row ? -1 : state.second, isShown: false, hasFailed: false });
  $("case-panel").hidden = false;
  $("empty").hidden = true;
  resetMoves();
  $("weight").value = 0;
  state.noise = "own";
  drawSecond();
  viewer.clear();
  $("scores").replaceChildren();
  map.setChosen(row, state.second);
  $("case-id").textContent = data.ids[row];
  history.replaceState(null, "", `#${encodeURIComponent(data.ids[row])}`);
  showPanel();
  say("Reading the scan ...");
  viewer.wait("Reading the scan");
  try {
    const [known, read] = await Promise.all([api.about(row), api.scan(row)]);
    if (state.row !== row || !read) return;
    state.scan = read.arrays.image;
    viewer.show({ scan: state.scan });
    describe(known);
    waitForModel(row);
    editor.restart();
  } catch (error) {
    if (state.row === row) fail(error.message);
  }
}

/** In a narrow window the case lies below the map. */
function showPanel() {
  if (matchMedia("(max-width: 1000px)").matches && document.body.dataset.ready) $("case-panel").scrollIntoView();
}

/** Until there is an image, tell what the model does. */
async function waitForModel(row) {
  const began = performance.now();
  while (state.row === row && !state.isShown && !state.hasFailed) {
    const doing = (await api.progress().catch(() => "")) || "Waiting for the model";
    if (state.row !== row || state.isShown || state.hasFailed) return;
    viewer.wait(doing);
    say(`${doing}, ${Math.round((performance.now() - began) / 1000)} s`);
    await new Promise((done) => setTimeout(done, PROGRESS_MS));
  }
}

function describe(known) {
  state.known = known;
  const chips = [known.split, ...Object.entries(known.labels).map(([name, value]) => (value === null ? null : `${name}: ${labelText(value)}`))];
  const nodes = chips.filter(Boolean).map((text) => element("span", { className: "chip", textContent: text }));
  $("chips").replaceChildren(...nodes, outlierChip(known.row));
  drawNeighbors();
  drawExtremes();
}

function drawNeighbors() {
  const noted = ({ row, distance }) => ({ id: data.ids[row], note: distance.toFixed(2), isMarked: row === state.second });
  map.setNear(state.known.neighbors.map(({ row }) => row));
  $("neighbors").replaceChildren(...state.known.neighbors.map((each) => caseButton(each.row, noted(each), open)));
}

function outlierChip(row) {
  if (!scoresOf) return "";
  const p = scoresOf.p[row];
  const node = element("span", { className: "chip", textContent: `outlier score ${scoresOf.scores[row].toFixed(1)}, p ${p < 0.001 ? "< 0.001" : p.toFixed(3)}` });
  node.classList.toggle("unusual", p < 0.05);
  node.title = "Mean distance to the 5 nearest training cases of other patients, in whitened standard deviations. The p-value is about the share of training cases with at least as high a score.";
  return node;
}

// -- moves -----------------------------------------------------------------------------------------------------------

function resetMoves() {
  sliders.forEach((slider) => setStrength(slider, 0));
  state.moved = {};
  showMoved();
}

/** Sliders for the most extreme components of this case that have no fixed one. */
function drawExtremes() {
  const withSlider = new Set(fixed.map(({ kind, key }) => `${kind} ${key}`));
  const more = state.known.extremes.filter(({ component }) => !withSlider.has(`components ${component}`)).slice(0, NUM_EXTREMES);
  const extra = strengthSliders(more.map(extremeSpec), () => editor.refresh());
  sliders = [...fixed, ...extra];
  for (const slider of sliders) {
    if (slider.kind === "components") markMean(slider, state.known.components[Number(slider.key) - 1]);
  }
  $("extreme-sliders").replaceChildren(...extra.map(({ node }) => node));
  $("extreme-group").hidden = extra.length === 0;
  describeExtremes();
}

function describeExtremes() {
  const unusual = state.known.extremes.filter(({ to_typical }) => to_typical);
  const sum = (ones) => ones.reduce((total, { share }) => total + share, 0);
  const hasSlider = ({ component }) => sliders.some(({ kind, key }) => kind === "components" && key === String(component));
  const name = ({ component, position }) => `component ${component} (${signed(position)} SD)`;
  const text = unusual.length
    ? `Unusual along ${unusual.length} of ${state.known.components.length} components, most along ${name(unusual[0])}; together they explain ${percent(sum(unusual))} of its squared whitened distance from the mean, those with sliders ${percent(sum(unusual.filter(hasSlider)))}.`
    : `Usual along every component; most extreme is ${name(state.known.extremes[0])}.`;
  $("extreme").textContent = text;
  $("typical").disabled = unusual.length === 0;
  $("typical").title = unusual.length
    ? `Move components beyond 2.5 whitened standard deviations (${unusual.length}) back to 2, on their side`
    : "Nothing to move: no component of this case is beyond 2.5 whitened standard deviations";
}

function makeTypical() {
  state.moved = {};
  for (const { component, to_typical } of state.known.extremes.filter((each) => each.to_typical)) {
    const slider = sliders.find(({ kind, key }) => kind === "components" && key === String(component));
    if (slider) setStrength(slider, to_typical.toFixed(1));
    else state.moved[component] = Number(to_typical.toFixed(1));
  }
  showMoved();
  editor.refresh();
}

/** Tell of moves along components that have no slider. */
function showMoved() {
  const names = Object.keys(state.moved);
  $("more-moves").hidden = names.length === 0;
  $("more-moves").textContent = names.length === 1 ? `Also moved: component ${names[0]}.` : `Also moved: components ${names.join(", ")}.`;
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
  drawReasons();
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

/** What cannot be done now says why. */
function drawReasons() {
  const isBlended = state.second >= 0 && Number($("weight").value) > 0;
  $("own-noise").textContent = isBlended ? `blended, ${Math.round(100 * Number($("weight").value))} % of the second case` : "own";
  const isOwn = hasOwnNoise(recipe());
  const reason = "Only for edits of one scan with its own x_T: set Blend to 0 and x_T to own";
  $("own").disabled = $("save-own").disabled = !isOwn;
  $("own-label").title = isOwn ? "Add the change to the scan, which keeps its own detail and size" : reason;
  $("own-label").classList.toggle("disabled", !isOwn);
  $("save-own").title = isOwn ? "The scan plus the change, so that it keeps its own detail" : reason;
}

function showImage({ header, arrays }, seconds) {
  state.isShown = true;
  viewer.wait("");
  viewer.show({ scan: state.scan, ...arrays }); // the scan itself comes along if it is shown in its own grid
  drawScores($("scores"), header, data.directions, data.ids[header.scores.nearest_row], open);
  const made = recipe();
  const at = data.map_stds.map((std, k) => header.scores.components[k] * std);
  map.setEdited(isEdited(made) && data.is_pca ? [at[0], at.length > 1 ? at[1] : 0] : null);
  const text = `${header.quality === "preview" ? "Preview" : "Image"}, network evaluations: ${header.steps}, ${Math.round(1000 * seconds)} ms`;
  say(text);
  $("status").dataset.quality = header.quality;
  $("status").dataset.milliseconds = Math.round(1000 * seconds);
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
    const lines = [data.splits[row], ...labels.map(([name, values]) => `${name}: ${labelText(values[row])}`)];
    if (scoresOf) lines.push(`outlier score ${scoresOf.scores[row].toFixed(1)}`);
    text.replaceChildren(element("b", { textContent: data.ids[row] }), ...lines.map((line) => element("span", { textContent: line })));
  }
  tip.style.left = `${Math.min(x + 16, map.width - 246)}px`;
  tip.style.top = `${Math.min(y + 16, map.height - 126)}px`;
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
    $("unusual-note").textContent = "by outlier score, in whitened standard deviations";
  }
  const noted = (row) => ({ id: data.ids[row], note: scoresOf ? scoresOf.scores[row].toFixed(1) : data.splits[row] });
  $("unusual").replaceChildren(...state.order.slice(0, NUM_UNUSUAL).map((row) => caseButton(row, noted(row), open)));
  fillColours();
  if (state.known) $("chips").lastChild.after(outlierChip(state.known.row));
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
  const tell = (text, isFailed = false) => {
    $("save-status").textContent = [text, state.numSaves ? `Decoding ${state.numSaves} for ${state.numSaves === 1 ? "a file" : "files"} ...` : ""].join(" ").trim();
    $("save-status").classList.toggle("failed", isFailed);
  };
  state.numSaves += 1;
  tell("");
  try {
    const name = await api.save(recipe(detail));
    state.numSaves -= 1;
    tell(`Saved ${name}.`);
  } catch (error) {
    state.numSaves -= 1;
    tell(`Not saved: ${error.message}`, true);
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
    const one = new Viewer(root, { modelRange: data.model_range, imageShape: data.image_shape, isColour: data.is_colour, spacing: data.spacing, only: "image" });
    one.show({ image: { shape: shape.slice(1), values: values.subarray(i * size, (i + 1) * size) } });
    return root;
  });
}

// -- wiring ----------------------------------------------------------------------------------------------------------

function setWindow(window, level) {
  $("window").value = window;
  $("level").value = level;
  showWindow();
}

function showWindow() {
  for (const name of ["window", "level"])
    document.querySelector(`output[for="${name}"]`).textContent = `${Math.round(100 * Number($(name).value))} %`;
  viewer.setWindow(Number($("window").value), Number($("level").value));
}

function flip(isFlipped) {
  viewer.setFlipped(isFlipped);
  $("flip").setAttribute("aria-pressed", isFlipped);
}

function wire() {
  $("colour").addEventListener("change", colour);
  wireFind({ input: $("search"), list: $("matches"), count: $("match-count") }, data, { onFound: (rows) => map.setFound(rows), onOpen: open });
  $("fit").addEventListener("click", () => map.fit());
  $("previous").addEventListener("click", () => go(1));
  $("next").addEventListener("click", () => go(-1));
  for (const name of ["window", "level"])
    $(name).addEventListener("input", showWindow);
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
    drawSecond();
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
  $("about").textContent = `${data.bundle} on ${data.cohort}: ${data.ids.length.toLocaleString("en")} cases${data.knows_patients ? "" : " of unknown patients"}, z_sem of ${data.z_channels} numbers`;
  document.title = `${data.bundle}: explore`;
  map = new CaseMap($("points"), $("overlay"), { onOpen: open, onPoint: point, pictureOf: api.thumbnail });
  map.setPlaces(data.x, data.y);
  viewer = new Viewer($("views"), { modelRange: data.model_range, imageShape: data.image_shape, isColour: data.is_colour, spacing: data.spacing });
  editor = new Editor({
    recipe: shownRecipe, onImage: showImage, onError: fail,
    onBusy: () => (state.hasFailed = false),
  });
  fixed = strengthSliders(fixedSpecs(data), () => editor.refresh());
  sliders = fixed;
  for (const slider of fixed) $(`${slider.kind.slice(0, -1)}-sliders`).append(slider.node);
  $("samples-panel").hidden = !data.has_samples;
  wire();
  fillColours();
  const named = data.ids.indexOf(decodeURIComponent(location.hash.slice(1)));
  if (named >= 0) open(named);
  await loadOutliers();
  document.body.dataset.ready = "yes";
}

start().catch((error) => ($("about").textContent = error.message));
