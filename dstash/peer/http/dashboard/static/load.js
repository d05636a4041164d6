// The load of the last five minutes: its history and its charts.

import { $, count, make, micros, setText, sum } from "./elements.js";

const HISTORY_S = 300;
const COUNTED = ["reads", "writes", "read_keys", "written_keys"];
const load = new Map(); // second -> {figure: value}

export function remember(columns) {
  if (!columns || !columns.at) return;
  columns.at.forEach((second, place) => {
    const row = {};
    for (const [name, values] of Object.entries(columns)) row[name] = values[place];
    load.set(second, row);
  });
  const newest = Math.max(...load.keys());
  for (const second of load.keys()) if (second <= newest - HISTORY_S) load.delete(second);
}

export function latest() {
  const rows = [...load.keys()].sort((a, b) => b - a).slice(0, 3).map((at) => load.get(at));
  const now = {};
  if (!rows.length) return now;
  for (const name of Object.keys(rows[0])) {
    const values = rows.map((row) => row[name]);
    now[name] = COUNTED.includes(name) ? sum(values) / rows.length : Math.max(...values);
  }
  return now;
}

const CHARTS = {
  throughput: {
    lines: [["read_keys", "read", "read"], ["written_keys", "write", "written"]],
    area: true, text: (value) => count(value), unit: "/s",
  },
  latency: {
    lines: [["handling_p99", "read", "handling a message"], ["commit_p99", "write", "commit"],
      ["handling_p50", "read dashed"], ["commit_p50", "write dashed"]],
    logarithmic: true, text: micros, unit: "",
  },
};

export function showLoad() {
  if (!load.size) return; // the peer has just started
  for (const [id, chart] of Object.entries(CHARTS)) drawChart($(id), chart);
}

function drawChart(figure, chart) {
  const svg = figure.querySelector("svg");
  const box = { width: svg.clientWidth, height: svg.clientHeight, left: 52, right: 6, top: 8, bottom: 18 };
  const newest = Math.max(...load.keys());
  const rows = [...load.values()].sort((a, b) => a.at - b.at);
  const x = (at) => box.width - box.right - ((newest - at) / HISTORY_S) * (box.width - box.left - box.right);
  const [ticks, y] = chart.logarithmic ? logarithmic(rows, chart, box) : linear(rows, chart, box);
  const parts = [];
  for (const tick of ticks) {
    const at = y(tick);
    parts.push(make("line", { class: "grid", x1: box.left, x2: box.width - box.right, y1: at, y2: at }));
    parts.push(make("text", { x: box.left - 8, y: at + 4, "text-anchor": "end" }, tick ? chart.text(tick) : "0"));
  }
  for (const minute of box.width < 420 ? [0, 5] : [0, 1, 2, 3, 4, 5]) {
    const label = minute ? `−${minute} min` : "now";
    const anchor = minute ? (minute === 5 ? "start" : "middle") : "end";
    parts.push(make("text", { x: x(newest - 60 * minute), y: box.height - 3, "text-anchor": anchor }, label));
  }
  for (const [name, style] of chart.lines) parts.push(...line(rows, name, style, x, y, chart.area && box));
  svg.setAttribute("viewBox", `0 0 ${box.width} ${box.height}`);
  svg.replaceChildren(...parts);
  showKey(figure, chart);
}

function linear(rows, chart, box) {
  const highest = Math.max(1, ...rows.flatMap((row) => chart.lines.map(([name]) => row[name])));
  const power = 10 ** Math.floor(Math.log10(highest / 3));
  const step = Math.max(1, [1, 2, 5, 10].map((factor) => factor * power).find((size) => size * 3.4 >= highest));
  const top = step * Math.max(1, Math.ceil(highest / step));
  const y = (value) => box.height - box.bottom - (value / top) * (box.height - box.top - box.bottom);
  return [Array.from({ length: Math.round(top / step) + 1 }, (_, place) => place * step), y];
}

function logarithmic(rows, chart, box) {
  const values = rows.flatMap((row) => chart.lines.map(([name]) => row[name])).filter((value) => value > 0);
  const low = Math.floor(Math.log10(Math.min(...values, 100)));
  const high = Math.max(low + 2, Math.ceil(Math.log10(Math.max(...values, 1000))));
  const height = box.height - box.top - box.bottom;
  const y = (value) => box.height - box.bottom - ((Math.log10(value) - low) / (high - low)) * height;
  return [Array.from({ length: high - low + 1 }, (_, place) => 10 ** (low + place)), y];
}

function line(rows, name, style, x, y, area) {
  const parts = [];
  for (const run of stretches(rows, name, Boolean(area))) {
    const d = `M${run.map((row) => `${x(row.at).toFixed(1)} ${y(row[name]).toFixed(1)}`).join("L")}`;
    const [begin, end] = [run[0].at, run.at(-1).at].map((at) => x(at).toFixed(1));
    if (area) parts.push(make("path", { d: `${d}L${end} ${y(0)}L${begin} ${y(0)}Z`, class: `area ${style}` }));
    const isDot = run.length === 1;
    parts.push(make("path", { d: isDot ? `${d}h0.1` : d, class: `line ${style}${isDot ? " dot" : ""}` }));
  }
  return parts;
}

// The rows in runs without a gap. A second without requests has no latency, but zero keys.
function stretches(rows, name, zeros) {
  const runs = [];
  let previous = -Infinity;
  for (const row of rows) {
    if (!row[name] && !zeros) { previous = -Infinity; continue; }
    if (row.at - previous > 3) runs.push([]);
    runs.at(-1).push(row);
    previous = row.at;
  }
  return runs;
}

function showKey(figure, chart) {
  const caption = figure.querySelector("figcaption");
  const now = latest();
  const named = chart.lines.filter(([, , label]) => label);
  let key = caption.querySelector(".key");
  if (!key) {
    key = make("span", { class: "key" },
      ...named.map(([, style]) => make("span", {}, make("i", { class: style }), make("span"))));
    caption.append(key);
  }
  const texts = named.map(([name, , label]) => `${label} ${chart.text(now[name] || 0)}${chart.unit}`);
  texts.forEach((text, place) => setText(key.children[place].lastChild, text));
  figure.querySelector("svg").setAttribute("aria-label", `The last five minutes; now ${texts.join(", ")}`);
}
