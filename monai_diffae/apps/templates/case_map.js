// The map of z_sem: all cases as points on one canvas, what is pointed at and chosen on a second one above it.
// A plain script, so that explore can serve it and the report can contain it.
"use strict";

const NEAR_PX = 14;
const TOUCH_PX = 24;
const MOST_PICTURES = 36; // with so few cases in view, their thumbnails are drawn
const PICTURE_PX = 44;
const MOST_CIRCLES = 8000; // more cases are drawn as squares, which is faster
const TURNS = 12; // cases are drawn in turns, so that no colour lies above all others
const MARGIN_PX = 34;

class CaseMap {
  /**
   * onOpen(row, isSecond) and onPoint(row or -1, x, y) are called with rows of the table; pictureOf(row) is the address
   * of a thumbnail, or null. isInText: the wheel zooms with Ctrl only, and an arrow key opens the case that it goes to.
   */
  constructor(points, overlay, { onOpen, onPoint, pictureOf = null, isInText = false }) {
    Object.assign(this, { points, overlay, onOpen, onPoint, pictureOf, isInText });
    this.pointed = -1;
    this.chosen = -1;
    this.second = -1;
    this.near = [];
    this.edited = null;
    this.found = null;
    this.axes = null;
    this.isFitted = true; // until the user moves the map
    this.pictures = new Map();
    this.listen();
    new ResizeObserver(() => this.resize()).observe(overlay.parentElement);
  }

  /** Places of all cases, and what the two axes are; null: not written on the map. */
  setPlaces(x, y, axes = null) {
    this.x = Float64Array.from(x);
    this.y = Float64Array.from(y);
    this.axes = axes;
    this.colours = this.colours || ["#888"];
    this.group = this.group || new Array(x.length).fill(0);
    this.fit();
  }

  setColours({ colours, group }) {
    this.colours = colours;
    this.group = group;
    this.draw();
  }

  /** Dim all cases but those of a set of rows; null: none. */
  setFound(rows) {
    this.found = rows;
    this.draw();
  }

  /** Mark one or two cases; -1: none. */
  setChosen(chosen, second = -1) {
    if (chosen !== this.chosen) this.near = [];
    this.chosen = chosen;
    this.second = second;
    this.edited = null;
    this.show(chosen);
    this.drawOverlay();
  }

  /** Draw lines from the chosen case to its nearest neighbors. */
  setNear(rows) {
    this.near = rows;
    this.drawOverlay();
  }

  /** Where the edited image lies, [x, y]; null: unknown. */
  setEdited(place) {
    this.edited = place;
    this.drawOverlay();
  }

  resize() {
    const { clientWidth, clientHeight } = this.overlay.parentElement;
    const ratio = window.devicePixelRatio || 1;
    for (const canvas of [this.points, this.overlay]) {
      canvas.width = Math.round(clientWidth * ratio);
      canvas.height = Math.round(clientHeight * ratio);
    }
    this.originX += (clientWidth - this.width) / 2 || 0;
    this.originY += (clientHeight - this.height) / 2 || 0;
    this.width = clientWidth;
    this.height = clientHeight;
    this.ratio = ratio;
    if (this.isFitted) this.fit();
    this.drawNow(); // a canvas that has changed its size is empty
  }

  fit() {
    if (!this.x || !this.width) return;
    const range = (values) => {
      const sorted = Float64Array.from(values).sort();
      return [sorted[0], sorted[sorted.length - 1]];
    };
    const [left, right] = range(this.x);
    const [bottom, top] = range(this.y);
    this.scale = Math.min(
      (this.width - 2 * MARGIN_PX) / (right - left || 1),
      (this.height - 2 * MARGIN_PX) / (top - bottom || 1),
    );
    this.originX = this.width / 2 - (this.scale * (left + right)) / 2;
    this.originY = this.height / 2 + (this.scale * (bottom + top)) / 2;
    this.fitted = this.scale;
    this.isFitted = true;
    this.draw();
  }

  place(row) {
    return [this.originX + this.scale * this.x[row], this.originY - this.scale * this.y[row]];
  }

  zoom(factor, x = this.width / 2, y = this.height / 2) {
    const next = Math.min(Math.max(this.scale * factor, this.fitted * 0.5), this.fitted * 400);
    const applied = next / this.scale;
    this.originX = x - (x - this.originX) * applied;
    this.originY = y - (y - this.originY) * applied;
    this.scale = next;
    this.isFitted = false;
    this.draw();
  }

  /** Move the map so that a case is in view. */
  show(row) {
    if (row < 0 || !this.width) return;
    const [x, y] = this.place(row);
    if (x > 10 && y > 10 && x < this.width - 10 && y < this.height - 10) return;
    this.originX += this.width / 2 - x;
    this.originY += this.height / 2 - y;
    this.isFitted = false;
    this.draw();
  }

  /** The case within reach of a place in pixels, or -1. */
  nearest(px, py, reach = NEAR_PX) {
    let best = -1;
    let least = reach * reach;
    for (let row = 0; row < this.x.length; row += 1) {
      const dx = this.originX + this.scale * this.x[row] - px;
      const dy = this.originY - this.scale * this.y[row] - py;
      const distance = dx * dx + dy * dy;
      if (distance < least && (!this.found || this.found.has(row))) {
        least = distance;
        best = row;
      }
    }
    return best;
  }

  draw() {
    if (this.isWaiting) return;
    this.isWaiting = true;
    requestAnimationFrame(() => {
      this.isWaiting = false;
      this.drawNow();
    });
  }

  drawNow() {
    if (!this.x || !this.width) return;
    this.drawPoints();
    this.drawOverlay();
  }

  drawPoints() {
    const context = this.points.getContext("2d");
    context.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    context.clearRect(0, 0, this.width, this.height);
    const rows = this.inView();
    const isFound = (row) => !this.found || this.found.has(row);
    const [faint, clear] = [rows.filter((row) => !isFound(row)), this.found ? rows.filter(isFound) : rows];
    const isFast = rows.length > MOST_CIRCLES;
    context.globalAlpha = 0.13;
    this.drawInTurns(context, faint, isFast);
    context.globalAlpha = 0.82;
    this.drawInTurns(context, clear, isFast);
    context.globalAlpha = 1;
    if (this.pictureOf && rows.length <= MOST_PICTURES) this.drawPictures(context, rows);
    if (this.axes) this.drawAxes(context);
  }

  inView() {
    const rows = [];
    for (let row = 0; row < this.x.length; row += 1) {
      const [x, y] = this.place(row);
      if (x > -9 && y > -9 && x < this.width + 9 && y < this.height + 9) rows.push(row);
    }
    return rows;
  }

  drawInTurns(context, rows, isFast) {
    const radius = Math.min(5.5, Math.max(1.3, (60 / Math.sqrt(this.x.length)) * Math.sqrt(this.scale / this.fitted) * 1.6));
    const turns = Array.from({ length: TURNS * this.colours.length }, () => []);
    for (const row of rows) turns[(row % TURNS) * this.colours.length + this.group[row]].push(row);
    turns.forEach((some, turn) => {
      context.fillStyle = this.colours[turn % this.colours.length];
      if (isFast) this.drawSquares(context, some, radius);
      else this.drawCircles(context, some, radius);
    });
  }

  drawSquares(context, rows, radius) {
    for (const row of rows) {
      const [x, y] = this.place(row);
      context.fillRect(x - radius, y - radius, 2 * radius, 2 * radius);
    }
  }

  drawCircles(context, rows, radius) {
    context.beginPath();
    for (const row of rows) {
      const [x, y] = this.place(row);
      context.moveTo(x + radius, y);
      context.arc(x, y, radius, 0, 2 * Math.PI);
    }
    context.fill();
  }

  drawPictures(context, rows) {
    for (const row of rows) {
      const picture = this.picture(row);
      if (!picture.complete || !picture.naturalWidth) continue;
      const [x, y] = this.place(row);
      const size = PICTURE_PX / Math.max(picture.naturalWidth, picture.naturalHeight);
      const [width, height] = [picture.naturalWidth * size, picture.naturalHeight * size];
      context.drawImage(picture, x - width / 2, y - height / 2, width, height);
      context.strokeStyle = this.colours[this.group[row]];
      context.lineWidth = 2.5;
      context.strokeRect(x - width / 2, y - height / 2, width, height);
    }
  }

  drawAxes(context) {
    context.fillStyle = getComputedStyle(this.overlay).getPropertyValue("--muted");
    context.font = "12px system-ui, sans-serif";
    context.fillText(`${this.axes[0]} →`, MARGIN_PX, this.height - 8);
    context.save();
    context.translate(14, this.height - MARGIN_PX);
    context.rotate(-Math.PI / 2);
    context.fillText(`${this.axes[1]} →`, 0, 0);
    context.restore();
  }

  picture(row) {
    if (!this.pictures.has(row)) {
      const picture = new Image();
      picture.onload = () => this.draw();
      picture.src = this.pictureOf(row);
      this.pictures.set(row, picture);
    }
    return this.pictures.get(row);
  }

  drawOverlay() {
    if (!this.x || !this.width) return;
    const context = this.overlay.getContext("2d");
    context.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    context.clearRect(0, 0, this.width, this.height);
    const style = getComputedStyle(this.overlay);
    const ink = style.getPropertyValue("--ink");
    const accent = style.getPropertyValue("--c1");
    if (this.chosen >= 0) this.drawLines(context, ink);
    if (this.edited && this.chosen >= 0) this.drawPath(context, accent);
    if (this.second >= 0) this.ring(context, this.place(this.second), 9, ink, [4, 3]);
    if (this.chosen >= 0) this.ring(context, this.place(this.chosen), 9, ink);
    if (this.pointed >= 0 && this.pointed !== this.chosen) this.ring(context, this.place(this.pointed), 7, accent);
  }

  drawLines(context, colour) {
    context.strokeStyle = colour;
    context.lineWidth = 1;
    context.beginPath();
    for (const row of this.near) {
      context.moveTo(...this.place(this.chosen));
      context.lineTo(...this.place(row));
    }
    context.stroke();
  }

  drawPath(context, colour) {
    const [fromX, fromY] = this.place(this.chosen);
    const toX = this.originX + this.scale * this.edited[0];
    const toY = this.originY - this.scale * this.edited[1];
    context.strokeStyle = colour;
    context.fillStyle = colour;
    context.lineWidth = 2.5;
    context.beginPath();
    context.moveTo(fromX, fromY);
    context.lineTo(toX, toY);
    context.stroke();
    context.beginPath();
    context.arc(toX, toY, 5.5, 0, 2 * Math.PI);
    context.fill();
  }

  ring(context, [x, y], radius, colour, dash = []) {
    context.setLineDash(dash);
    context.lineWidth = 2.5;
    context.strokeStyle = colour;
    context.beginPath();
    context.arc(x, y, radius, 0, 2 * Math.PI);
    context.stroke();
    context.setLineDash([]);
  }

  point(row, x, y) {
    if (row !== this.pointed) {
      this.pointed = row;
      this.drawOverlay();
    }
    this.onPoint(row, x, y);
  }

  listen() {
    const canvas = this.overlay;
    canvas.addEventListener("wheel", (event) => {
      if (this.isInText && !event.ctrlKey && !event.metaKey) return;
      event.preventDefault();
      this.zoom(Math.exp(-event.deltaY * 0.0016), event.offsetX, event.offsetY);
    }, { passive: false });
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      this.drag = { x: event.offsetX, y: event.offsetY, moved: 0 };
    });
    canvas.addEventListener("pointermove", (event) => this.moved(event));
    canvas.addEventListener("pointerup", (event) => this.released(event));
    canvas.addEventListener("pointercancel", () => (this.drag = null));
    canvas.addEventListener("pointerleave", () => this.point(-1, 0, 0));
    canvas.addEventListener("blur", () => this.point(-1, 0, 0));
    canvas.addEventListener("keydown", (event) => this.key(event));
  }

  moved(event) {
    if (!this.x) return;
    if (this.drag) {
      const [dx, dy] = [event.offsetX - this.drag.x, event.offsetY - this.drag.y];
      this.drag = { x: event.offsetX, y: event.offsetY, moved: this.drag.moved + Math.abs(dx) + Math.abs(dy) };
      this.originX += dx;
      this.originY += dy;
      this.isFitted = false;
      this.draw();
      return;
    }
    this.point(this.nearest(event.offsetX, event.offsetY), event.offsetX, event.offsetY);
  }

  released(event) {
    const wasClick = this.drag && this.drag.moved < 5;
    this.drag = null;
    if (!wasClick || !this.x) return;
    const row = this.nearest(event.offsetX, event.offsetY, event.pointerType === "touch" ? TOUCH_PX : NEAR_PX);
    if (row >= 0) this.onOpen(row, event.shiftKey);
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.key in arrows) this.step(...arrows[event.key]);
    else if (event.key === "Enter" && this.pointed >= 0) this.onOpen(this.pointed, event.shiftKey);
    else if (event.key === "+" || event.key === "=") this.zoom(1.4);
    else if (event.key === "-") this.zoom(1 / 1.4);
    else if (event.key === "0") this.fit();
    else return;
    event.preventDefault();
  }

  /** Point at the nearest case in a direction, or open it. */
  step(dx, dy) {
    const start = this.pointed >= 0 && !this.isInText ? this.pointed : this.chosen;
    const [x, y] = start >= 0 ? this.place(start) : [this.width / 2, this.height / 2];
    let best = start >= 0 ? -1 : this.nearest(x, y, Infinity);
    let least = start >= 0 ? Infinity : 0;
    for (let row = 0; row < this.x.length; row += 1) {
      const [px, py] = this.place(row);
      const along = (px - x) * dx + (py - y) * dy;
      const across = Math.abs((px - x) * dy) + Math.abs((py - y) * dx);
      if (row === start || along <= 0.5 || across > along) continue;
      if (along + 2 * across < least) {
        least = along + 2 * across;
        best = row;
      }
    }
    if (best < 0) return;
    this.show(best);
    if (this.isInText) this.onOpen(best, false);
    else this.point(best, ...this.place(best));
  }
}
