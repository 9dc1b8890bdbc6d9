// Colours of cases: Okabe and Ito's palette for classes, cividis for numbers. Both suit colour-blind readers.

const CLASSES = ["--c0", "--c4", "--c2", "--c3", "--c5", "--c1", "--c6"];
const MISSING = "--c7";
const CIVIDIS = [[0, 34, 78], [53, 69, 108], [102, 105, 112], [148, 142, 119], [200, 184, 102], [254, 232, 56]];
const SHADES = 24;

function cividis(share) {
  const place = Math.min(Math.max(share, 0), 1) * (CIVIDIS.length - 1);
  const low = Math.min(Math.floor(place), CIVIDIS.length - 2);
  const mixed = CIVIDIS[low].map((v, i) => Math.round(v + (CIVIDIS[low + 1][i] - v) * (place - low)));
  return `rgb(${mixed.join(",")})`;
}

/** The colour of a name in the style sheet, which depends on light and dark. */
const styled = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

const text = (value) => (typeof value === "number" ? Number(value.toPrecision(3)).toString() : String(value));

/** Colours for a column: {colours: [...], group: index of each case's colour, legend: [[colour, text]] or a scale}. */
export function coloured(values) {
  const present = values.filter((value) => value !== null);
  const distinct = new Set(present);
  const isNumber = present.length > 0 && present.every((value) => typeof value === "number");
  return isNumber && distinct.size > CLASSES.length ? scaled(values, present) : classed(values, present, distinct);
}

function scaled(values, present) {
  const sorted = Float64Array.from(present).sort();
  const [low, high] = [0.01, 0.99].map((q) => sorted[Math.round(q * (sorted.length - 1))]);
  const colours = Array.from({ length: SHADES }, (_, i) => cividis(i / (SHADES - 1)));
  const shade = (value) => Math.round(Math.min(Math.max((value - low) / (high - low || 1), 0), 1) * (SHADES - 1));
  return {
    colours: [...colours, styled(MISSING)],
    group: values.map((value) => (value === null ? SHADES : shade(value))),
    scale: { low: text(low), high: text(high), stops: CIVIDIS.map((_, i) => cividis(i / (CIVIDIS.length - 1))) },
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
  const legend = shown.map((name, i) => [styled(CLASSES[i]), text(name), counts.get(name)]);
  const rest = group.filter((each) => each === shown.length).length;
  if (rest) legend.push([styled(MISSING), names.length > shown.length ? "other or missing" : "missing", rest]);
  return { colours: [...CLASSES.slice(0, shown.length), MISSING].map(styled), group, legend };
}
