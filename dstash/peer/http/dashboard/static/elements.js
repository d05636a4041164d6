// Helpers for elements and numbers. Text comes from the cluster, so it is always set as text, never
// as markup.

export const $ = (id) => document.getElementById(id);

export function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "path", "text", "line", "rect", "defs", "pattern", "title", "g"].includes(tag);
  const element = svg
    ? document.createElementNS("http://www.w3.org/2000/svg", tag)
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "style") for (const [property, to] of Object.entries(value)) element.style.setProperty(property, to);
    else if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// At least two significant digits, and at most one decimal place.
const short = (value) => (value < 9.95 ? String(Math.round(value * 10) / 10) : whole(value));
export const whole = (value) => Math.round(value).toLocaleString("en");

export function count(value) {
  if (value === null || value === undefined) return "–";
  if (value < 10000) return whole(value);
  return value < 1e6 ? `${short(value / 1e3)} k` : `${short(value / 1e6)} M`;
}

export function bytes(value) {
  if (value === null || value === undefined) return "–";
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  let place = 0;
  while (value >= 999.5 && place < units.length - 1) { value /= 1000; place += 1; }
  return `${place ? short(value) : value} ${units[place]}`;
}

export function micros(value) {
  if (!value) return "–";
  if (value < 1000) return `${Math.round(value)} µs`;
  return value < 1e6 ? `${short(value / 1e3)} ms` : `${short(value / 1e6)} s`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 60) return `${Math.round(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 48 * 3600) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86400)} d`;
}

export const sum = (values) => values.reduce((total, value) => total + (value || 0), 0);
