// The dashboard of one peer: asks for the state of the cluster once a second and draws it.

import { $, bytes, count, make, micros, say, sum } from "./elements.js";
import { latest, remember, showLoad } from "./load.js";
import { showChange, showPeers } from "./peers.js";
import { showRing } from "./ring.js";

const EVERY = 1000; // milliseconds
let last = null; // what the peer said last
let polls = 0;
let failures = 0;

function showVerdict(facts) {
  const badness = Math.max(0, ...facts.alerts.map((one) => one.badness));
  const well = facts.change ? "All is well, data is moving" : "All is well";
  tell(badness, [well, "Degraded", "Broken"][badness]);
  say($("cluster"), facts.cluster);
  say($("origin"), `seen from ${facts.peer} · epoch ${facts.epoch} · ${facts.version}`);
  showAlerts(facts.alerts);
}

function tell(badness, text) {
  $("verdict").dataset.badness = badness;
  say($("verdict"), text);
  const mark = ["", "▲ ", "✕ "][badness];
  document.title = `${mark}dstash ${last ? last.cluster : ""}`;
}

function showAlerts(alerts) {
  const said = JSON.stringify(alerts);
  if ($("alerts").dataset.said === said) return;
  $("alerts").dataset.said = said;
  const words = ["Note", "Degraded", "Broken"];
  $("alerts").replaceChildren(...alerts.map((one) =>
    make("li", { "data-badness": one.badness }, make("b", {}, words[one.badness]), one.text)));
}

function showTiles(facts) {
  const members = facts.members;
  const up = members.filter((one) => one.badness < 2).length;
  const now = latest();
  const records = sum(members.map((one) => one.records));
  show("Peers", `${up}`, ` of ${members.length}`);
  show("Keys read", count(now.read_keys), " /s");
  show("Keys written", count(now.written_keys), " /s");
  show("Handling, p99", ...split(micros(now.handling_p99)));
  show("Commit, p99", ...split(micros(now.commit_p99)));
  show("Records", count(records), facts.replicas > 1 ? ` in ${facts.replicas} copies` : "");
  show("On disk", ...split(bytes(sum(members.map((one) => one.used_bytes)))));
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
  say($(id).firstChild, value);
  say($(id).lastChild, unit);
}

async function ask(path) {
  const answer = await fetch(path, { signal: AbortSignal.timeout(4000), cache: "no-store" });
  if (!answer.ok) throw new Error(`${path} answered ${answer.status}`);
  return answer.json();
}

async function poll() {
  try {
    last = await ask("/dashboard/cluster");
    // Others tell of their past only when they are first asked: look a few times, then rarely.
    if (polls < 4 || polls % 30 === 0) remember(await ask("/dashboard/load"));
    polls += 1;
    failures = 0;
    document.body.classList.remove("stale");
    draw();
  } catch (error) {
    failures += 1;
    document.body.classList.add("stale");
    tell(2, "No answer");
    const text = `the peer at ${location.host} does not answer this page: it has stopped, or the network is gone`;
    if (failures > 1) showAlerts([{ badness: 2, text }]);
    if (!(error instanceof TypeError)) console.error(error);
  }
}

function draw() {
  if (last === null) return;
  remember(last.load);
  showVerdict(last);
  showTiles(last);
  showChange(last.change);
  showRing(last);
  showLoad();
  showPeers(last);
}

async function live() {
  for (;;) {
    if (!document.hidden) await poll();
    await new Promise((done) => setTimeout(done, EVERY));
  }
}

addEventListener("resize", () => { if (last !== null) showLoad(); });
live();
