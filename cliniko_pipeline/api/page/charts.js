// SVG charts, each with a text alternative and a table of its data. A chart is redrawn when its width changes.

import { count, day, fullDay, number } from "./formats.js";
import { draw, make, put } from "./elements.js";

const HEIGHT = 220;
const EDGE = { top: 18, right: 16, bottom: 30, left: 48 };
const A_DAY = 86400000;
const PIXELS_A_LABEL = 84;

/** Makes a line chart of points {day: "2026-06-15", value}. The line is dashed across days without a value. */
export function makeLineChart(name, points, unit) {
  if (points.length === 0) return make("p", { class: "faint" }, "No sync has finished yet.");
  const values = points.map((point) => point.value);
  const first = points[0];
  const last = points.at(-1);
  const description =
    points.length === 1
      ? `${name}: one day so far, ${fullDay(first.day)}, with ${number(first.value)}.`
      : `${name}, from ${fullDay(first.day)} to ${fullDay(last.day)}: lowest ${number(Math.min(...values))}, ` +
        `highest ${number(Math.max(...values))}, last ${number(last.value)}.`;
  const rows = [...points].reverse().map((point) => [fullDay(point.day), number(point.value)]);
  return makeFigure(["Day", unit], rows, (width) => drawLine(description, points, width));
}

function drawLine(description, points, width) {
  const days = points.map((point) => Date.parse(`${point.day}T00:00:00Z`) / A_DAY);
  const span = Math.max(days.at(-1) - days[0], 1);
  const axis = chooseAxis(points.map((point) => point.value));
  const inner = width - EDGE.left - EDGE.right;
  const x = (at) => EDGE.left + (points.length === 1 ? inner / 2 : ((at - days[0]) / span) * inner);
  const y = (value) => axis.y(value);
  const svg = drawFrame(description, width, axis);
  for (const at of pickDays(days, inner)) {
    put(svg, draw("text", { x: x(at), y: HEIGHT - 8, "text-anchor": anchor(x(at), width), class: "label" }, day(iso(at))));
  }
  for (let i = 1; i < points.length; i += 1) {
    const isGap = days[i] - days[i - 1] > 1;
    put(svg, draw("line", {
      x1: x(days[i - 1]), y1: y(points[i - 1].value), x2: x(days[i]), y2: y(points[i].value), class: isGap ? "gap" : "line",
    }));
  }
  const radius = inner / points.length > 12 || points.length === 1 ? 4 : 2;
  points.forEach((point, i) => {
    const note = draw("title", {}, `${fullDay(point.day)}: ${number(point.value)}`);
    put(svg, draw("circle", { cx: x(days[i]), cy: y(point.value), r: radius, class: "dot" }, note));
  });
  const last = points.at(-1);
  const place = { x: x(days.at(-1)), y: y(last.value) - 9, "text-anchor": points.length === 1 ? "middle" : "end" };
  put(svg, draw("text", { ...place, class: "value" }, number(last.value)));
  return svg;
}

/** Makes a bar chart of {label, value}. */
export function makeBarChart(name, bars, columns) {
  const total = bars.reduce((sum, bar) => sum + bar.value, 0);
  if (total === 0) return make("p", { class: "faint" }, "There are no active patients.");
  const most = bars.reduce((largest, bar) => (bar.value > largest.value ? bar : largest));
  const description = `${name}: ${count(total, "patient")}, most of them (${number(most.value)}) with ${most.label}.`;
  const rows = bars.map((bar) => [bar.label, number(bar.value)]);
  return makeFigure(columns, rows, (width) => drawBars(description, bars, width));
}

function drawBars(description, bars, width) {
  const axis = chooseAxis([0, ...bars.map((bar) => bar.value)]);
  const svg = drawFrame(description, width, axis);
  const space = (width - EDGE.left - EDGE.right) / bars.length;
  bars.forEach((bar, i) => {
    const left = EDGE.left + i * space;
    const middle = left + space / 2;
    const thick = Math.min(space * 0.72, 56);
    const top = axis.y(bar.value);
    const note = draw("title", {}, `${bar.label}: ${number(bar.value)}`);
    put(svg, draw("rect", {
      x: middle - thick / 2, y: top, width: thick, height: Math.max(HEIGHT - EDGE.bottom - top, 0), rx: 2, class: "bar",
    }, note));
    if (bar.value > 0) put(svg, draw("text", { x: middle, y: top - 5, "text-anchor": "middle", class: "value" }, number(bar.value)));
    put(svg, draw("text", { x: middle, y: HEIGHT - 8, "text-anchor": "middle", class: "label" }, bar.label));
  });
  return svg;
}

function makeFigure(columns, rows, drawChart) {
  const place = make("div", { class: "drawing" });
  let width = 0;
  const observer = new ResizeObserver(([entry]) => {
    const now = Math.floor(entry.contentRect.width);
    if (now === width || now < 100) return;
    width = now;
    place.replaceChildren(drawChart(width));
  });
  observer.observe(place);
  const cells = rows.map((row) => make("tr", {}, make("th", { scope: "row" }, row[0]), make("td", { class: "number" }, row[1])));
  return make("figure", { class: "chart" },
    place,
    make("details", {},
      make("summary", {}, "Show as a table"),
      make("table", { class: "plain" },
        make("thead", {}, make("tr", {}, columns.map((title, i) => make("th", { scope: "col", class: i && "number" }, title)))),
        make("tbody", {}, cells),
      ),
    ),
  );
}

function drawFrame(description, width, axis) {
  const svg = draw("svg", { role: "img", "aria-label": description, viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT });
  for (const tick of axis.ticks) {
    const y = axis.y(tick);
    put(svg,
      draw("line", { x1: EDGE.left, y1: y, x2: width - EDGE.right, y2: y, class: tick === axis.low ? "axis" : "rule" }),
      draw("text", { x: EDGE.left - 8, y: y + 4, "text-anchor": "end", class: "label" }, number(tick)),
    );
  }
  return svg;
}

/** Chooses integer ticks and a scale. The axis starts at zero unless that would flatten the line. */
export function chooseAxis(values) {
  const least = Math.min(...values);
  const most = Math.max(...values, 1);
  const from = least !== most && least > most * 0.6 ? least - (most - least) * 0.5 - 1 : 0;
  const rough = Math.max((most - from) / 4, 1);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = Math.max([1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough), 1);
  const low = Math.max(Math.floor(from / step) * step, 0);
  const high = Math.max(Math.ceil(most / step) * step, low + step);
  const ticks = [];
  for (let tick = low; tick <= high; tick += step) ticks.push(tick);
  const inner = HEIGHT - EDGE.top - EDGE.bottom;
  return { low, high, ticks, y: (value) => HEIGHT - EDGE.bottom - ((value - low) / (high - low)) * inner };
}

function pickDays(days, width) {
  const [first, last] = [days[0], days.at(-1)];
  const spaces = Math.min(Math.max(Math.floor(width / PIXELS_A_LABEL), 1), last - first);
  if (spaces === 0) return [first];
  return [...new Set(Array.from({ length: spaces + 1 }, (_, i) => Math.round(first + ((last - first) * i) / spaces)))];
}

const iso = (at) => new Date(at * A_DAY).toISOString().slice(0, 10);
const anchor = (x, width) => (x < EDGE.left + 24 ? "start" : x > width - EDGE.right - 24 ? "end" : "middle");
