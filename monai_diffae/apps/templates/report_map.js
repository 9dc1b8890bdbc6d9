// The map of z_sem in the report: what is beside the map, and what its controls do.
"use strict";
(() => {
  const NUM_LABELS_OF_TIP = 4;
  const NUM_LABELS = 8;
  const MOST_OPTIONS = 5000;

  const valuesOf = (label) => label.numbers || label.codes.map((code) => label.classes[code] ?? null);

  function format(value) {
    if (value === null) return "–";
    return typeof value === "number" ? value.toLocaleString("en", { maximumSignificantDigits: 4 }) : value;
  }

  function element(tag, values = {}, ...children) {
    const made = Object.assign(document.createElement(tag), values);
    made.append(...children);
    return made;
  }

  function start(root) {
    const data = JSON.parse(document.getElementById(`${root.dataset.map}-data`).textContent);
    const find = (selector) => root.querySelector(selector);
    const tip = find(".tip");
    const side = find(".side");
    const labels = new Map(Object.entries(data.labels).map(([name, label]) => [name, valuesOf(label)]));
    const names = [...labels.keys()];
    const dimmed = new Set(); // groups of the legend
    let colours = null;
    let pinned = -1;

    const map = new CaseMap(find(".points"), find(".overlay"), { onOpen: pin, onPoint: point, isInText: true });

    function thumbnail(i, text) {
      const src = data.thumbnails[data.ids[i]];
      if (src) return element("img", { className: "thumbnail", src, alt: text });
      return element("span", { className: "thumbnail missing", role: "img", ariaLabel: text });
    }

    function facts(i, most) {
      const rows = names.slice(0, most).flatMap((name) => [
        element("dt", { textContent: name }), element("dd", { textContent: format(labels.get(name)[i]) }),
      ]);
      return element("dl", {}, ...rows);
    }

    function point(i, x, y) {
      tip.hidden = i < 0;
      if (i < 0) return;
      tip.replaceChildren(thumbnail(i, data.ids[i]), element("strong", { textContent: data.ids[i] }), facts(i, NUM_LABELS_OF_TIP));
      const left = x + 16 + tip.offsetWidth > map.width ? x - 16 - tip.offsetWidth : x + 16;
      tip.style.left = `${Math.max(0, left)}px`;
      tip.style.top = `${Math.max(0, Math.min(y - 20, map.height - tip.offsetHeight))}px`;
    }

    function pin(i) {
      pinned = i;
      const near = data.neighbors[i] || [];
      map.setChosen(i);
      map.setNear(near);
      if (i < 0) {
        side.replaceChildren(element("p", { className: "muted", textContent: "No case is selected. Click a point, or press an arrow key in the map." }));
        return;
      }
      side.replaceChildren(element("h3", { textContent: data.ids[i] }), thumbnail(i, data.ids[i]), facts(i, NUM_LABELS));
      if (near.length) {
        const strip = element("div", { className: "strip-of-cases" }, ...near.map(neighbor));
        side.append(element("h4", { textContent: "Nearest neighbors" }), strip);
      }
    }

    function neighbor(i) {
      const value = names.length ? format(labels.get(colourBy.value)[i]) : "";
      const text = element("span", { className: "small", textContent: value });
      const name = `${data.ids[i]}: ${value}`;
      const button = element("button", { type: "button", title: name, ariaLabel: `Show ${name}` }, thumbnail(i, ""), text);
      button.style.borderBottom = `3px solid ${colours.colours[colours.group[i]]}`;
      button.addEventListener("click", () => pin(i));
      return button;
    }

    function colour() {
      dimmed.clear();
      colours = names.length ? coloured(labels.get(colourBy.value)) : { colours: [styled("--c0")], group: data.ids.map(() => 0), legend: [] };
      find(".map-legend").replaceChildren(...(colours.scale ? [scale()] : colours.legend.map(legendEntry)));
      map.setColours(colours);
      map.setFound(null);
    }

    function scale() {
      const bar = element("span", { className: "colour-bar" });
      bar.style.background = `linear-gradient(90deg,${colours.scale.stops.join(",")})`;
      return element("li", {}, `${colourBy.value}: ${colours.scale.low} `, bar, ` ${colours.scale.high}`);
    }

    function legendEntry([shade, text, count], group) {
      const dot = element("span", { className: "dot" });
      dot.style.background = shade;
      const button = element("button", { type: "button", className: "class", ariaPressed: "true" }, dot, `${text} (${count.toLocaleString("en")})`);
      button.addEventListener("click", () => {
        if (!dimmed.delete(group)) dimmed.add(group);
        button.ariaPressed = String(!dimmed.has(group));
        const isShown = (i) => !dimmed.has(colours.group[i]);
        map.setFound(dimmed.size ? new Set([...data.ids.keys()].filter(isShown)) : null);
      });
      return element("li", {}, button);
    }

    const colourBy = find(".colour-by");
    names.forEach((name) => colourBy.append(new Option(name, name)));
    colourBy.addEventListener("change", () => {
      colour();
      pin(pinned);
    });
    find(".zoom-in").addEventListener("click", () => map.zoom(1.5));
    find(".zoom-out").addEventListener("click", () => map.zoom(1 / 1.5));
    find(".reset").addEventListener("click", () => map.fit());
    find(".overlay").addEventListener("keydown", (event) => event.key === "Escape" && pin(-1));
    find(".find").addEventListener("change", (event) => {
      const i = data.ids.indexOf(event.target.value.trim());
      if (i >= 0) pin(i);
    });
    const options = document.getElementById(`${root.dataset.map}-ids`);
    data.ids.slice(0, MOST_OPTIONS).forEach((id) => options.append(new Option(id, id)));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", colour); // not for print: Chromium prints it empty
    map.setPlaces(data.x, data.y, data.axes);
    colour();
    pin(data.first ?? -1);
  }

  document.querySelectorAll("[data-map]").forEach(start);
})();
