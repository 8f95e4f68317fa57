// Draws what /status/events tells. Everything is put in as text, never as HTML.
"use strict";

const byId = (id) => document.getElementById(id);
const drawn = new Map();
let lagDrawn = "";
let xdpDrawn = "";
let skew = 0;

function el(name, attributes, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children.filter((child) => child !== null).map((c) => (c instanceof Node ? c : String(c))));
  return element;
}

function duration(seconds) {
  if (seconds < 1) return `${Number((seconds * 1000).toPrecision(3))} ms`;
  if (seconds < 60) return `${Number(seconds.toFixed(1))} s`;
  const steps = [[86400, "d", 3600, "h"], [3600, "h", 60, "min"], [60, "min", 1, "s"]];
  const [unit, name, part, partName] = steps.find(([unit]) => seconds >= unit);
  return `${Math.floor(seconds / unit)} ${name} ${Math.floor((seconds % unit) / part)} ${partName}`;
}

const count = (n, one, many) => `${n} ${n === 1 ? one : many}`;
const more = (n) => (n > 0 ? ` and ${n} more` : "");
const states = { ready: "good", "not-ready": "wait", draining: "wait", terminating: "bad" };
const modes = {
  always: "always: straight to the pod",
  "cold-start-only": "cold-start-only: straight to the pod while the ClusterIP may lag, then through it",
  disabled: "disabled: through the ClusterIP",
};
const protocols = { http1: "HTTP/1.1", h2c: "HTTP/2 in the clear", https: "TLS" };

function settingsOf(target) {
  const { settings } = target;
  if (settings === null) return [];
  const port = settings.port_name ? `${settings.service_port} (${settings.port_name})` : settings.service_port;
  const tls = settings.tls ? `, certificate for ${settings.tls.server_name}` : "";
  return [
    ["Hosts", target.hosts.join(", ") + more(target.hosts_cut)],
    ["Mode", modes[settings.mode]],
    ["Service port", `${port}, ${protocols[settings.protocol]}${tls}`],
    ["Limit", settings.concurrency === null ? "none" : `${count(settings.concurrency, "request", "requests")} a pod at a time`],
    ["Scales up", settings.scale_target ?? "nothing"],
    ["Holds a request for", `at most ${duration(settings.hold_timeout)}`],
  ];
}

function age(sinceMs) {
  return sinceMs === 0 ? "unknown" : el("span", { "data-since": sinceMs }, duration(Math.max(0, (Date.now() - skew - sinceMs) / 1000)));
}

function row(backend, routed) {
  const state = backend.way === "cluster-ip" ? "" : backend.state ?? "gone";
  const name = backend.pod ?? (backend.way === "cluster-ip" ? "ClusterIP" : "no pod");
  const quarantine = backend.quarantine_seconds;
  return el("tr", {},
    el("th", { scope: "row" }, name),
    el("td", {}, backend.address ?? "none yet"),
    el("td", { class: states[state] ?? "", "data-column": "state" }, state),
    el("td", { "data-column": "source" }, backend.source ?? ""),
    el("td", { class: "number" }, state === "" || state === "gone" ? "" : age(backend.since_ms)),
    ...(routed ? [
      el("td", { class: "number", "data-column": "in-flight" }, backend.in_flight),
      el("td", { class: quarantine === null ? "number" : "number bad" }, quarantine === null ? "no" : `${Math.ceil(quarantine)} s left`),
    ] : []));
}

function table(caption, columns, rows) {
  const head = columns.map(([name, kind]) => el("th", { scope: "col", class: kind ?? "" }, name));
  const body = el("tbody", {}, ...rows);
  return el("div", { class: "scroll" }, el("table", {}, el("caption", {}, caption), el("thead", {}, el("tr", {}, ...head)), body));
}

function draw(name, target, routed) {
  const section = el("section", { "data-target": name }, el("h3", {}, name));
  for (const fault of target.faults) section.append(el("p", { class: "bad", "data-fault": "" }, `Fault: ${fault}`));
  if (target.faults_cut > 0) section.append(el("p", { class: "bad" }, `and ${count(target.faults_cut, "more fault", "more faults")}`));
  if (routed) {
    const held = target.held === 0 ? "0" : `${target.held}, the first for ${duration(target.held_seconds)}`;
    section.append(el("p", {}, "Held requests: ", el("b", { class: target.held > 0 ? "wait" : "", "data-held": target.held }, held),
      ` · in flight: ${target.in_flight}`));
    section.append(el("dl", {}, ...settingsOf(target).flatMap(([key, value]) => [el("dt", {}, key), el("dd", {}, value)])));
  }
  const columns = [["Pod"], ["Address"], ["State"], ["Source"], ["For", "number"]];
  if (routed) columns.push(["In flight", "number"], ["Quarantine", "number"]);
  if (target.backends.length === 0) section.append(el("p", {}, "No endpoints."));
  else section.append(table(`Endpoints of ${name}`, columns, target.backends.map((backend) => row(backend, routed))));
  if (target.backends_cut > 0) section.append(el("p", { class: "wait" }, `${count(target.backends_cut, "endpoint is", "endpoints are")} not shown.`));
  return section;
}

function drawTargets(state) {
  const routed = state.requests !== null;
  const sections = state.targets.map((target) => {
    const name = `${target.namespace}/${target.service}`;
    const json = JSON.stringify([routed, target]);
    if (drawn.get(name)?.json !== json) {
      const section = draw(name, target, routed);
      drawn.get(name)?.section.replaceWith(section);
      drawn.set(name, { json, section });
    }
    return drawn.get(name).section;
  });
  const shown = new Set(sections);
  for (const [name, { section }] of drawn) if (!shown.has(section)) drawn.delete(name);
  const there = byId("targets").children;
  // What stays is left alone: a selection in it survives.
  if (there.length !== sections.length || sections.some((section, n) => there[n] !== section)) byId("targets").replaceChildren(...sections);
}

const because = (why) => (why === null ? "" : `: ${why}`);
const servers = { userspace: "this process", generic: "an XDP program (generic)", native: "an XDP program (native)" };

function drawXdp(xdp) {
  byId("xdp").hidden = xdp === null;
  const json = JSON.stringify(xdp);
  if (xdp === null || json === xdpDrawn) return;
  xdpDrawn = json;
  const leftOut = xdp.left_out === 0 ? "" : ` ${count(xdp.left_out, "more has", "more have")} no room and are 404.`;
  byId("xdp-serving").textContent = `Health checks at ${xdp.listen} are answered by ${servers[xdp.serving]}${because(xdp.why)}. `
    + `${count(xdp.answers, "answer", "answers")} of at most ${xdp.most_answers}.${leftOut}${xdp.alive ? "" : " All is answered 503."}`;
  byId("xdp-serving").className = xdp.alive ? "" : "bad";
  const rows = xdp.interfaces.map((i) => el("tr", {}, el("th", { scope: "row" }, i.name), el("td", {}, i.asked), el("td", {}, `${servers[i.serving]}${because(i.why)}`)));
  byId("xdp-interfaces").replaceChildren(...(rows.length === 0 ? [] : [table("Interfaces", [["Interface"], ["Asked for"], ["Answered by"]], rows)]));
}

function drawLag(lags) {
  const json = JSON.stringify(lags);
  if (json === lagDrawn) return;
  lagDrawn = json;
  byId("lag").replaceChildren(...(lags.length === 0 ? [el("p", {}, "No change has been timed yet.")] : lags.map((lag) => {
    const last = lag.buckets.findLastIndex((bucket) => bucket.count > 0);
    const rows = lag.buckets.slice(0, last + 1).map((bucket, n) => {
      const beyond = n === 0 ? 0 : lag.buckets[n - 1].up_to_seconds;
      const range = bucket.up_to_seconds === null ? `over ${duration(beyond)}` : `up to ${duration(bucket.up_to_seconds)}`;
      const share = (100 * bucket.count) / Math.max(1, lag.count);
      const label = `${share.toFixed(1)} %`;
      return el("tr", {}, el("th", { scope: "row" }, range), el("td", { class: "number" }, bucket.count),
        el("td", {}, el("meter", { min: 0, max: 100, value: share, "aria-label": label }), ` ${label}`));
    });
    const mean = duration(lag.sum_seconds / Math.max(1, lag.count));
    return table(`${lag.source}: ${count(lag.count, "change", "changes")}, mean ${mean}`, [["Lag"], ["Changes", "number"], ["Share"]], rows);
  })));
}

function show({ at_ms: atMs, state }) {
  // Ages are by the activator's clock, whatever this machine's says.
  skew = Date.now() - atMs;
  const { requests } = state;
  byId("replica").textContent = `${state.replica} ${state.version}`;
  byId("ready").textContent = state.ready ? "Ready." : "Not ready.";
  byId("ready").className = state.ready ? "good" : "bad";
  byId("readiness").textContent = state.readiness.join(" · ");
  byId("requests").textContent = requests === null
    ? "This activator takes no requests (it was started without --proxy-listen), so it holds none and sends none. These are all Services and what is known of their endpoints."
    : `${count(requests.held, "request is", "requests are")} held. Services with the annotation podlight.dev/route take requests; ${count(requests.other_services, "other does", "others do")} not.`;
  byId("cut").textContent = state.targets_cut === 0 ? "" : `${count(state.targets_cut, "more target is", "more targets are")} not shown.`;
  drawTargets(state);
  drawXdp(state.xdp);
  drawLag(state.lag);
}

function live(text, lost) {
  byId("live").textContent = text;
  byId("live").className = lost ? "lost" : "";
}

function connect() {
  const events = new EventSource("status/events");
  events.onopen = () => live("Live: this page follows the activator.", false);
  events.onmessage = (event) => show(JSON.parse(event.data));
  events.onerror = () => {
    live("The connection is lost; what is shown is old. Trying again…", true);
    if (events.readyState === EventSource.CLOSED) setTimeout(connect, 5000);
  };
}

setInterval(() => {
  for (const element of document.querySelectorAll("[data-since]")) {
    element.textContent = duration(Math.max(0, (Date.now() - skew - Number(element.dataset.since)) / 1000));
  }
}, 1000);
connect();
