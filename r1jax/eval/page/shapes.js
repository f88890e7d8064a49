"use strict";
// Elements, numbers and scales: what the other scripts of the page build with. Text enters the page as text nodes only.

const SVG = "http://www.w3.org/2000/svg";
const COLORS = 8;
const data = JSON.parse(document.getElementById("data").textContent);

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

function make(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function draw(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function colorOf(number) {
  return `var(--line-${number % COLORS})`;
}

/** A number to read: three or so digits, thousands apart, tiny ones as powers. `digits` asks for more. */
function format(value, unit, digits = 3) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (unit === "percent") return trim((100 * value).toFixed(1)) + "%";
  const size = Math.abs(value);
  const text =
    size === 0 ? "0"
    : size < 1e-3 ? trim(value.toExponential(2))
    : size >= 1e6 ? trim((value / 1e6).toPrecision(3)) + "M"
    : size >= 1000 ? Math.round(value).toLocaleString("en-US")
    : trim(value.toPrecision(digits));
  return (unit === "seconds" ? text + " s" : text).replace(/^-/, "−").replace("e-", "e−");
}

/** A number beside an axis, where room is scarce. */
function formatTick(value, unit) {
  const size = Math.abs(value);
  if (unit === "percent" || size < 10000) return format(value, unit);
  return (size < 1e6 ? trim((value / 1000).toPrecision(3)) + "k" : format(value)) + (unit === "seconds" ? " s" : "");
}

function trim(text) {
  return text.includes(".") ? text.replace(/\.?0+(?=$|e)/, "") : text;
}

/** Round values that cover [low, high]: about `count` of them, 1, 2 or 5 times a power of ten apart. */
function roundTicks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const size = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough * 0.999);
  const first = Math.floor(low / size + 1e-9);
  const last = Math.ceil(high / size - 1e-9);
  return Array.from({ length: last - first + 1 }, (_, index) => Number(((first + index) * size).toPrecision(12)));
}

/** Whole steps inside [low, high]. */
function stepTicks(low, high, count) {
  if (high <= low) return [low];
  const ticks = roundTicks(low, high, count).filter((tick) => tick >= low && tick <= high);
  return ticks.every(Number.isInteger) ? ticks : ticks.filter(Number.isInteger);
}

function decades(low, high) {
  const first = Math.floor(Math.log10(low) + 1e-9);
  const last = Math.max(first + 1, Math.ceil(Math.log10(high) - 1e-9));
  const stride = Math.ceil((last - first) / 5);
  const ticks = [];
  for (let power = first; power < last + stride; power += stride) ticks.push(10 ** power);
  return ticks;
}

/** Means over a window centred on each point, so that nothing lags; at the ends, over what there is of it. */
function smooth(values, window) {
  const half = Math.floor(window / 2);
  return values.map((_, index) => {
    const part = values.slice(Math.max(0, index - half), index + half + 1);
    return part.reduce((sum, value) => sum + value, 0) / part.length;
  });
}

function quantile(values, share) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
}

/** The position of the step nearest to `step` in an ascending list. */
function nearest(steps, step) {
  let low = 0;
  let high = steps.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (steps[middle] <= step) low = middle;
    else high = middle;
  }
  return Math.abs(steps[high] - step) < Math.abs(steps[low] - step) ? high : low;
}
