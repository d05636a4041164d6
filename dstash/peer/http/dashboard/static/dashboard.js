// The dashboard of one peer: fetches the state of the cluster once a second and draws it.

import { $, bytes, count, make, micros, setText, sum } from "./elements.js";
import { latest, remember, showLoad } from "./load.js";
import { showChange, showPeers } from "./peers.js";
import { showRing } from "./ring.js";

const POLL_INTERVAL_MS = 1000;
let last = null; // the last answer of the peer
let polls = 0;
let failures = 0;

function showHealth(state) {
  const badness = Math.max(0, ...state.alerts.map((alert) => alert.badness));
  const healthy = state.change ? "All is well, data is moving" : "All is well";
  showVerdict(badness, [healthy, "Degraded", "Broken"][badness]);
  setText($("cluster"), state.cluster);
  setText($("origin"), `seen from ${state.peer} · epoch ${state.epoch} · ${state.version}`);
  showAlerts(state.alerts);
}

function showVerdict(badness, text) {
  $("verdict").dataset.badness = badness;
  setText($("verdict"), text);
  const mark = ["", "▲ ", "✕ "][badness];
  document.title = `${mark}dstash ${last ? last.cluster : ""}`;
}

function showAlerts(alerts) {
  const shown = JSON.stringify(alerts);
  if ($("alerts").dataset.shown === shown) return;
  $("alerts").dataset.shown = shown;
  const words = ["Note", "Degraded", "Broken"];
  $("alerts").replaceChildren(...alerts.map((alert) =>
    make("li", { "data-badness": alert.badness }, make("b", {}, words[alert.badness]), alert.text)));
}

function showTiles(state) {
  const members = state.members;
  const up = members.filter((member) => member.badness < 2).length;
  const now = latest();
  const records = sum(members.map((member) => member.records));
  show("Peers", `${up}`, ` of ${members.length}`);
  show("Keys read", count(now.read_keys), " /s");
  show("Keys written", count(now.written_keys), " /s");
  show("Handling, p99", ...split(micros(now.handling_p99)));
  show("Commit, p99", ...split(micros(now.commit_p99)));
  const copies = Math.min(state.replicas, state.copies);
  show("Records", count(records), copies > 1 ? ` in ${copies} copies` : "");
  show("On disk", ...split(bytes(sum(members.map((member) => member.used_bytes)))));
}

function split(text) {
  const [number, ...unit] = text.split(" ");
  return [number, unit.length ? ` ${unit.join(" ")}` : ""];
}

function show(name, value, unit) {
  const id = `tile-${name}`;
  if (!$(id)) {
    $("tiles").append(make("div", {}, make("dt", {}, name),
      make("dd", { id }, make("span"), make("small"))));
  }
  setText($(id).firstChild, value);
  setText($(id).lastChild, unit);
}

async function request(path) {
  const answer = await fetch(path, { signal: AbortSignal.timeout(4000), cache: "no-store" });
  if (!answer.ok) throw new Error(`${path} answered ${answer.status}`);
  return answer.json();
}

async function poll() {
  try {
    last = await request("/dashboard/cluster");
    // The peer has the history of the other peers a few seconds after the page was opened: fetch
    // the load several times at first, then rarely.
    if (polls < 4 || polls % 30 === 0) remember(await request("/dashboard/load"));
    polls += 1;
    failures = 0;
    document.body.classList.remove("stale");
    draw();
  } catch (error) {
    failures += 1;
    document.body.classList.add("stale");
    showVerdict(2, "No answer");
    const text = `the peer at ${location.host} does not answer this page: it has stopped, or the network is down`;
    if (failures > 1) showAlerts([{ badness: 2, text }]);
    if (!(error instanceof TypeError)) console.error(error);
  }
}

function draw() {
  if (last === null) return;
  remember(last.load);
  showHealth(last);
  showTiles(last);
  showChange(last.change);
  showRing(last);
  showLoad();
  showPeers(last);
}

async function live() {
  for (;;) {
    if (!document.hidden) await poll();
    await new Promise((done) => setTimeout(done, POLL_INTERVAL_MS));
  }
}

addEventListener("resize", () => { if (last !== null) showLoad(); });
live();
