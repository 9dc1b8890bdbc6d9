// The pictures of a case: scan, edited image and difference; of a volume three planes each, with sliders. Channels that
// are not colours are shown side by side.

const PLANES = ["axial", "coronal", "sagittal"];
const TITLES = { scan: "Scan", image: "Edited image (synthetic)", difference: "Difference" };
const SIDES = { axial: "R", coronal: "R", sagittal: "A" }; // what lies on the left of the picture
const LESS = [86, 180, 233];
const MORE = [230, 130, 0];

/** A plane of an array [C, *S]: {width, height, at(channel, x, y) -> index}. Volumes are in RAS order. */
function plane({ shape }, name, voxel) {
  if (shape.length === 3) {
    const [, height, width] = shape;
    return { width, height, at: (c, x, y) => (c * height + y) * width + x };
  }
  const [, R, A, S] = shape;
  const index = (c, r, a, s) => ((c * R + r) * A + a) * S + s;
  const views = {
    axial: { width: R, height: A, at: (c, x, y) => index(c, R - 1 - x, A - 1 - y, voxel[2]) },
    coronal: { width: R, height: S, at: (c, x, y) => index(c, R - 1 - x, voxel[1], S - 1 - y) },
    sagittal: { width: A, height: S, at: (c, x, y) => index(c, voxel[0], A - 1 - x, S - 1 - y) },
  };
  return views[name];
}

function mark(kind, text) {
  const node = document.createElement("span");
  node.className = kind;
  node.textContent = text;
  return node;
}

export class Viewer {
  constructor(root, { modelRange, imageShape, isColour, spacing, only }) {
    [this.low, this.high] = modelRange;
    this.isVolume = imageShape.length === 4;
    this.spacing = spacing || [1, 1, 1];
    this.size = imageShape.slice(1);
    this.isColour = isColour;
    this.panels = isColour ? 1 : imageShape[0];
    this.voxel = this.size.map((length) => Math.floor(length / 2));
    this.window = 1;
    this.level = 0.5;
    this.isFlipped = false;
    this.only = only;
    this.arrays = {};
    this.figures = [];
    this.build(root);
  }

  build(root) {
    root.classList.toggle("volume", this.isVolume);
    for (const key of this.only ? [this.only] : Object.keys(TITLES)) {
      const figure = document.createElement("figure");
      const caption = document.createElement("figcaption");
      caption.textContent = TITLES[key];
      if (key === "image") this.imageCaption = caption;
      if (!this.only) figure.append(caption);
      for (const name of this.isVolume ? PLANES : ["whole"]) figure.append(this.canvas(key, name));
      root.append(figure);
      if (key === "difference") this.addScale(figure);
    }
    if (this.isVolume && !this.only) root.append(this.planeSliders());
  }

  canvas(key, name) {
    const canvas = document.createElement("canvas");
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", name === "whole" ? TITLES[key] : `${TITLES[key]}, ${name}`);
    canvas.dataset.view = key;
    canvas.style.aspectRatio = this.aspect(name);
    this.listen(canvas);
    this.figures.push({ key, name, canvas });
    const frame = document.createElement("div");
    frame.className = "frame";
    frame.append(canvas, mark("waiting", ""));
    if (name !== "whole") frame.append(mark("plane", name), mark("side", SIDES[name]));
    return frame;
  }

  aspect(name) {
    const [h, w] = this.size;
    if (name === "whole") return `${w * this.panels} / ${h}`;
    const [R, A, S] = this.size.map((length, i) => length * this.spacing[i]);
    const [width, height] = { axial: [R, A], coronal: [R, S], sagittal: [A, S] }[name];
    return `${width * this.panels} / ${height}`;
  }

  addScale(figure) {
    this.scale = document.createElement("div");
    this.scale.className = "difference-scale";
    this.scale.title = "In percent of the model's range of intensities";
    this.scale.innerHTML = '<span>darker</span><i></i><span>brighter</span><output></output>';
    figure.append(this.scale);
  }

  planeSliders() {
    const box = document.createElement("div");
    box.className = "planes";
    PLANES.forEach((name, i) => {
      const axis = 2 - i;
      const label = document.createElement("label");
      const input = Object.assign(document.createElement("input"), {
        type: "range", min: 0, max: this.size[axis] - 1, step: 1, value: this.voxel[axis],
      });
      input.setAttribute("aria-label", `${name} plane`);
      input.addEventListener("input", () => {
        this.voxel[axis] = Number(input.value);
        this.draw();
      });
      label.append(name, input);
      box.append(label);
    });
    return box;
  }

  /** Show arrays {scan, image, difference}; those that are not given stay. */
  show(arrays) {
    Object.assign(this.arrays, arrays);
    if (arrays.difference) this.limit = limitOf(arrays.difference.values, this.high - this.low);
    this.draw();
  }

  clear() {
    this.arrays = {};
    this.limit = 0;
    this.draw();
  }

  /** Say over the pictures that are not there yet what is being done; "" says nothing. */
  wait(text) {
    for (const { key, canvas } of this.figures) canvas.nextSibling.textContent = this.arrays[key] ? "" : text;
  }

  setWindow(window, level) {
    this.window = window;
    this.level = level;
    this.draw();
  }

  setFlipped(isFlipped) {
    this.isFlipped = isFlipped;
    this.imageCaption.textContent = isFlipped ? TITLES.scan : TITLES.image;
    this.draw();
  }

  draw() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      for (const figure of this.figures) this.drawFigure(figure);
      if (!this.scale) return;
      const share = this.limit ? (this.limit / (this.high - this.low)) * 100 : 0;
      this.scale.querySelector("output").textContent = share ? `± ${share.toPrecision(2)} %` : "";
    });
  }

  drawFigure({ key, name, canvas }) {
    const shown = key === "image" && this.isFlipped ? "scan" : key;
    const array = this.arrays[shown];
    const context = canvas.getContext("2d");
    canvas.parentNode.classList.toggle("empty-frame", !array);
    if (!array) {
      context.clearRect(0, 0, canvas.width, canvas.height);
      return;
    }
    const view = plane(array, name, this.voxel);
    const width = view.width * this.panels;
    canvas.width = width;
    canvas.height = view.height;
    if (name === "whole") canvas.style.aspectRatio = `${width} / ${view.height}`;
    const pixels = context.createImageData(width, view.height);
    const paint = key === "difference" ? this.difference(array, view) : this.grey(array, view);
    for (let y = 0, i = 0; y < view.height; y += 1) {
      for (let x = 0; x < width; x += 1, i += 4) {
        paint(Math.floor(x / view.width), x % view.width, y, pixels.data, i);
        pixels.data[i + 3] = 255;
      }
    }
    context.putImageData(pixels, 0, 0);
  }

  shade(value) {
    const share = (value - this.low) / (this.high - this.low);
    return 255 * Math.min(Math.max((share - this.level) / this.window + 0.5, 0), 1);
  }

  grey({ values }, view) {
    return (panel, x, y, data, i) => {
      for (let k = 0; k < 3; k += 1) data[i + k] = this.shade(values[view.at(this.isColour ? k : panel, x, y)]);
    };
  }

  /** The difference in blue and orange over the scan in grey. */
  difference({ values }, view) {
    const base = this.arrays.scan && this.arrays.scan.values;
    const channels = this.isColour ? [0, 1, 2] : [0];
    return (panel, x, y, data, i) => {
      const change = channels.reduce((sum, c) => sum + values[view.at(panel + c, x, y)], 0) / channels.length;
      const grey = base ? 0.55 * this.shade(base[view.at(panel, x, y)]) : 0;
      const strength = Math.min(Math.abs(change) / (this.limit || 1), 1) ** 0.8;
      const colour = change < 0 ? LESS : MORE;
      for (let k = 0; k < 3; k += 1) data[i + k] = grey + (colour[k] - grey) * strength;
    };
  }

  listen(canvas) {
    let start = null;
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      start = { x: event.clientX, y: event.clientY, window: this.window, level: this.level };
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!start) return;
      const window = Math.min(Math.max(start.window + (event.clientX - start.x) * 0.004, 0.05), 2);
      const level = Math.min(Math.max(start.level + (event.clientY - start.y) * 0.003, -0.25), 1.25);
      this.onWindow(window, level);
    });
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => (start = null));
  }
}

/** The value of the strongest colour: nearly the largest change, but never so small that noise is coloured. */
function limitOf(values, range) {
  const sizes = values.map(Math.abs).sort();
  return Math.max(sizes[Math.floor(0.995 * (sizes.length - 1))], 0.05 * range);
}
