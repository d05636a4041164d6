// The ring: an arc for each replica set, in a track for each rank, and the zones of the peers.

import { $, make, setText, sum, whole } from "./elements.js";

const HUES = [255, 190, 300, 155, 225, 335, 120, 275];
let chosen = null; // the peer whose partitions are highlighted

const INNER = 78, OUTER = 158;

function point(radius, at) {
  const angle = 2 * Math.PI * at - Math.PI / 2;
  return `${(200 + radius * Math.cos(angle)).toFixed(2)} ${(200 + radius * Math.sin(angle)).toFixed(2)}`;
}

function arc(inner, outer, from, to) {
  to = Math.min(to, from + 0.99999); // SVG draws no arc whose ends coincide
  const large = to - from > 0.5 ? 1 : 0;
  return `M${point(outer, from)}A${outer} ${outer} 0 ${large} 1 ${point(outer, to)}` +
    `L${point(inner, to)}A${inner} ${inner} 0 ${large} 0 ${point(inner, from)}Z`;
}

function bow(radius, from, to) {
  to = Math.min(to, from + 0.99999);
  return `M${point(radius, from)}A${radius} ${radius} 0 ${to - from > 0.5 ? 1 : 0} 1 ${point(radius, to)}`;
}

export function colours(members) {
  const zones = [...new Set(members.map((member) => member.zone))].sort();
  const seen = {};
  // With several zones: a hue for each zone, and a shade for each peer. With a single zone: a hue for each peer.
  return Object.fromEntries(members.map((member, number) => {
    const place = zones.length > 1 ? zones.indexOf(member.zone) : number;
    const nth = (seen[place % HUES.length] = (seen[place % HUES.length] ?? -1) + 1);
    return [member.id, { "--hue": HUES[place % HUES.length], "--shift": [0, 0.12, -0.12, 0.2][nth % 4] }];
  }));
}

function tracks(ranks) {
  const share = [1, 0.55, 0.45, 0.35, 0.3].slice(0, ranks);
  const unit = (OUTER - INNER) / sum(share);
  let edge = OUTER;
  return share.map((part) => { const outer = edge; edge -= part * unit; return [edge + 2, outer]; });
}

export function showRing(state) {
  const known = Object.fromEntries(state.members.map((member) => [member.id, member]));
  const shown = JSON.stringify([state.sets, state.members.map((member) => [member.id, member.zone, member.badness])]);
  if ($("ring").dataset.shown !== shown) {
    $("ring").dataset.shown = shown;
    drawRing(state, known);
    drawLegend(state);
  }
  choose(chosen);
}

function drawRing(state, known) {
  const zoneOf = (set) => known[set.peers[0]].zone;
  const key = (set) => [zoneOf(set), ...set.peers].join("\n");
  const sets = [...state.sets].sort((a, b) => (key(a) < key(b) ? -1 : 1));
  const all = sum(sets.map((set) => set.partitions)) || 1;
  const hues = colours(state.members);
  const rings = tracks(Math.max(1, ...sets.map((set) => set.peers.length)));
  const parts = [], firsts = new Map(), zones = new Map();
  let at = 0;
  for (const set of sets) {
    const end = at + set.partitions / all;
    set.peers.forEach((peer, rank) => {
      const lost = known[peer].badness ? " lost" : "";
      const path = make("path", { d: arc(...rings[rank], at, end), class: `set${lost}`,
        "data-peers": set.peers.join("\n"), style: hues[peer], opacity: [1, 0.72, 0.5][rank] ?? 0.4 });
      path.append(make("title", {}, `${whole(set.partitions)} partitions on ${set.peers.join(", ")}`));
      parts.push(path);
    });
    if (set.moving) parts.push(make("path", { class: "moving", d: bow(OUTER + 3, at, at + set.moving / all) }));
    extend(firsts, set.peers[0], at, end);
    extend(zones, zoneOf(set), at, end);
    at = end;
  }
  for (const [zone, [from, to]] of zones) parts.push(...zoneLabel(zone, from, to));
  for (const [peer, [from, to]] of firsts) parts.push(...peerLabel(known[peer], rings[0], from, to));
  $("ring").replaceChildren($("ring-text"), hatch(), ...parts, ...centre(state));
  setText($("ring-text"), describeRing(state));
}

function extend(spans, key, from, to) {
  const span = spans.get(key);
  if (span) span[1] = to; else spans.set(key, [from, to]);
}

function zoneLabel(zone, from, to) {
  const gap = Math.min(0.003, (to - from) / 4);
  const line = make("path", { class: "zone", d: bow(OUTER + 8, from + gap, to - gap) });
  if ((to - from) * 2 * Math.PI * OUTER < 7 * (zone.length + 5)) return [line];
  const middle = (from + to) / 2;
  const [x, y] = point(OUTER + 19, middle).split(" ");
  const upright = middle > 0.25 && middle < 0.75 ? 180 : 0;
  const transform = `rotate(${360 * middle + upright} ${x} ${y})`;
  return [line, make("text", { x, y, transform }, `zone ${zone}`)];
}

function peerLabel(member, [inner, outer], from, to) {
  const radius = (inner + outer) / 2;
  if ((to - from) * 2 * Math.PI * radius < 8 * member.id.length) return [];
  const middle = (from + to) / 2;
  const [x, y] = point(radius, middle).split(" ");
  const upright = middle > 0.25 && middle < 0.75 ? 180 : 0;
  const name = member.badness ? "name lost-name" : "name";
  return [make("text", { x, y, class: name, transform: `rotate(${360 * middle + upright} ${x} ${y})` }, member.id)];
}

function hatch() {
  return make("defs", {}, make("pattern",
    { id: "hatch", width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
    make("rect", { width: 6, height: 6 }), make("path", { d: "M0 0V6" })));
}

function centre(state) {
  if (!state.sets.length) return [make("text", { x: 200, y: 200 }, "no data is placed yet")];
  return [
    make("text", { x: 200, y: 190, class: "whole" }, whole(state.partitions)),
    make("text", { x: 200, y: 214 }, "partitions"),
    make("text", { x: 200, y: 231 }, state.replicas === 1 ? "1 replica" : `${state.replicas} replicas each`),
  ];
}

function describeRing(state) {
  const held = state.members.map((member) => `${member.id} in zone ${member.zone} holds ${member.held}`);
  return `${state.partitions} partitions. ${held.join("; ")}.`;
}

function drawLegend(state) {
  const hues = colours(state.members);
  const zones = new Map();
  for (const member of state.members) zones.set(member.zone, [...(zones.get(member.zone) || []), member]);
  $("legend").replaceChildren(...[...zones].sort().map(([zone, members]) =>
    make("li", {}, make("small", {}, `zone ${zone}`), ...members.map((member) => chooser(member.id, hues[member.id])))));
}

export function chooser(peer, hue) {
  const button = make("button", { type: "button", "data-choose": peer, title: `Show the partitions of ${peer}` },
    make("span", { class: "swatch", style: hue }), peer);
  button.addEventListener("click", () => choose(chosen === peer ? null : peer));
  return button;
}

function choose(peer) {
  chosen = peer;
  $("ring").toggleAttribute("data-chosen", peer !== null);
  for (const path of $("ring").querySelectorAll(".set"))
    path.classList.toggle("chosen", path.dataset.peers.split("\n").includes(peer));
  for (const button of document.querySelectorAll("[data-choose]"))
    button.setAttribute("aria-pressed", button.dataset.choose === peer);
}
