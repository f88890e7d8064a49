// The curves. One chart is a figure: title and step read-out, a key with values, the drawing, a note. All charts share
// the horizontal axis, and pointing at a step in one reads that step in all.

const MARGIN = { left: 46, right: 14, top: 8, bottom: 22 };
const charts = [];
const steps = data.runs.flatMap((run) => Object.values(run.series).flatMap((series) => [series[0][0], series[0].at(-1)]));
const FIRST = Math.min(...steps, 0);
const LAST = Math.max(...steps, FIRST + 1);
const LENGTHS = data.runs.map((run) => Math.max(0, ...Object.values(run.series).map((series) => series[0].length)));
const WINDOW = Math.min(101, Math.max(3, 2 * Math.round(Math.max(...LENGTHS) / 24) + 1));

/** The curves of a chart: steps, values, errors, and for a stack the lower and upper edge of each area. */
function readCurves(spec) {
  const curves = spec.lines.map((line, number) => {
    const [at, values] = data.runs[line.run].series[line.key];
    const errors = line.stderr ? new Map(zip(...data.runs[line.run].series[line.stderr])) : null;
    const color = colorOf(data.runs.length > 1 ? line.run : number);
    return { label: line.label, color, steps: at, values, errors, sparse: at.length < LENGTHS[line.run] / 2 };
  });
  return spec.stack ? pile(spec, curves) : curves;
}

function zip(first, second) {
  return first.map((item, index) => [item, second[index]]);
}

function pile(spec, curves) {
  const at = [...new Set(curves.flatMap((curve) => curve.steps))].sort((a, b) => a - b);
  const filled = curves.map((curve) => {
    const known = new Map(zip(curve.steps, curve.values));
    return { ...curve, steps: at, values: at.map((step) => known.get(step) ?? 0), sparse: false };
  });
  if (spec.total) {
    const totals = new Map(zip(...data.runs[spec.lines[0].run].series[spec.total]));
    const rest = at.map((step, index) => {
      const sum = filled.reduce((total, curve) => total + curve.values[index], 0);
      return Math.max(0, (totals.get(step) ?? sum) - sum);
    });
    const seen = rest.reduce((sum, value) => sum + value, 0) > 0.01 * [...totals.values()].reduce((sum, value) => sum + value, 0);
    if (seen) filled.push({ label: "other", color: "var(--faint)", steps: at, values: rest, errors: null, sparse: false });
  }
  return filled;
}

/** The values that the vertical axis must cover. */
function extent(spec, curves) {
  if (spec.stack) return curves[0].values.map((_, index) => curves.reduce((sum, curve) => sum + curve.values[index], 0));
  return curves.flatMap((curve) => curve.values);
}

/** The vertical axis: its ticks, its scale, and a note on what lies beyond it. */
function planAxis(spec, curves) {
  let values = extent(spec, curves);
  if (spec.log) {
    values = values.filter((value) => value > 0);
    if (values.length) return logAxis(values);
    values = [0];
  }
  if (spec.domain) return linearAxis(roundTicks(spec.domain[0], spec.domain[1], 4));
  let low = Math.min(...values);
  let high = Math.max(...values);
  let note = "";
  // A first step that compiles, or one spike, must not flatten all else: cut it off, and say so.
  const usual = quantile(values, 0.95);
  if (values.length >= 8 && usual > 0 && high > 3 * usual) {
    const beyond = values.filter((value) => value > 1.3 * usual).length;
    note = `${beyond} ${beyond === 1 ? "value" : "values"} above the axis, up to ${format(high, spec.unit)}`;
    high = 1.3 * usual;
  }
  if (spec.zero || spec.stack) low = Math.min(0, low);
  if (high - low < 1e-12 * Math.max(1, Math.abs(high))) high = low + (Math.abs(low) || 1);
  const ticks = roundTicks(low, high, 4);
  // Ratios that differ from 1 in the sixth digit: the axis counts from 1, else all its labels read alike.
  const fine = Math.max(Math.abs(low), Math.abs(high)) > 2000 * (ticks[1] - ticks[0]);
  const origin = !fine ? 0 : low <= 1 && high >= 1 ? 1 : ticks[0];
  if (fine) note = `axis: difference from ${format(origin, spec.unit, 9)}`;
  return { ...linearAxis(ticks), note, origin };
}

function linearAxis(ticks) {
  const low = ticks[0];
  const high = ticks.at(-1);
  return { ticks, place: (value) => Math.min(1.5, Math.max(-0.5, (value - low) / (high - low))), note: "", origin: 0 };
}

function logAxis(values) {
  const ticks = decades(Math.min(...values), Math.max(...values));
  const low = Math.log10(ticks[0]);
  const high = Math.log10(ticks.at(-1));
  return { ticks, place: (value) => (value > 0 ? (Math.log10(value) - low) / (high - low) : null), note: "", origin: 0 };
}

class Chart {
  constructor(spec, height) {
    this.spec = spec;
    this.height = height;
    this.curves = readCurves(spec);
    this.axis = planAxis(spec, this.curves);
    // All charts share one margin, which holds the longest label of any: digits of 11 px are some 6.4 px wide.
    const labels = this.axis.ticks.map((tick) => formatTick(tick - this.axis.origin, spec.unit).length);
    MARGIN.left = Math.max(MARGIN.left, Math.ceil(6.4 * Math.max(...labels)) + 14);
    this.step = make("span", { class: "step" });
    this.figure = make("figure", null,
      make("figcaption", null, make("span", { class: "title" }, spec.title), this.step),
      this.makeKey(),
      (this.frame = make("div", { class: "frame" })),
      make("p", { class: "note" }, this.axis.note));
    charts.push(this);
  }

  makeKey() {
    const named = data.runs.length > 1 || this.curves.length > 1;
    this.readings = this.curves.map(() => make("b"));
    const items = this.curves.map((curve, index) => make("span", { title: curve.label },
      named ? make("i", { class: "swatch", style: `background:${curve.color}` }) : null,
      named ? make("span", { class: "label" }, curve.label) : null,
      this.readings[index]));
    return make("div", { class: "key" }, ...items);
  }

  x(step) {
    return MARGIN.left + ((step - FIRST) / (LAST - FIRST)) * (this.width - MARGIN.left - MARGIN.right);
  }

  y(value) {
    const share = this.axis.place(value);
    return share === null ? null : this.height - MARGIN.bottom - share * (this.height - MARGIN.top - MARGIN.bottom);
  }

  render() {
    const width = this.frame.clientWidth;
    if (!width) return;
    this.width = width;
    this.clip = `clip-${charts.indexOf(this)}`;
    const inner = { x: MARGIN.left - 4, y: 0, width: width - MARGIN.left, height: this.height - MARGIN.bottom + 3 };
    this.cross = draw("line", { class: "cross", y1: MARGIN.top, y2: this.height - MARGIN.bottom, visibility: "hidden" });
    this.dots = this.curves.map((curve) => draw("circle", { class: "read", r: 3.5, fill: curve.color, visibility: "hidden" }));
    const svg = draw("svg", { width, height: this.height, role: "img", "aria-label": this.describe() },
      draw("clipPath", { id: this.clip }, draw("rect", inner)),
      ...this.drawAxes(),
      draw("g", { "clip-path": `url(#${this.clip})` }, ...this.drawCurves()),
      this.cross, ...this.dots);
    svg.addEventListener("pointermove", (event) => this.point(event));
    svg.addEventListener("pointerdown", (event) => this.point(event));
    svg.addEventListener("pointerleave", () => pointAt(null));
    this.frame.replaceChildren(svg);
    this.read(null);
  }

  describe() {
    const parts = this.curves.map((curve) => {
      const ends = `${format(curve.values[0], this.spec.unit)} to ${format(curve.values.at(-1), this.spec.unit)}`;
      return this.curves.length > 1 ? `${curve.label} from ${ends}` : `from ${ends}`;
    });
    return `${this.spec.title}: ${parts.join(", ")}`;
  }

  drawAxes() {
    const bottom = this.height - MARGIN.bottom;
    const across = this.axis.ticks.map((tick, index) => {
      const y = Math.round(this.y(tick)) + 0.5;
      return draw("g", null,
        draw("line", { class: index ? "rule" : "base", x1: MARGIN.left, x2: this.width - MARGIN.right, y1: y, y2: y }),
        draw("text", { x: MARGIN.left - 8, y: y + 3.5, "text-anchor": "end" }, formatTick(tick - this.axis.origin, this.spec.unit)));
    });
    const count = Math.max(2, Math.floor(this.width / 80));
    const along = stepTicks(FIRST, LAST, count).map((step) => {
      const text = step.toLocaleString("en-US");
      const half = 3.4 * text.length;
      const x = Math.max(Math.min(this.x(step), this.width - half), MARGIN.left + half - 6);
      return draw("text", { x, y: bottom + 16, "text-anchor": "middle" }, text);
    });
    return [...across, ...along, draw("text", { x: MARGIN.left - 8, y: bottom + 16, "text-anchor": "end" }, "step")];
  }

  drawCurves() {
    if (this.spec.stack) return this.drawStack();
    const smoothing = document.getElementById("smooth").checked;
    return this.curves.flatMap((curve, index) => {
      const shapes = [];
      if (curve.errors && this.hasBand(index)) shapes.push(this.drawBand(curve));
      const soft = smoothing && !curve.sparse;
      shapes.push(this.drawLine(curve.steps, curve.values, curve.color, soft ? "raw" : "line"));
      if (soft) shapes.push(this.drawLine(curve.steps, smooth(curve.values, WINDOW), curve.color, "line"));
      if (curve.sparse || curve.steps.length === 1) {
        shapes.push(...zip(curve.steps, curve.values).map(([step, value]) =>
          draw("circle", { cx: this.x(step), cy: this.y(value) ?? -9, r: curve.steps.length > 30 ? 1.75 : 2.5, fill: curve.color })));
      }
      return shapes;
    });
  }

  /** One band a chart: of more, none can be read. Where the lines are runs, each has its own. */
  hasBand(index) {
    return index === 0 || data.runs.length > 1;
  }

  drawLine(at, values, color, kind) {
    let pen = "M";
    let path = "";
    zip(at, values).forEach(([step, value]) => {
      const y = this.y(value);
      if (y === null) { pen = "M"; return; }
      path += `${pen}${this.x(step).toFixed(1)},${y.toFixed(1)}`;
      pen = "L";
    });
    return draw("path", { class: kind, d: path, stroke: color });
  }

  drawBand(curve) {
    const edge = (sign) => zip(curve.steps, curve.values).map(([step, value]) =>
      `${this.x(step).toFixed(1)},${this.y(value + sign * (curve.errors.get(step) ?? 0)).toFixed(1)}`);
    return draw("path", { class: "band", d: `M${edge(1).join("L")}L${edge(-1).reverse().join("L")}Z`, fill: curve.color });
  }

  drawStack() {
    let floor = this.curves[0].steps.map(() => 0);
    return this.curves.map((curve) => {
      const roof = curve.values.map((value, index) => floor[index] + value);
      const edge = (heights) => zip(curve.steps, heights).map(([step, value]) => `${this.x(step).toFixed(1)},${this.y(value).toFixed(1)}`);
      const path = `M${edge(roof).join("L")}L${edge(floor).reverse().join("L")}Z`;
      floor = roof;
      return draw("path", { class: "area", d: path, fill: curve.color });
    });
  }

  point(event) {
    const share = (event.offsetX - MARGIN.left) / (this.width - MARGIN.left - MARGIN.right);
    pointAt(FIRST + Math.min(1, Math.max(0, share)) * (LAST - FIRST));
  }

  /** Shows the values at the step nearest to `step`, or the last ones for null. */
  read(step) {
    let shown = null;
    let height = 0;
    this.curves.forEach((curve, index) => {
      const place = step === null ? curve.steps.length - 1 : nearest(curve.steps, step);
      const value = curve.values[place];
      const error = curve.errors && curve.errors.get(curve.steps[place]);
      const spread = error === null || error === undefined ? "" : ` ± ${this.spec.unit === "percent" ? (100 * error).toFixed(1) : format(error)}`;
      const text = format(value, this.spec.unit, this.axis.origin ? 8 : 3);
      this.readings[index].textContent = this.hasBand(index) ? text + spread : text;
      this.readings[index].title = text + spread;
      const at = curve.steps[place];
      if (shown === null || (step !== null && Math.abs(at - step) < Math.abs(shown - step))) shown = at;
      height += this.spec.stack ? value : 0;
      this.place(this.dots[index], step, at, this.spec.stack ? height : value);
    });
    this.step.textContent = shown === null ? "" : `step ${shown.toLocaleString("en-US")}`;
    this.cross.setAttribute("visibility", step === null ? "hidden" : "visible");
    this.cross.setAttribute("x1", this.x(shown));
    this.cross.setAttribute("x2", this.x(shown));
  }

  place(dot, step, at, value) {
    const y = this.y(value);
    const inside = step !== null && y !== null && y >= MARGIN.top - 4;
    dot.setAttribute("visibility", inside ? "visible" : "hidden");
    dot.setAttribute("cx", this.x(at));
    dot.setAttribute("cy", y ?? 0);
  }
}

function pointAt(step) {
  for (const chart of charts) if (chart.width) chart.read(step);
}

function startCharts() {
  for (const grid of document.querySelectorAll("[data-section]")) {
    const section = data.sections[grid.dataset.section];
    const own = section.charts.map((spec) => new Chart(spec, section.leads ? 230 : 170));
    grid.append(...own.map((chart) => chart.figure));
    const render = () => own.forEach((chart) => chart.render());
    new ResizeObserver(() => requestAnimationFrame(render)).observe(grid);
  }
  const box = document.getElementById("smooth");
  document.getElementById("curve-controls").hidden = charts.length === 0;
  const stride = Math.max(...data.runs.map((run) => run.stride));
  document.getElementById("smooth-label").textContent = `smooth over ${WINDOW * stride} steps`;
  if (stride > 1) document.getElementById("thinning").textContent = `long curves: a point is the mean of up to ${stride} steps`;
  box.addEventListener("change", () => charts.forEach((chart) => chart.render()));
}
