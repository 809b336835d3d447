// Draws the charts of the page with uPlot from the data beside them: what a pointer sees at a point,
// a legend that hides and shows, zoom. Texts are set as text, never as HTML.
"use strict";
{
  const NEAR_PIXELS = 40;
  const ONE_HEIGHT = 360, PANEL_HEIGHT = 260;
  // Least width of a chart by their number, so that rows are full; three in a row otherwise.
  const LEAST_WIDTHS = { 1: "100%", 2: "24rem", 4: "24rem", 8: "15rem" };
  const WHOLE_STEPS = [1, 2, 3, 4, 5].concat(...[1, 2, 3, 4, 5, 6].map((power) => [1, 2, 5].map((step) => step * 10 ** power)));
  const STAR_PIXELS = 22;
  const FONT = "12px system-ui, sans-serif";
  // How traces are drawn by their kind: widths and markers in pixels.
  const KINDS = {
    line: { width: 2.2, points: 8 },
    control: { width: 1.5, dash: [6, 4], points: 6 },
    level: { width: 1.3, dash: [6, 4] },
    curve: { width: 1.5 },
    step: { width: 2, paths: uPlot.paths.stepped({ align: 1 }) },
    dots: { width: 0, points: 8, paths: () => null, opacity: 0.85 },
    seed: { width: 0.8, points: 4, opacity: 0.45 },
    rest: { width: 0.8, points: 4, opacity: 0.7 },
    star: { width: 0 },
  };
  // Colours that would vanish on a dark page follow its text.
  const THEMED = { "#000000": "--ink", "#555555": "--soft" };

  const readColour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const paint = (colour) => (colour in THEMED ? readColour(THEMED[colour]) : colour);
  const round = (value) => String(Number(value.toPrecision(5)));

  function addElement(parent, tag, className, text) {
    const element = parent.appendChild(document.createElement(tag));
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  }

  // Columns over the x of all traces, `null` where a trace has no point; a band is two more columns.
  function makeColumns(chart) {
    const xs = [...new Set(chart.traces.flatMap((trace) => trace.xs))].sort((a, b) => a - b);
    const place = new Map(xs.map((x, index) => [x, index]));
    const spreadOut = (trace, values) => {
      const column = new Array(xs.length).fill(null);
      trace.xs.forEach((x, index) => (column[place.get(x)] = values[index]));
      return column;
    };
    const columns = [xs], series = [{}], bands = [];
    chart.traces.forEach((trace, index) => {
      const kind = KINDS[trace.kind];
      const isShort = trace.xs.length < 3 && trace.kind !== "level";
      const isPoint = trace.xs.length === 1 && trace.kind === "rest";
      const size = isPoint ? 7 : kind.points || (isShort ? 6 : 0);
      columns.push(spreadOut(trace, trace.ys));
      series.push({
        trace: index,
        stroke: () => paint(trace.colour),
        width: kind.width,
        dash: kind.dash,
        alpha: kind.opacity || 1,
        spanGaps: true,
        ...(kind.paths ? { paths: kind.paths } : {}),
        points: { show: size > 0, size, fill: () => paint(trace.colour) },
      });
      if (!trace.spread.length) return;
      for (const sign of [1, -1]) {
        columns.push(spreadOut(trace, trace.ys.map((y, at) => y + sign * trace.spread[at])));
        series.push({ trace: index, width: 0, spanGaps: true, points: { show: false } });
      }
      bands.push({ series: [series.length - 2, series.length - 1], fill: () => paint(trace.colour) + "26" });
    });
    return { columns, series, bands };
  }

  function makeAxes(chart, width) {
    const axis = (label) => ({
      label: label || undefined,
      labelSize: 22,
      labelFont: FONT,
      font: FONT,
      stroke: () => readColour("--soft"),
      grid: { stroke: () => readColour("--line"), width: 1 },
      ticks: { stroke: () => readColour("--line"), width: 1 },
    });
    const isWhole = chart.traces.every((trace) => trace.xs.every(Number.isInteger));
    const x = { ...axis(chart.x), size: 32, ...(isWhole ? { incrs: WHOLE_STEPS } : {}) }, y = { ...axis(chart.y), size: 58 };
    if (chart.ticks.length) {
      const step = Math.ceil((chart.ticks.length * 38) / width);
      x.splits = () => chart.ticks.map((_, index) => index).filter((index) => index % step === 0);
      x.values = (plot, splits) => splits.map((index) => chart.ticks[index]);
    }
    return [x, y];
  }

  // Stars, and the spread of a trace with a single point, which has no band.
  function drawMarks(plot, chart, hidden) {
    const context = plot.ctx, scale = devicePixelRatio;
    for (const trace of chart.traces) {
      if (hidden.has(trace.label) || !trace.xs.length) continue;
      const x = plot.valToPos(trace.xs[0], "x", true);
      context.save();
      context.strokeStyle = context.fillStyle = paint(trace.colour);
      if (trace.kind === "star") {
        context.font = `${STAR_PIXELS * scale}px system-ui, sans-serif`;
        context.textAlign = "center";
        context.textBaseline = "middle";
        context.lineWidth = 3 * scale;
        context.strokeStyle = readColour("--ink");
        const y = plot.valToPos(trace.ys[0], "y", true);
        context.strokeText("★", x, y);
        context.fillText("★", x, y);
      } else if (trace.xs.length === 1 && trace.spread.length) {
        context.globalAlpha = 0.5;
        context.lineWidth = 2 * scale;
        context.beginPath();
        context.moveTo(x, plot.valToPos(trace.ys[0] - trace.spread[0], "y", true));
        context.lineTo(x, plot.valToPos(trace.ys[0] + trace.spread[0], "y", true));
        context.stroke();
      }
      context.restore();
    }
  }

  // The nearest point of a trace that is shown, `null` where none is near.
  function findNearest(plot, chart, hidden) {
    const { left, top } = plot.cursor;
    let nearest = null, least = NEAR_PIXELS;
    for (const trace of chart.traces) {
      if (hidden.has(trace.label) || trace.kind === "level") continue;
      trace.xs.forEach((x, index) => {
        if (trace.ys[index] === null) return;
        const at = { left: plot.valToPos(x, "x"), top: plot.valToPos(trace.ys[index], "y") };
        let distance = Math.hypot(at.left - left, at.top - top);
        if (!trace.notes.length && trace.kind !== "curve") distance += 1; // a mean before its seeds
        if (distance < least) [nearest, least] = [{ trace, index, ...at }, distance];
      });
    }
    return nearest;
  }

  function showNearest(plot, chart, hidden, box, dot) {
    const nearest = plot.cursor.left >= 0 ? findNearest(plot, chart, hidden) : null;
    box.hidden = dot.hidden = nearest === null;
    if (nearest === null) return;
    const { trace, index, left, top } = nearest;
    const x = chart.ticks.length ? chart.ticks[trace.xs[index]] : round(trace.xs[index]);
    const lines = trace.notes[index] || [trace.label, `${chart.x.replace(/ \(.*/, "")} ${x}: ${round(trace.ys[index])}`];
    box.replaceChildren();
    lines.forEach((line, place) => addElement(box, place ? "span" : "b", "", line));
    dot.style.color = paint(trace.colour);
    dot.style.left = `${left}px`;
    dot.style.top = `${top}px`;
    // Beside the point, within the chart.
    const room = plot.over.clientWidth - left - 14;
    box.style.left = `${room >= box.offsetWidth ? left + 14 : Math.max(-50, left - 14 - box.offsetWidth)}px`;
    box.style.top = `${Math.min(top + 10, Math.max(0, plot.over.clientHeight - box.offsetHeight))}px`;
  }

  function drawChart(parent, chart, height, hidden) {
    const place = addElement(parent, "div", "chart");
    if (chart.title) addElement(place, "h3", "", chart.title);
    place.setAttribute("role", "img");
    place.setAttribute("aria-label", [chart.title, chart.y].filter(Boolean).join(", "));
    const { columns, series, bands } = makeColumns(chart);
    const box = document.createElement("div"), dot = document.createElement("div");
    box.className = "near";
    dot.className = "dot";
    box.hidden = dot.hidden = true;
    const width = place.clientWidth;
    const options = {
      width,
      height,
      series,
      bands,
      axes: makeAxes(chart, width),
      scales: { x: { time: false, ...(chart.range ? { range: (plot, low, high) => zoomOr(plot, chart.range, low, high) } : {}) } },
      legend: { show: false },
      cursor: { points: { show: false }, x: false, y: false },
      hooks: {
        ready: [(plot) => plot.over.append(dot, box)],
        draw: [(plot) => drawMarks(plot, chart, hidden)],
        setCursor: [(plot) => showNearest(plot, chart, hidden, box, dot)],
      },
    };
    const plot = new uPlot(options, columns, place);
    new ResizeObserver(() => {
      if (place.clientWidth) plot.setSize({ width: place.clientWidth, height });
    }).observe(place);
    return { plot, series, chart };
  }

  // The range of the chart where all is shown, else what was zoomed to.
  function zoomOr(plot, range, low, high) {
    const xs = plot.data[0];
    return low === xs[0] && high === xs[xs.length - 1] ? range : [low, high];
  }

  function addLegend(section, drawn, hidden) {
    const traces = new Map();
    for (const { chart } of drawn)
      for (const trace of chart.traces)
        if (trace.kind !== "seed" && !traces.has(trace.label)) traces.set(trace.label, trace);
    if (traces.size < 2) return;
    const legend = addElement(section, "div", "legend");
    const buttons = new Map();
    const update = () => {
      for (const [label, button] of buttons) button.setAttribute("aria-pressed", String(!hidden.has(label)));
      for (const { plot, series, chart } of drawn)
        plot.batch(() => {
          series.forEach((item, index) => {
            if (index) plot.setSeries(index, { show: !hidden.has(chart.traces[item.trace].label) });
          });
        });
    };
    for (const [label, trace] of traces) {
      const symbol = trace.kind === "star" ? "★" : trace.kind === "dots" || trace.xs.length === 1 ? "●" : "";
      const button = addElement(legend, "button", symbol ? "symbol" : KINDS[trace.kind].dash ? "dashed" : "");
      button.type = "button";
      const mark = addElement(button, "i", "", symbol);
      mark.style.color = trace.colour in THEMED ? `var(${THEMED[trace.colour]})` : trace.colour;
      button.append(label);
      button.addEventListener("click", (event) => {
        const others = [...traces.keys()].filter((other) => other !== label);
        if (event.shiftKey) {
          const isAlone = others.every((other) => hidden.has(other)) && !hidden.has(label);
          hidden.clear();
          if (!isAlone) others.forEach((other) => hidden.add(other));
        } else if (!hidden.delete(label)) hidden.add(label);
        update();
      });
      buttons.set(label, button);
    }
    update();
  }

  for (const section of document.querySelectorAll(".charts")) {
    const charts = JSON.parse(section.querySelector("script").textContent);
    const hidden = new Set();
    const height = charts.length === 1 ? ONE_HEIGHT : PANEL_HEIGHT;
    const grid = addElement(section, "div", "grid");
    grid.style.setProperty("--least", LEAST_WIDTHS[charts.length] || "19rem");
    const drawn = charts.map((chart) => drawChart(grid, chart, height, hidden));
    addLegend(section, drawn, hidden);
    section.querySelector(".still").remove();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      for (const { plot } of drawn) plot.redraw();
    });
  }
}
