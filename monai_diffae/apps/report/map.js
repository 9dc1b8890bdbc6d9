// The map of z_sem: draws the cases on a canvas, colours them by a label, shows the case under the pointer.
"use strict";
(() => {
  const COLOURS = ["--c0", "--c1", "--c2", "--c4", "--c3", "--c5", "--c6", "--c7"];
  // cividis, which people with any colour vision read alike
  const RAMP = [[0, 34, 78], [48, 71, 107], [87, 93, 109], [125, 124, 120], [165, 155, 115], [207, 189, 98], [254, 232, 56]];
  const RAMP_DARK = [[53, 91, 158], [82, 105, 140], [112, 124, 134], [143, 144, 130], [179, 169, 119], [217, 199, 99], [254, 232, 56]];
  const MARGIN = 18;
  const TURNS = 12;
  const LEVELS = 48;

  function unpack(packed) {
    const bytes = Uint8Array.from(atob(packed.values), (letter) => letter.charCodeAt(0));
    const whole = new DataView(bytes.buffer);
    const count = bytes.length / 4;
    const places = new Float32Array(2 * count);
    for (let i = 0; i < 2 * count; i += 1) {
      places[i] = whole.getUint16(2 * i, true) / 65535;
    }
    return places; // in the unit square
  }

  function start(root) {
    const data = JSON.parse(document.getElementById(`${root.dataset.map}-data`).textContent);
    const canvas = root.querySelector("canvas");
    const context = canvas.getContext("2d");
    const tip = root.querySelector(".tip");
    const side = root.querySelector(".side");
    const legend = root.querySelector(".map-legend");
    const colourBy = root.querySelector(".colour-by");
    const projectionSelect = root.querySelector(".projection");
    const projections = data.projections.map((each) => unpack(each.places));
    const count = data.ids.length;
    const names = Object.keys(data.labels);
    const state = { projection: 0, label: names[0], zoom: 1, x: 0.5, y: 0.5, hover: -1, pinned: -1, dimmed: new Set() };
    const colours = new Uint16Array(count); // places in the palette
    let palette = [];
    let width = 0;
    let height = 0;
    let cells = null; // cases by squares of 16 pixels, found when the pointer needs them
    let isWaiting = false;

    const variable = (name) => getComputedStyle(root).getPropertyValue(name).trim();
    const isDark = () => matchMedia("(prefers-color-scheme: dark)").matches && !matchMedia("print").matches;
    const places = () => projections[state.projection];
    const span = () => Math.min(width, height) - 2 * MARGIN;

    function toScreen(i) {
      const scale = state.zoom;
      const stretched = width > height ? [width - 2 * MARGIN, height - 2 * MARGIN] : [span(), span()];
      return [
        width / 2 + (places()[2 * i] - state.x) * stretched[0] * scale,
        height / 2 - (places()[2 * i + 1] - state.y) * stretched[1] * scale,
      ];
    }

    function ramp(share) {
      const stops = isDark() ? RAMP_DARK : RAMP;
      const place = share * (stops.length - 1);
      const low = Math.min(Math.floor(place), stops.length - 2);
      const mix = stops[low].map((value, k) => Math.round(value + (place - low) * (stops[low + 1][k] - value)));
      return `rgb(${mix.join(",")})`;
    }

    function limits(numbers) {
      const sorted = numbers.filter((value) => value !== null).sort((a, b) => a - b);
      return [sorted[Math.floor(0.02 * (sorted.length - 1))], sorted[Math.ceil(0.98 * (sorted.length - 1))]];
    }

    function colour() {
      const label = data.labels[state.label];
      const muted = variable("--c7");
      legend.replaceChildren();
      if (!label) {
        palette = [variable("--c0")];
        colours.fill(0);
        return;
      }
      if (label.numbers) {
        const [low, high] = limits(label.numbers);
        palette = [...Array.from({ length: LEVELS }, (_, k) => ramp(k / (LEVELS - 1))), muted];
        for (let i = 0; i < count; i += 1) {
          const share = Math.min(Math.max((label.numbers[i] - low) / (high - low || 1), 0), 1);
          colours[i] = label.numbers[i] === null ? LEVELS : Math.round(share * (LEVELS - 1));
        }
        const item = document.createElement("li");
        const bar = document.createElement("span");
        bar.className = "colour-bar";
        bar.style.background = `linear-gradient(90deg,${palette.slice(0, LEVELS).join(",")})`;
        item.append(`${state.label}: ${format(low)} `, bar, ` ${format(high)}`);
        legend.append(item);
        return;
      }
      palette = [...label.classes.map((_, k) => variable(COLOURS[k % COLOURS.length])), muted];
      for (let i = 0; i < count; i += 1) {
        colours[i] = label.codes[i] < 0 ? label.classes.length : label.codes[i];
      }
      label.classes.forEach((name, k) => {
        const item = document.createElement("li");
        const button = document.createElement("button");
        const number = label.codes.reduce((sum, code) => sum + (code === k), 0);
        button.type = "button";
        button.className = "class";
        button.setAttribute("aria-pressed", String(!state.dimmed.has(k)));
        button.innerHTML = '<span class="dot"></span>';
        button.firstChild.style.background = palette[k];
        button.append(`${name} (${number.toLocaleString("en")})`);
        button.addEventListener("click", () => {
          if (!state.dimmed.delete(k)) {
            state.dimmed.add(k);
          }
          button.setAttribute("aria-pressed", String(!state.dimmed.has(k)));
          draw();
        });
        item.append(button);
        legend.append(item);
      });
    }

    function format(value) {
      return value === null || value === undefined ? "–" : Number(value).toLocaleString("en", { maximumSignificantDigits: 4 });
    }

    function draw() {
      if (!isWaiting) {
        isWaiting = true;
        requestAnimationFrame(paint);
      }
    }

    function paint() {
      isWaiting = false;
      context.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
      context.clearRect(0, 0, width, height);
      const radius = Math.max(1.6, Math.min(5, 60 / Math.sqrt(count) * Math.sqrt(state.zoom) + 1));
      cells = null;
      const turns = Array.from({ length: TURNS * palette.length }, () => []);
      const dimmed = [];
      for (let i = 0; i < count; i += 1) {
        const [x, y] = toScreen(i);
        if (x > -radius && y > -radius && x < width + radius && y < height + radius) {
          // in turns, so that no class lies on top of all others
          const points = isDimmed(i) ? dimmed : turns[(i % TURNS) * palette.length + colours[i]];
          points.push(x, y);
        }
      }
      context.globalAlpha = 0.5;
      dots(dimmed, variable("--line"), radius);
      context.globalAlpha = 0.8;
      turns.forEach((points, k) => dots(points, palette[k % palette.length], radius));
      context.globalAlpha = 1;
      context.fillStyle = variable("--muted");
      context.font = "12px system-ui, sans-serif";
      const axes = data.projections[state.projection].axes;
      context.fillText(`${axes[0]} →`, MARGIN, height - 6);
      context.save();
      context.translate(12, height - MARGIN - 6);
      context.rotate(-Math.PI / 2);
      context.fillText(`${axes[1]} →`, 0, 0);
      context.restore();
      if (state.pinned >= 0) {
        (data.neighbors[state.pinned] || []).forEach((i) => link(state.pinned, i));
        ring(state.pinned, radius + 4);
      }
      if (state.hover >= 0) {
        ring(state.hover, radius + 2.5);
      }
    }

    function isDimmed(i) {
      const label = data.labels[state.label];
      return Boolean(label && label.codes) && state.dimmed.has(label.codes[i]);
    }

    function dots(points, colour, radius) {
      context.fillStyle = colour;
      if (count > 8000 && radius < 3) {
        for (let k = 0; k < points.length; k += 2) {
          context.fillRect(points[k] - radius, points[k + 1] - radius, 2 * radius, 2 * radius);
        }
        return;
      }
      context.beginPath();
      for (let k = 0; k < points.length; k += 2) {
        context.moveTo(points[k] + radius, points[k + 1]);
        context.arc(points[k], points[k + 1], radius, 0, 7);
      }
      context.fill();
    }

    function findCells() {
      cells = new Map();
      for (let i = 0; i < count; i += 1) {
        const [x, y] = toScreen(i);
        if (!isDimmed(i) && x > 0 && y > 0 && x < width && y < height) {
          const cell = (x >> 4) * 4096 + (y >> 4);
          if (!cells.has(cell)) {
            cells.set(cell, []);
          }
          cells.get(cell).push(i, x, y);
        }
      }
    }

    function ring(i, radius) {
      const [x, y] = toScreen(i);
      context.strokeStyle = variable("--ink");
      context.lineWidth = 2;
      context.beginPath();
      context.arc(x, y, radius, 0, 7);
      context.stroke();
    }

    function link(i, j) {
      context.strokeStyle = variable("--ink");
      context.lineWidth = 1;
      context.beginPath();
      context.moveTo(...toScreen(i));
      context.lineTo(...toScreen(j));
      context.stroke();
    }

    function nearest(x, y, reach) {
      if (cells === null) {
        findCells();
      }
      let best = -1;
      let least = reach * reach;
      const steps = Math.ceil(reach / 16);
      for (let column = (x >> 4) - steps; column <= (x >> 4) + steps; column += 1) {
        for (let row = (y >> 4) - steps; row <= (y >> 4) + steps; row += 1) {
          const cell = cells.get(column * 4096 + row) || [];
          for (let k = 0; k < cell.length; k += 3) {
            const distance = (cell[k + 1] - x) ** 2 + (cell[k + 2] - y) ** 2;
            if (distance < least) {
              [best, least] = [cell[k], distance];
            }
          }
        }
      }
      return best;
    }

    function thumbnail(i, text) {
      const picture = document.createElement("span");
      const place = data.thumbnails.places[data.ids[i]];
      picture.className = "sprite";
      picture.setAttribute("role", "img");
      picture.setAttribute("aria-label", text);
      if (place === undefined) {
        picture.classList.add("missing");
        return picture;
      }
      const atlas = Math.floor(place / data.thumbnails.in_atlas);
      const within = place % data.thumbnails.in_atlas;
      const columns = data.thumbnails.columns;
      const rows = data.thumbnails.rows[atlas];
      picture.style.backgroundImage = `var(--${data.thumbnails.prefix}-${atlas})`;
      picture.style.backgroundSize = `${100 * columns}% ${100 * rows}%`;
      const across = (100 * (within % columns)) / Math.max(columns - 1, 1);
      const down = (100 * Math.floor(within / columns)) / Math.max(rows - 1, 1);
      picture.style.backgroundPosition = `${across}% ${down}%`;
      return picture;
    }

    function valueOf(name, i) {
      const label = data.labels[name];
      return label.numbers ? format(label.numbers[i]) : label.classes[label.codes[i]] ?? "–";
    }

    function list(i, most) {
      const facts = document.createElement("dl");
      names.slice(0, most).forEach((name) => {
        const key = document.createElement("dt");
        const value = document.createElement("dd");
        key.textContent = name;
        value.textContent = valueOf(name, i);
        facts.append(key, value);
      });
      return facts;
    }

    function hover(i, x, y) {
      if (i === state.hover) {
        return;
      }
      state.hover = i;
      tip.hidden = i < 0;
      canvas.style.cursor = i < 0 ? "grab" : "pointer";
      if (i >= 0) {
        const title = document.createElement("strong");
        title.textContent = data.ids[i];
        tip.replaceChildren(thumbnail(i, data.ids[i]), title, list(i, 4));
        const left = x + 16 + tip.offsetWidth > width ? x - 16 - tip.offsetWidth : x + 16;
        tip.style.left = `${Math.max(0, left)}px`;
        tip.style.top = `${Math.max(0, Math.min(y - 20, height - tip.offsetHeight))}px`;
      }
      draw();
    }

    function pin(i) {
      state.pinned = i;
      side.replaceChildren();
      if (i < 0) {
        side.append(hint());
        draw();
        return;
      }
      const title = document.createElement("h3");
      title.textContent = data.ids[i];
      side.append(title, thumbnail(i, data.ids[i]), list(i, 8));
      const near = data.neighbors[i] || [];
      if (near.length) {
        const heading = document.createElement("h4");
        heading.textContent = "Nearest cases of other patients";
        const strip = document.createElement("div");
        strip.className = "strip";
        near.forEach((j) => {
          const button = document.createElement("button");
          const value = state.label === undefined ? "" : valueOf(state.label, j);
          button.type = "button";
          button.style.borderBottom = `3px solid ${palette[colours[j]]}`;
          button.title = `${data.ids[j]}: ${value}`;
          button.setAttribute("aria-label", `Show ${data.ids[j]}, ${state.label ?? ""} ${value}`);
          const text = document.createElement("span");
          text.className = "small";
          text.textContent = value;
          button.append(thumbnail(j, ""), text);
          button.addEventListener("click", () => pin(j));
          strip.append(button);
        });
        side.append(heading, strip);
      }
      draw();
    }

    function hint() {
      const text = document.createElement("p");
      text.className = "muted";
      text.textContent = "No case is selected. Click a point, or press an arrow key in the map.";
      return text;
    }

    function move(dx, dy) {
      const from = state.pinned < 0 ? middle() : state.pinned;
      if (state.pinned < 0) {
        pin(from);
        return;
      }
      const [x, y] = toScreen(from);
      let best = -1;
      let least = Infinity;
      for (let i = 0; i < count; i += 1) {
        const [u, v] = toScreen(i);
        const along = (u - x) * dx + (v - y) * dy;
        const across = Math.abs((u - x) * dy) + Math.abs((v - y) * dx);
        if (i !== from && along > 1 && along + 2 * across < least && across <= along) {
          [best, least] = [i, along + 2 * across];
        }
      }
      if (best >= 0) {
        pin(best);
        show(best);
      }
    }

    function middle() {
      let best = 0;
      let least = Infinity;
      for (let i = 0; i < count; i += 1) {
        const [x, y] = toScreen(i);
        const distance = (x - width / 2) ** 2 + (y - height / 2) ** 2;
        if (distance < least) {
          [best, least] = [i, distance];
        }
      }
      return best;
    }

    function show(i) {
      const [x, y] = toScreen(i);
      if (x < MARGIN || y < MARGIN || x > width - MARGIN || y > height - MARGIN) {
        [state.x, state.y] = [places()[2 * i], places()[2 * i + 1]];
        draw();
      }
    }

    function zoom(factor, x = width / 2, y = height / 2) {
      const before = state.zoom;
      state.zoom = Math.min(Math.max(state.zoom * factor, 1), 60);
      const stretched = width > height ? [width - 2 * MARGIN, height - 2 * MARGIN] : [span(), span()];
      state.x += (x - width / 2) / stretched[0] * (1 / before - 1 / state.zoom);
      state.y -= (y - height / 2) / stretched[1] * (1 / before - 1 / state.zoom);
      if (state.zoom === 1) {
        [state.x, state.y] = [0.5, 0.5];
      }
      draw();
    }

    function resize() {
      const box = canvas.parentElement.getBoundingClientRect();
      if (!box.width) {
        return;
      }
      width = Math.round(box.width);
      height = Math.round(Math.min(Math.max(320, 0.62 * box.width), 560));
      canvas.width = width * devicePixelRatio;
      canvas.height = height * devicePixelRatio;
      canvas.style.height = `${height}px`;
      paint();
    }

    let drag = null;
    canvas.addEventListener("pointerdown", (event) => {
      drag = { x: event.offsetX, y: event.offsetY, isMoved: false };
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (drag && event.buttons) {
        const stretched = width > height ? [width - 2 * MARGIN, height - 2 * MARGIN] : [span(), span()];
        const [dx, dy] = [event.offsetX - drag.x, event.offsetY - drag.y];
        drag.isMoved = drag.isMoved || Math.abs(dx) + Math.abs(dy) > 4;
        if (drag.isMoved) {
          state.x -= dx / stretched[0] / state.zoom;
          state.y += dy / stretched[1] / state.zoom;
          [drag.x, drag.y] = [event.offsetX, event.offsetY];
          hover(-1);
          draw();
        }
        return;
      }
      hover(nearest(event.offsetX, event.offsetY, 14), event.offsetX, event.offsetY);
    });
    canvas.addEventListener("pointerup", (event) => {
      if (drag && !drag.isMoved) {
        pin(nearest(event.offsetX, event.offsetY, event.pointerType === "touch" ? 24 : 14));
      }
      drag = null;
    });
    canvas.addEventListener("pointerleave", () => hover(-1));
    canvas.addEventListener("wheel", (event) => {
      if (event.ctrlKey || event.metaKey) {
        event.preventDefault();
        zoom(Math.exp(-event.deltaY / 200), event.offsetX, event.offsetY);
      }
    }, { passive: false });
    const keys = {
      ArrowLeft: () => move(-1, 0), ArrowRight: () => move(1, 0), ArrowUp: () => move(0, -1), ArrowDown: () => move(0, 1),
      "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), 0: () => zoom(0), Escape: () => pin(-1),
    };
    canvas.addEventListener("keydown", (event) => {
      if (keys[event.key] && !event.ctrlKey && !event.metaKey) {
        event.preventDefault();
        keys[event.key]();
      }
    });
    root.querySelector(".zoom-in").addEventListener("click", () => zoom(1.5));
    root.querySelector(".zoom-out").addEventListener("click", () => zoom(1 / 1.5));
    root.querySelector(".reset").addEventListener("click", () => zoom(0));
    root.querySelector(".find").addEventListener("change", (event) => {
      const i = data.ids.indexOf(event.target.value.trim());
      if (i >= 0) {
        pin(i);
        show(i);
      }
    });
    const options = document.getElementById(`${root.dataset.map}-ids`);
    data.ids.slice(0, 5000).forEach((id) => options.append(new Option(id, id)));
    names.forEach((name) => colourBy.append(new Option(name, name)));
    data.projections.forEach((each, k) => projectionSelect.append(new Option(each.name, k)));
    colourBy.addEventListener("change", () => {
      state.label = colourBy.value;
      state.dimmed.clear();
      colour();
      draw();
    });
    projectionSelect.addEventListener("change", () => {
      state.projection = Number(projectionSelect.value);
      zoom(0);
    });
    const again = () => { colour(); paint(); };
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
    matchMedia("print").addEventListener("change", again);
    new ResizeObserver(resize).observe(canvas.parentElement);
    colour();
    resize();
    pin(data.first ?? -1);
  }

  document.querySelectorAll("[data-map]").forEach(start);
})();
