// The map of cells. Decodes the data of scrna/report/cell_map.py, paints it on a canvas at once, then draws it
// with plotly's scattergl, which can zoom. Without WebGL the canvas stays. All cells are points of one
// trace in random order, so that no group hides another; cells without a group or value are in a trace
// below. data-state of the section is waiting, painted, drawn, no-webgl or failed.
(() => {
  "use strict";
  const section = document.getElementById("cell-map");
  const part = (name) => section.querySelector(".cm-" + name);
  const [plot, tip, legend, message] = ["plot", "tip", "legend", "message"].map(part);
  const select = { embedding: part("embedding"), colour: part("colour") };
  const search = part("gene");
  const embedded = (id) => document.getElementById("cell-map-" + id).textContent;
  const data = JSON.parse(embedded("data"));
  const { n } = data;
  const hidden = new Set(); // codes of the groups that are not shown
  let order; // the cells as they are drawn, one after another
  let drawn = [[], []]; // the cell of each point of the two traces
  let shown; // { embedding, colour } as last asked for
  let isInteractive = false; // whether plotly draws, or the canvas

  // ---------------------------------------------------------------- decoding

  async function unpack(text) {
    const bytes = Uint8Array.fromBase64 ? Uint8Array.fromBase64(text)
      : Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).arrayBuffer();
  }

  // the codes of an array, unpacked when first asked for
  async function codes(packed) {
    if (!packed.codes) {
      const buffer = await unpack(packed.data);
      packed.codes = packed.type === "uint8" ? new Uint8Array(buffer) : new Uint16Array(buffer);
      packed.none = packed.type === "uint8" ? 255 : 65535;
      packed.data = null;
    }
    return packed.codes;
  }

  const valueOf = (packed, cell) =>
    packed.codes[cell] === packed.none ? NaN : packed.low + packed.step * packed.codes[cell];

  // a shuffle that is the same each time (mulberry32)
  function shuffled(count) {
    const places = Uint32Array.from({ length: count }, (_, i) => i);
    let state = 1;
    for (let i = count - 1; i > 0; i--) {
      state = (state + 0x6d2b79f5) | 0;
      let t = Math.imul(state ^ (state >>> 15), 1 | state);
      t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
      const j = Math.floor((((t ^ (t >>> 14)) >>> 0) / 4294967296) * (i + 1));
      [places[i], places[j]] = [places[j], places[i]];
    }
    return places;
  }

  // ---------------------------------------------------------------- what is coloured

  function colourOf(key) {
    const [kind, place] = key.split(":");
    const found = (data[kind] || [])[Number(place)];
    return { kind: found ? kind : "plain", ...(found && { packed: found }) };
  }

  const size = Math.max(2, Math.min(7, 500 / Math.sqrt(n))); // of a point, in pixels

  function marker(kind, packed, cells) {
    if (kind === "plain") return { size, color: data.plain };
    if (kind === "groups") {
      // a scale of as many steps as there are groups: numbers are drawn faster than named colours
      const k = packed.names.length;
      const steps = packed.colours.flatMap((c, i) => [[i / k, c], [(i + 1) / k, c]]);
      const color = Float32Array.from(cells, (cell) => packed.codes[cell]);
      return { size, color, colorscale: steps, cmin: -0.5, cmax: k - 0.5 };
    }
    const color = Float32Array.from(cells, (cell) => valueOf(packed, cell));
    const scale = data.scale.map((c, i) => [i / (data.scale.length - 1), c]);
    const [cmin, cmax] = packed.span;
    return { size, color, colorscale: scale, cmin, cmax };
  }

  function trace(xy, cells, marks) {
    return {
      type: "scattergl", mode: "markers", hoverinfo: "none", marker: marks, showlegend: false,
      x: Float32Array.from(cells, (cell) => valueOf(xy.x, cell)),
      y: Float32Array.from(cells, (cell) => valueOf(xy.y, cell)),
    };
  }

  async function draw(asked) {
    const isNewView = !plot.layout || shown.embedding !== asked.embedding;
    const isNewColour = !shown || shown.colour !== asked.colour;
    if (isNewColour) hidden.clear();
    shown = asked;
    const xy = data.embeddings[Number(asked.embedding)];
    const { kind, packed } = colourOf(asked.colour);
    await Promise.all([codes(xy.x), codes(xy.y), packed && codes(packed)]);
    if (shown !== asked) return; // the selection has changed meanwhile
    const isMissing = (cell) => packed !== undefined && packed.codes[cell] === packed.none;
    const at = (cell) => xy.x.codes[cell] !== xy.x.none && xy.y.codes[cell] !== xy.y.none;
    const below = order.filter((cell) => at(cell) && isMissing(cell) && !hidden.has("missing"));
    const above = order.filter(
      (cell) => at(cell) && !isMissing(cell) && !(kind === "groups" && hidden.has(packed.codes[cell])),
    );
    // expression is mostly zero: the highest lie on top
    if (kind === "genes") above.sort((a, b) => packed.codes[a] - packed.codes[b]);
    drawn = [below, above];
    if (isInteractive) {
      const grey = { ...marker("plain"), color: data.missing };
      const traces = [trace(xy, below, grey), trace(xy, above, marker(kind, packed, above))];
      await window.Plotly.react(plot, traces, layout(xy, isNewView), settings());
    } else paint(xy, kind, packed);
    if (isNewColour) writeLegend(kind, packed);
    for (const button of legend.querySelectorAll("[data-code]")) {
      button.setAttribute("aria-pressed", String(!hidden.has(codeOf(button))));
    }
    const hiding = n - below.length - above.length;
    part("note").textContent = data.note + (hiding ? `; ${hiding.toLocaleString("en")} of them are hidden` : "");
    section.dataset.state = isInteractive ? "drawn" : "painted";
    performance.mark("cell-map-" + section.dataset.state);
  }

  // ---------------------------------------------------------------- the canvas

  const rgb = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));

  // the colours that a cell may have, and which of them it has
  function colouring(kind, packed) {
    if (kind === "plain") return [[rgb(data.plain)], () => 0];
    if (kind === "groups") return [packed.colours.map(rgb), (cell) => packed.codes[cell]];
    const [low, high] = packed.span;
    const last = data.scale.length - 1;
    const colours = Array.from({ length: 256 }, (_, i) => {
      const place = (i / 255) * last;
      const from = rgb(data.scale[Math.floor(place)]);
      const to = rgb(data.scale[Math.ceil(place)]);
      return from.map((value, c) => Math.round(value + (to[c] - value) * (place % 1)));
    });
    const of = (cell) => Math.round((255 * (valueOf(packed, cell) - low)) / (high - low));
    return [colours, (cell) => Math.max(0, Math.min(255, of(cell)))];
  }

  function paint(xy, kind, packed) {
    const dots = window.devicePixelRatio || 1;
    const canvas = element("canvas", { width: plot.clientWidth * dots, height: plot.clientHeight * dots });
    const { width, height } = canvas;
    const context = canvas.getContext("2d");
    const image = context.createImageData(width, height);
    const pixels = new Uint32Array(image.data.buffer);
    const radius = (size * dots) / 2;
    const reach = Math.floor(radius);
    const disc = []; // the pixels of a point
    for (let dy = -reach; dy <= reach; dy++) {
      for (let dx = -reach; dx <= reach; dx++) if (dx * dx + dy * dy <= radius * radius) disc.push([dx, dy]);
    }
    const edge = MARGIN * dots;
    const along = ({ low, high, step }, length) => {
      const [from, to] = range({ low, high });
      const scale = (length - 2 * edge) / (to - from);
      return [edge + (low - from) * scale, step * scale];
    };
    const [x0, dx] = along(xy.x, width);
    const [y0, dy] = along(xy.y, height);
    const put = (cells, colours, of) => {
      const inks = Uint32Array.from(colours, ([r, g, b]) => (255 << 24) | (b << 16) | (g << 8) | r);
      for (const cell of cells) {
        const x = Math.round(x0 + dx * xy.x.codes[cell]);
        const y = Math.round(height - y0 - dy * xy.y.codes[cell]);
        const ink = inks[of(cell)];
        for (const [i, j] of disc) pixels[(y + j) * width + x + i] = ink;
      }
    };
    put(drawn[0], [rgb(data.missing)], () => 0);
    put(drawn[1], ...colouring(kind, packed));
    context.putImageData(image, 0, 0);
    plot.replaceChildren(canvas);
  }

  // ---------------------------------------------------------------- the plot

  const MARGIN = 8; // between the border and the axes, in pixels

  const settings = () => ({
    modeBarButtons: [["zoomIn2d", "zoomOut2d",
      { name: "seeAll", title: "See all", icon: window.Plotly.Icons.home, click: seeAll }, "toImage"]],
    responsive: true, scrollZoom: true, displaylogo: false, displayModeBar: true, plotlyServerURL: "",
    // plotly would go back to the first embedding's axes
    doubleClick: false, // codespell:ignore
    toImageButtonOptions: { filename: "cells", scale: 2 },
  });

  const range = ({ low, high }) => {
    if (low === null) return [0, 1];
    const room = (high - low || 1) * 0.03;
    return [low - room, high + room];
  };

  function seeAll() {
    const { x, y } = data.embeddings[Number(shown.embedding)];
    window.Plotly.relayout(plot, { "xaxis.range": range(x), "yaxis.range": range(y) });
  }

  function layout(xy, isNewView) {
    const axis = (packed, place) => ({
      title: { text: "" }, showgrid: false, zeroline: false, showticklabels: false, ticks: "",
      range: isNewView ? range(packed) : plot.layout[place].range.slice(),
    });
    return {
      xaxis: axis(xy.x, "xaxis"), yaxis: axis(xy.y, "yaxis"), margin: { l: MARGIN, r: MARGIN, t: MARGIN, b: MARGIN },
      dragmode: "pan", hovermode: "closest", showlegend: false, uirevision: shown.embedding,
      modebar: { orientation: "v" }, hoverdistance: 12,
    };
  }

  function showTip(event) {
    const point = event.points[0];
    const cell = drawn[point.curveNumber][point.pointNumber];
    const ofGroups = data.groups.filter((g) => g.codes).map((g) =>
      `${g.name}: ${g.codes[cell] === g.none ? "missing" : g.names[g.codes[cell]]}`);
    const { kind, packed } = colourOf(shown.colour);
    if (kind === "values" || kind === "genes") {
      const value = valueOf(packed, cell);
      ofGroups.push(`${packed.name}: ${Number.isNaN(value) ? "missing" : number(value)}`);
    }
    tip.textContent = ofGroups.join("\n");
    tip.hidden = ofGroups.length === 0;
    const box = section.getBoundingClientRect();
    const { clientX = 0, clientY = 0 } = event.event || {};
    const left = Math.min(clientX - box.left + 12, box.width - tip.offsetWidth - 4);
    tip.style.left = `${Math.max(0, left)}px`;
    tip.style.top = `${clientY - box.top + 12}px`;
  }

  // A wheel over the map scrolls the page until the map has been clicked.
  function guardScrolling() {
    let isActive = false;
    document.addEventListener("pointerdown", (event) => { isActive = plot.contains(event.target); });
    const guard = (event) => { if (!isActive && !event.ctrlKey) event.stopImmediatePropagation(); };
    plot.addEventListener("wheel", guard, { capture: true });
  }

  // Two fingers zoom about the point between them; plotly itself knows one finger.
  function zoomByPinch() {
    let start = null;
    const middle = ([a, b]) => ({
      x: (a.clientX + b.clientX) / 2, y: (a.clientY + b.clientY) / 2,
      apart: Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY),
    });
    const onTouch = (event) => {
      if (event.touches.length !== 2) { start = null; return; }
      event.preventDefault();
      event.stopImmediatePropagation();
      const { xaxis, yaxis } = plot._fullLayout;
      const fingers = middle(event.touches);
      if (!start) {
        const box = plot.getBoundingClientRect();
        start = {
          ...fingers, xs: xaxis.range.slice(), ys: yaxis.range.slice(),
          u: (fingers.x - box.left - xaxis._offset) / xaxis._length,
          v: 1 - (fingers.y - box.top - yaxis._offset) / yaxis._length,
        };
        return;
      }
      const factor = start.apart / Math.max(fingers.apart, 1);
      const zoomed = ([low, high], at, moved) => {
        const size = (high - low) * factor;
        const fixed = low + (high - low) * at;
        return [fixed - size * (at + moved), fixed + size * (1 - at - moved)];
      };
      window.Plotly.relayout(plot, {
        "xaxis.range": zoomed(start.xs, start.u, (fingers.x - start.x) / xaxis._length),
        "yaxis.range": zoomed(start.ys, start.v, (start.y - fingers.y) / yaxis._length),
      });
    };
    for (const kind of ["touchstart", "touchmove", "touchend", "touchcancel"]) {
      plot.addEventListener(kind, onTouch, { capture: true, passive: false });
    }
  }

  // ---------------------------------------------------------------- legend

  const number = (value) => Number(value.toPrecision(3)).toLocaleString("en", { maximumSignificantDigits: 3 });

  function element(tag, properties, ...children) {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  }

  function swatch(colour) {
    const made = document.createElement("i");
    made.style.background = colour;
    return made;
  }

  const codeOf = ({ dataset: { code } }) => (code === "missing" ? code : Number(code));

  function writeLegend(kind, packed) {
    legend.replaceChildren();
    if (kind === "plain") return;
    const missing = packed.codes.reduce((sum, code) => sum + (code === packed.none), 0);
    if (kind === "groups") {
      const present = packed.names.map((name, code) => code).filter((code) => packed.counts[code]);
      const all = missing ? [...present, "missing"] : present;
      const hide = (codesHidden) => { hidden.clear(); codesHidden.forEach((code) => hidden.add(code)); again(); };
      legend.append(
        element("button", { type: "button", className: "cm-all", textContent: "show all", onclick: () => hide([]) }),
        element("button", { type: "button", className: "cm-all", textContent: "hide all", onclick: () => hide(all) }),
      );
      for (const code of all) {
        const [name, colour, count] = code === "missing" ? ["missing", data.missing, missing]
          : [packed.names[code], packed.colours[code], packed.counts[code]];
        const button = element("button", { type: "button" },
          swatch(colour), name, element("small", { textContent: count.toLocaleString("en") }));
        button.dataset.code = code;
        button.onclick = (event) => {
          if (event.detail > 1) { hide(all.filter((other) => other !== code)); return; }
          if (!hidden.delete(code)) hidden.add(code);
          again();
        };
        legend.append(button);
      }
      return;
    }
    if (packed.low !== null) {
      const bar = element("span", { className: "cm-bar" });
      bar.style.background = `linear-gradient(to right, ${data.scale.join(",")})`;
      const [low, high] = packed.span;
      const [least, most] = [(packed.low < low ? "≤ " : "") + number(low), (packed.high > high ? "≥ " : "") + number(high)];
      legend.append(element("span", {}, packed.name), element("span", {}, least), bar, element("span", {}, most));
    }
    if (missing) legend.append(element("span", {}, swatch(data.missing), `missing ${missing.toLocaleString("en")}`));
  }

  // ---------------------------------------------------------------- controls

  let standing = ""; // a message that stays
  const say = (text) => {
    message.textContent = text || standing;
    message.hidden = !message.textContent;
  };
  const fail = (error) => {
    section.dataset.state = "failed";
    say(`The map of cells could not be drawn: ${error.message}`);
  };
  const again = () => {
    if (!order) return undefined;
    const asked = { embedding: select.embedding.value, colour: select.colour.value };
    return draw(asked).catch(fail);
  };

  function fill() {
    data.embeddings.forEach(({ name }, i) => select.embedding.add(new Option(name, String(i))));
    for (const [kind, label] of [["groups", "Groups"], ["values", "Values"], ["genes", "Genes"]]) {
      if (!data[kind].length) continue;
      const options = data[kind].map(({ name }, i) => new Option(name, `${kind}:${i}`));
      select.colour.append(element("optgroup", { label }, ...options));
    }
    if (!select.colour.options.length) select.colour.add(new Option("none", "plain"));
    document.getElementById("cell-map-genes").append(...data.genes.map(({ name }) => new Option(name, name)));
    part("search").hidden = data.genes.length === 0;
  }

  function findGene() {
    const wanted = search.value.trim().toLowerCase();
    if (!wanted) { say(""); return; }
    const place = data.genes.findIndex(({ name }) => name.toLowerCase() === wanted);
    if (place < 0) {
      say(`${search.value.trim()} is not among the ${data.genes.length.toLocaleString("en")} genes of this page.`);
      return;
    }
    say("");
    select.colour.value = `genes:${place}`;
    again();
  }

  function hasWebGL() {
    const context = document.createElement("canvas").getContext("webgl");
    const lose = context && context.getExtension("WEBGL_lose_context");
    if (lose) lose.loseContext();
    return Boolean(context);
  }

  // when the page has been painted and the browser is idle
  const afterPaint = () => new Promise((done) => {
    const idle = window.requestIdleCallback || ((f) => setTimeout(f, 50));
    requestAnimationFrame(() => requestAnimationFrame(() => idle(done, { timeout: 500 })));
  });

  async function start() {
    if (typeof DecompressionStream === "undefined") throw new Error("the browser is too old");
    order = shuffled(n);
    await again();
    if (!hasWebGL()) {
      section.dataset.state = "no-webgl";
      part("help").hidden = true;
      standing = "This browser has no WebGL: the map can be coloured, but not moved or zoomed.";
      say("");
      return;
    }
    await afterPaint();
    const library = await new Response(await unpack(embedded("plotly"))).text();
    document.head.append(element("script", { textContent: library }));
    await afterPaint();
    const canvas = plot.firstChild;
    Object.assign(canvas.style, { position: "absolute", pointerEvents: "none" });
    isInteractive = true;
    await again();
    canvas.remove();
    if (section.dataset.state !== "drawn") return;
    plot.on("plotly_hover", showTip);
    plot.on("plotly_click", showTip); // a tap
    plot.on("plotly_unhover", () => { tip.hidden = true; });
    plot.on("plotly_doubleclick", seeAll);
    plot.on("plotly_relayout", () => { tip.hidden = true; });
    guardScrolling();
    zoomByPinch();
    await Promise.all(data.groups.map(codes)); // for the tip
  }

  fill();
  part("controls").addEventListener("submit", (event) => event.preventDefault());
  select.embedding.addEventListener("change", again);
  select.colour.addEventListener("change", () => { search.value = ""; say(""); again(); });
  search.addEventListener("change", findGene);
  search.addEventListener("input", (event) => { if (!(event.inputType || "").startsWith("insertText")) findGene(); });
  afterPaint().then(start).catch(fail);
})();
