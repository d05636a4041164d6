// The peers, a row each; and what they take in by the change under way.

import { $, bytes, count, duration, make, micros, say, whole } from "./elements.js";
import { chooser, colours } from "./ring.js";

export function showChange(change) {
  $("change").hidden = change === null;
  if (change === null) return;
  const moves = [[change.joining, "joins", "join"], [change.leaving, "leaves", "leave"]]
    .filter(([peers]) => peers.length)
    .map(([peers, one, many]) => `${peers.join(", ")} ${peers.length > 1 ? many : one}`);
  const rate = change.rate ? `at most ${bytes(change.rate)}/s for each peer` : "";
  const state = change.paused ? "paused" : change.switched ? "all has moved; the old replicas are let go" : "";
  say($("change-what"), [moves.join(", ") || "replicas are placed anew", rate, state].filter(Boolean).join(" · "));
  const rows = change.transfers.map((one) => transferRow(one));
  for (const old of [...$("transfers").children]) if (!rows.includes(old)) old.remove();
}

function transferRow(one) {
  const id = `transfer-${one.peer}`;
  const row = $(id) || make("div", { class: "transfer", id }, make("strong", {}, one.peer),
    make("div", { class: "bar", role: "progressbar", "aria-valuemin": 0, "aria-valuemax": 100,
      "aria-label": `Partitions that ${one.peer} has taken` }, make("i")),
    make("span", { class: "said" }));
  if (!row.parentNode) $("transfers").append(row);
  const percent = one.partitions ? Math.floor((100 * one.done) / one.partitions) : 100;
  const [, bar, said] = row.children;
  bar.setAttribute("aria-valuenow", percent);
  bar.firstChild.style.width = `${percent}%`;
  const rate = one.rate && one.done < one.partitions ? ` · ${bytes(one.rate)}/s` : "";
  say(said, `${percent} % of ${whole(one.partitions)} partitions · ${bytes(one.bytes)}${rate}`);
  return row;
}

const COLUMNS = [
  ["Peer", ""], ["State", ""], ["Read", "number figure"], ["Written", "number figure"],
  ["Handling, p99", "number figure"], ["Commit, p99", "number figure"], ["Records", "number figure"],
  ["Disk", "number figure"], ["Lag", "number"], ["Partitions", "number"], ["Up", "number figure"],
];

export function showPeers(facts) {
  const [table] = $("peers").getElementsByTagName("table");
  if (!table.tHead.rows.length)
    table.tHead.append(make("tr", {}, ...COLUMNS.map(([name, kind]) => make("th", { scope: "col", class: kind }, name))));
  const hues = colours(facts.members);
  const rows = facts.members.map((one) => peerRow(table.tBodies[0], one, hues[one.id]));
  for (const old of [...table.tBodies[0].rows]) if (!rows.includes(old)) old.remove();
  rows.forEach((row, place) => {
    const [now] = [table.tBodies[0].rows[place]];
    if (now !== row) table.tBodies[0].insertBefore(row, now || null);
  });
}

function peerRow(body, one, hue) {
  const id = `peer-${one.id}`;
  const row = $(id) || make("tr", { id, "data-peer": one.id },
    make("td", {}, chooser(one.id, hue), make("small")),
    make("td", { "data-label": "State" }, make("span", { class: "health" }), make("small")),
    ...COLUMNS.slice(2).map(([name, kind]) =>
      make("td", { class: kind, "data-label": name }, make("span"), make("small"))));
  if (!row.parentNode) body.append(row);
  row.dataset.badness = one.badness;
  fill(row, one);
  return row;
}

function fill(row, one) {
  const { rates, maintenance } = one;
  const cells = [...row.cells];
  const put = (place, text, below = "") => { say(cells[place].children[0], text); say(cells[place].children[1], below); };
  const [health] = cells[1].children;
  health.dataset.badness = one.badness;
  health.toggleAttribute("data-busy", ["joining", "leaving", "asking"].includes(one.health));
  say(cells[0].children[1], `${one.zone} · ${one.address}`);
  put(1, one.health, one.badness || one.waiting_bytes === null ? "" : waiting(one));
  cells[1].title = one.why;
  const rate = (keys, requests) =>
    one.badness === 2 ? ["–"] : [`${count(keys)} keys/s`, `${count(requests)} requests/s`];
  put(2, ...rate(rates.read_keys, rates.reads));
  put(3, ...rate(rates.written_keys, rates.writes));
  put(4, one.badness === 2 ? "–" : micros(rates.handling_p99));
  put(5, one.badness === 2 ? "–" : micros(rates.commit_p99));
  put(6, count(one.records));
  put(7, bytes(one.used_bytes), one.free_bytes === null ? "" : `${bytes(one.free_bytes)} free`);
  put(8, ...lag(one, maintenance));
  cells[8].children[0].classList.toggle("late", cells[8].children[0].textContent !== "none");
  put(9, whole(one.held));
  put(10, duration(one.uptime_s), one.version || "");
}

function waiting(one) {
  return one.waiting_bytes ? `${bytes(one.waiting_bytes)} wait for the disk` : "";
}

function lag(one, maintenance) {
  if (one.lag) return [`${count(one.lag)} keys`, "missed"];
  return maintenance.streaming ? [whole(maintenance.streaming), "partitions to stream"] : ["none", ""];
}
