// Colours of cases: Okabe and Ito's palette for classes, cividis for numbers. Both suit colour-blind readers.
// A plain script, so that explore can serve it and the report can contain it.
"use strict";

const CLASSES = ["--c0", "--c4", "--c2", "--c3", "--c5", "--c1", "--c6"];
const MISSING = "--c7";
const CIVIDIS = [[0, 34, 78], [48, 71, 107], [87, 93, 109], [125, 124, 120], [165, 155, 115], [207, 189, 98], [254, 232, 56]];
const CIVIDIS_IN_DARK = [[53, 91, 158], [82, 105, 140], [112, 124, 134], [143, 144, 130], [179, 169, 119], [217, 199, 99], [254, 232, 56]];
const SHADES = 48;

const isDark = () => matchMedia("(prefers-color-scheme: dark)").matches;

function cividis(share) {
  const stops = isDark() ? CIVIDIS_IN_DARK : CIVIDIS;
  const place = Math.min(Math.max(share, 0), 1) * (stops.length - 1);
  const low = Math.min(Math.floor(place), stops.length - 2);
  const mixed = stops[low].map((v, i) => Math.round(v + (stops[low + 1][i] - v) * (place - low)));
  return `rgb(${mixed.join(",")})`;
}

/** The colour of a name in the style sheet, which depends on light and dark. */
const styled = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

const shortText = (value) => (typeof value === "number" ? numberText(value) : String(value));

/** At most 4 significant digits, and no exponent where there can be none. */
function numberText(value) {
  if (Number.isInteger(value)) return String(value);
  return Math.abs(value) >= 1000 ? Math.round(value).toString() : Number(value.toPrecision(4)).toString();
}

/** Colours for a column: {colours, group: the index of each case's colour, legend: [[colour, text, count]] or a scale}. */
function coloured(values) {
  const present = values.filter((value) => value !== null);
  const distinct = new Set(present);
  const isNumber = present.length > 0 && present.every((value) => typeof value === "number");
  const isScale = isNumber && (distinct.size > CLASSES.length || present.some((value) => value % 1 !== 0));
  return isScale ? scaled(values, present) : classed(values, present, distinct);
}

function scaled(values, present) {
  const sorted = Float64Array.from(present).sort();
  const [low, high] = [0.02, 0.98].map((q) => sorted[Math.round(q * (sorted.length - 1))]);
  const colours = Array.from({ length: SHADES }, (_, i) => cividis(i / (SHADES - 1)));
  const shade = (value) => Math.round(Math.min(Math.max((value - low) / (high - low || 1), 0), 1) * (SHADES - 1));
  return {
    colours: [...colours, styled(MISSING)],
    group: values.map((value) => (value === null ? SHADES : shade(value))),
    scale: { low: shortText(low), high: shortText(high), stops: colours },
  };
}

function classed(values, present, distinct) {
  const counts = new Map();
  for (const value of present) counts.set(value, (counts.get(value) || 0) + 1);
  const isNumber = typeof present[0] === "number";
  const names = [...distinct].sort((a, b) => (isNumber ? a - b : counts.get(b) - counts.get(a)));
  const shown = names.slice(0, CLASSES.length);
  const index = new Map(shown.map((name, i) => [name, i]));
  const group = values.map((value) => (index.has(value) ? index.get(value) : shown.length));
  const legend = shown.map((name, i) => [styled(CLASSES[i]), shortText(name), counts.get(name)]);
  const rest = group.filter((each) => each === shown.length).length;
  if (rest) legend.push([styled(MISSING), names.length > shown.length ? "other or missing" : "missing", rest]);
  return { colours: [...CLASSES.slice(0, shown.length), MISSING].map(styled), group, legend };
}
