// Charts as SVG, each with a name that tells the same and a table in place of it. Drawn anew when their width changes.

import { counted, day, fullDay, number } from "./formats.js";
import { draw, make, put } from "./elements.js";

const HEIGHT = 220;
const EDGE = { top: 18, right: 16, bottom: 30, left: 48 };
const A_DAY = 86400000;
const PIXELS_A_LABEL = 84;

/** A value for each of some days: {day: "2026-06-15", value}. Days without one are gaps, across which the line is dashed. */
export function lineChart(name, points, unit) {
  if (points.length === 0) return make("p", { class: "faint" }, "No sync has ended yet: there is nothing to draw.");
  const values = points.map((each) => each.value);
  const first = points[0];
  const last = points.at(-1);
  const told =
    points.length === 1
      ? `${name}: one day so far, ${fullDay(first.day)}, with ${number(first.value)}.`
      : `${name}, from ${fullDay(first.day)} to ${fullDay(last.day)}: lowest ${number(Math.min(...values))}, ` +
        `highest ${number(Math.max(...values))}, last ${number(last.value)}.`;
  const rows = [...points].reverse().map((each) => [fullDay(each.day), number(each.value)]);
  return figure(told, ["Day", unit], rows, (width) => line(told, points, width));
}

function line(told, points, width) {
  const days = points.map((each) => Date.parse(`${each.day}T00:00:00Z`) / A_DAY);
  const span = Math.max(days.at(-1) - days[0], 1);
  const axis = axisOf(points.map((each) => each.value));
  const inner = width - EDGE.left - EDGE.right;
  const x = (at) => EDGE.left + (points.length === 1 ? inner / 2 : ((at - days[0]) / span) * inner);
  const y = (value) => axis.y(value);
  const svg = frame(told, width, axis);
  for (const at of someDays(days, inner)) {
    put(svg, draw("text", { x: x(at), y: HEIGHT - 8, "text-anchor": anchor(x(at), width), class: "label" }, day(iso(at))));
  }
  for (let i = 1; i < points.length; i += 1) {
    const isGap = days[i] - days[i - 1] > 1;
    put(svg, draw("line", {
      x1: x(days[i - 1]), y1: y(points[i - 1].value), x2: x(days[i]), y2: y(points[i].value), class: isGap ? "gap" : "line",
    }));
  }
  const radius = inner / points.length > 12 || points.length === 1 ? 4 : 2;
  points.forEach((each, i) => {
    const note = draw("title", {}, `${fullDay(each.day)}: ${number(each.value)}`);
    put(svg, draw("circle", { cx: x(days[i]), cy: y(each.value), r: radius, class: "dot" }, note));
  });
  const last = points.at(-1);
  const place = { x: x(days.at(-1)), y: y(last.value) - 9, "text-anchor": points.length === 1 ? "middle" : "end" };
  put(svg, draw("text", { ...place, class: "value" }, number(last.value)));
  return svg;
}

/** How many of each kind there are: {label, value}. */
export function barChart(name, bars, columns) {
  const total = bars.reduce((sum, each) => sum + each.value, 0);
  if (total === 0) return make("p", { class: "faint" }, "No active patients: there is nothing to draw.");
  const most = bars.reduce((found, each) => (each.value > found.value ? each : found));
  const told = `${name}: ${counted(total, "patient")}, most of them (${number(most.value)}) with ${most.label}.`;
  const rows = bars.map((each) => [each.label, number(each.value)]);
  return figure(told, columns, rows, (width) => drawnBars(told, bars, width));
}

function drawnBars(told, bars, width) {
  const axis = axisOf([0, ...bars.map((each) => each.value)]);
  const svg = frame(told, width, axis);
  const each = (width - EDGE.left - EDGE.right) / bars.length;
  bars.forEach((bar, i) => {
    const left = EDGE.left + i * each;
    const middle = left + each / 2;
    const thick = Math.min(each * 0.72, 56);
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

function figure(told, columns, rows, drawn) {
  const place = make("div", { class: "drawing" });
  let width = 0;
  const observer = new ResizeObserver(([entry]) => {
    const now = Math.floor(entry.contentRect.width);
    if (now === width || now < 100) return;
    width = now;
    place.replaceChildren(drawn(width));
  });
  observer.observe(place);
  const cells = rows.map((row) => make("tr", {}, make("th", { scope: "row" }, row[0]), make("td", { class: "number" }, row[1])));
  return make("figure", { class: "chart" },
    place,
    make("details", {},
      make("summary", {}, "The same as a table"),
      make("table", { class: "plain" },
        make("thead", {}, make("tr", {}, columns.map((each, i) => make("th", { scope: "col", class: i && "number" }, each)))),
        make("tbody", {}, cells),
      ),
    ),
  );
}

function frame(told, width, axis) {
  const svg = draw("svg", { role: "img", "aria-label": told, viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT });
  for (const tick of axis.ticks) {
    const y = axis.y(tick);
    put(svg,
      draw("line", { x1: EDGE.left, y1: y, x2: width - EDGE.right, y2: y, class: tick === axis.low ? "axis" : "rule" }),
      draw("text", { x: EDGE.left - 8, y: y + 4, "text-anchor": "end", class: "label" }, number(tick)),
    );
  }
  return svg;
}

/** Whole numbers to mark, from zero where that does not flatten everything, and where each value stands. */
export function axisOf(values) {
  const least = Math.min(...values);
  const most = Math.max(...values, 1);
  const from = least !== most && least > most * 0.6 ? least - (most - least) * 0.5 - 1 : 0;
  const rough = Math.max((most - from) / 4, 1);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = Math.max([1, 2, 5, 10].map((each) => each * power).find((each) => each >= rough), 1);
  const low = Math.max(Math.floor(from / step) * step, 0);
  const high = Math.max(Math.ceil(most / step) * step, low + step);
  const ticks = [];
  for (let tick = low; tick <= high; tick += step) ticks.push(tick);
  const inner = HEIGHT - EDGE.top - EDGE.bottom;
  return { low, high, ticks, y: (value) => HEIGHT - EDGE.bottom - ((value - low) / (high - low)) * inner };
}

function someDays(days, width) {
  const [first, last] = [days[0], days.at(-1)];
  const spaces = Math.min(Math.max(Math.floor(width / PIXELS_A_LABEL), 1), last - first);
  if (spaces === 0) return [first];
  return [...new Set(Array.from({ length: spaces + 1 }, (_, i) => Math.round(first + ((last - first) * i) / spaces)))];
}

const iso = (at) => new Date(at * A_DAY).toISOString().slice(0, 10);
const anchor = (x, width) => (x < EDGE.left + 24 ? "start" : x > width - EDGE.right - 24 ? "end" : "middle");
