// The peers, one row each, and their progress in a topology change.

import { $, bytes, count, duration, make, micros, setText, whole } from "./elements.js";
import { chooser, colours } from "./ring.js";

export function showChange(change) {
  $("change").hidden = change === null;
  if (change === null) return;
  const moves = [[change.joining, "joins", "join"], [change.leaving, "leaves", "leave"]]
    .filter(([peers]) => peers.length)
    .map(([peers, singular, plural]) => `${peers.join(", ")} ${peers.length > 1 ? plural : singular}`);
  const rate = change.rate ? `at most ${bytes(change.rate)}/s per peer` : "";
  const state = change.paused ? "paused" : change.switched ? "all data has moved; the old replicas are cleaned up" : "";
  setText($("change-what"), [moves.join(", ") || "partitions move", rate, state].filter(Boolean).join(" · "));
  const rows = change.transfers.map((transfer) => transferRow(transfer));
  for (const old of [...$("transfers").children]) if (!rows.includes(old)) old.remove();
}

function transferRow(transfer) {
  const id = `transfer-${transfer.peer}`;
  const row = $(id) || make("div", { class: "transfer", id }, make("strong", {}, transfer.peer),
    make("div", { class: "bar", role: "progressbar", "aria-valuemin": 0, "aria-valuemax": 100,
      "aria-label": `Partitions that ${transfer.peer} has streamed` }, make("i")),
    make("span", { class: "progress" }));
  if (!row.parentNode) $("transfers").append(row);
  const percent = transfer.partitions ? Math.floor((100 * transfer.done) / transfer.partitions) : 100;
  const [, bar, progress] = row.children;
  bar.setAttribute("aria-valuenow", percent);
  bar.firstChild.style.width = `${percent}%`;
  const rate = transfer.rate && transfer.done < transfer.partitions ? ` · ${bytes(transfer.rate)}/s` : "";
  setText(progress, `${percent} % of ${whole(transfer.partitions)} partitions · ${bytes(transfer.bytes)}${rate}`);
  return row;
}

const COLUMNS = [
  ["Peer", ""], ["State", ""], ["Read", "number figure"], ["Written", "number figure"],
  ["Handling, p99", "number figure"], ["Commit, p99", "number figure"], ["Records", "number figure"],
  ["Disk", "number figure"], ["Lag", "number"], ["Partitions", "number"], ["Up", "number figure"],
];

export function showPeers(state) {
  const [table] = $("peers").getElementsByTagName("table");
  if (!table.tHead.rows.length)
    table.tHead.append(make("tr", {}, ...COLUMNS.map(([name, kind]) => make("th", { scope: "col", class: kind }, name))));
  const hues = colours(state.members);
  const rows = state.members.map((member) => peerRow(table.tBodies[0], member, hues[member.id]));
  for (const old of [...table.tBodies[0].rows]) if (!rows.includes(old)) old.remove();
  rows.forEach((row, place) => {
    const [now] = [table.tBodies[0].rows[place]];
    if (now !== row) table.tBodies[0].insertBefore(row, now || null);
  });
}

function peerRow(body, member, hue) {
  const id = `peer-${member.id}`;
  const row = $(id) || make("tr", { id, "data-peer": member.id },
    make("td", {}, chooser(member.id, hue), make("small")),
    make("td", { "data-label": "State" }, make("span", { class: "health" }), make("small")),
    ...COLUMNS.slice(2).map(([name, kind]) =>
      make("td", { class: kind, "data-label": name }, make("span"), make("small"))));
  if (!row.parentNode) body.append(row);
  row.dataset.badness = member.badness;
  setCells(row, member);
  return row;
}

function setCells(row, member) {
  const { rates, maintenance } = member;
  const cells = [...row.cells];
  const put = (place, text, below = "") => {
    setText(cells[place].children[0], text);
    setText(cells[place].children[1], below);
  };
  const [health] = cells[1].children;
  health.dataset.badness = member.badness;
  health.toggleAttribute("data-busy", ["joining", "leaving", "asking"].includes(member.health));
  setText(cells[0].children[1], `${member.zone} · ${member.address}`);
  put(1, member.health, member.badness || member.waiting_bytes === null ? "" : waiting(member));
  cells[1].title = member.why;
  const rate = (keys, requests) =>
    member.badness === 2 ? ["–"] : [`${count(keys)} keys/s`, `${count(requests)} requests/s`];
  put(2, ...rate(rates.read_keys, rates.reads));
  put(3, ...rate(rates.written_keys, rates.writes));
  put(4, member.badness === 2 ? "–" : micros(rates.handling_p99));
  put(5, member.badness === 2 ? "–" : micros(rates.commit_p99));
  put(6, count(member.records));
  put(7, bytes(member.used_bytes), member.free_bytes === null ? "" : `${bytes(member.free_bytes)} free`);
  put(8, ...lag(member, maintenance));
  cells[8].children[0].classList.toggle("late", cells[8].children[0].textContent !== "none");
  put(9, whole(member.held));
  put(10, duration(member.uptime_s), member.version || "");
}

function waiting(member) {
  return member.waiting_bytes ? `${bytes(member.waiting_bytes)} wait for the disk` : "";
}

function lag(member, maintenance) {
  if (member.lag) return [`${count(member.lag)} keys`, "missed"];
  return maintenance.streaming ? [whole(maintenance.streaming), "partitions to stream"] : ["none", ""];
}
