// The status page: asks for status.json and shows it. Everything that comes from rows, brokers or
// the server is put into text nodes or attributes by the DOM, never parsed as markup.

import { chart, gauge, known, sign, spark } from "./chart.js";

const every = 2000, slowest = 10000, patience = 8000;
const byId = id => document.getElementById(id);

// el makes an element. Strings among the children become text nodes.
function el(name, attributes, ...children) {
  const e = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) if (value !== null && value !== undefined) e.setAttribute(key, value);
  e.append(...children.flat().filter(c => c !== null && c !== undefined));
  return e;
}

// patch makes old like fresh and leaves alone what is equal, so that focus and selection stay.
function patch(old, fresh) {
  if (old.isEqualNode(fresh)) return;
  if (old.nodeType === Node.TEXT_NODE && fresh.nodeType === Node.TEXT_NODE) {
    old.data = fresh.data;
    return;
  }
  if (old.nodeName !== fresh.nodeName || old.nodeType !== Node.ELEMENT_NODE) {
    old.replaceWith(fresh);
    return;
  }
  for (const a of [...old.attributes]) if (!fresh.hasAttribute(a.name)) old.removeAttribute(a.name);
  for (const a of fresh.attributes) if (old.getAttribute(a.name) !== a.value) old.setAttribute(a.name, a.value);
  fill(old, [...fresh.childNodes]);
}

function fill(parent, children) {
  const had = [...parent.childNodes];
  children.forEach((c, i) => (i < had.length ? patch(had[i], c) : parent.append(c)));
  had.slice(children.length).forEach(c => c.remove());
}

const show = (id, ...children) => fill(byId(id), children.flat().map(c => (typeof c === "string" ? document.createTextNode(c) : c)));

// Numbers for people.
const none = "–";
const count = n => (n === null || n === undefined ? none : Math.round(n).toLocaleString("en"));
function bytes(n) {
  if (n === null || n === undefined) return none;
  if (n < 1024) return `${Math.round(n)} B`;
  for (const unit of ["kB", "MB", "GB", "TB"]) {
    n /= 1024;
    if (n < 1000 || unit === "TB") return `${n < 10 ? n.toFixed(1) : Math.round(n)} ${unit}`;
  }
}
function duration(s) {
  if (s === null || s === undefined || Number.isNaN(s)) return none;
  if (s < 0.0005) return "0 s";
  if (s < 1) return `${s < 0.01 ? (s * 1000).toFixed(1) : Math.round(s * 1000)} ms`;
  if (s < 10) return `${s.toFixed(1)} s`;
  if (s < 120) return `${Math.round(s)} s`;
  if (s < 7200) return `${Math.round(s / 60)} min`;
  if (s < 172800) return `${Math.round(s / 3600)} h`;
  return `${Math.round(s / 86400)} days`;
}
const rate = n => (n > 0 && n < 10 ? n.toFixed(1) : count(n)) + "/s";
const zone = Intl.DateTimeFormat().resolvedOptions().timeZone || "the browser's time zone";
const age = (r, time) => Math.max(0, (Date.parse(r.time) - Date.parse(time)) / 1000);
const clock = time => new Date(time).toLocaleTimeString("en-GB");
const full = time => new Date(time).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "medium" });
const when = time => el("time", { datetime: time, title: full(time) }, clock(time));

const tag = (level, text) => el("span", { class: "tag", "data-level": level }, sign(level), text);
const fact = (name, value, wide) => (value === null || value === "" ? null : el("div", { class: wide ? "wide" : null }, el("dt", {}, name), el("dd", {}, value)));
const empty = text => el("div", { class: "card" }, el("p", { class: "empty" }, text));

// table makes one that a narrow screen shows as a list: its cells carry their column's name, and
// everything its role.
function table(label, columns, rows) {
  const cell = (column, content, first) => el(first ? "th" : "td", {
    role: first ? "rowheader" : "cell", scope: first ? "row" : null, class: column.class, "data-label": column.name,
  }, content);
  return el("div", { class: "card" }, el("table", { role: "table", "aria-label": label },
    el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, columns.map(c => el("th", { role: "columnheader", scope: "col", class: c.class }, c.name)))),
    el("tbody", { role: "rowgroup" }, rows.map(row => el("tr", { role: "row" }, row.map((content, i) => cell(columns[i], content, i === 0)))))));
}

const words = { ok: "all well", info: "", degraded: "degraded", broken: "not ready" };

function verdict(r) {
  const v = r.verdict, box = byId("verdict");
  box.dataset.level = v.level;
  const word = words[v.level] ?? v.level;
  fill(box, [
    sign(v.level),
    el("h1", { id: "summary" }, v.summary, el("span", { class: "word" }, word)),
    v.reasons.length ? el("ul", {}, v.reasons.map(text => el("li", {}, text))) : el("p", { class: "soft" }, calm(r)),
  ]);
  document.title = `${v.level === "ok" ? "" : word + " · "}${v.summary} · ${r.worker_id}`;
}

function calm(r) {
  const owned = r.slots.filter(s => s.role === "owner").map(s => s.slot);
  const refused = (r.database?.ledger || []).filter(e => e.state === "retry" && e.entries > 0);
  if (owned.length && refused.length) {
    const n = refused.reduce((n, e) => n + e.entries, 0), sinks = [...new Set(refused.map(e => e.sink))].join(", ");
    return `Owns ${owned.join(", ")}. ${count(n)} ${n === 1 ? "event was" : "events were"} refused and ${n === 1 ? "waits for its" : "wait for their"} next try: ${sinks}.`;
  }
  if (owned.length) return `Owns ${owned.join(", ")}, and every sink takes what it is offered.`;
  return ["Ready to take over.", ...owners(r)].join(" ");
}

// owners says who owns the slots, a sentence for each relay.
function owners(r) {
  const by = new Map();
  for (const { slot } of r.slots) {
    const found = (r.database?.slots || []).find(s => s.slot === slot);
    const who = found ? found.owner : null;
    by.set(who, [...(by.get(who) || []), slot]);
  }
  return [...by].map(([who, slots]) => {
    const names = slots.join(", ");
    if (who === null) return r.database?.error ? `Who owns ${names} is not known: the database does not answer.` : `Nobody has owned ${names} yet.`;
    return who ? `${who} owns ${names}.` : `Nobody owns ${names} just now.`;
  });
}

function figures(r) {
  const owned = r.slots.filter(s => s.role === "owner" || s.role === "draining");
  const sum = f => owned.reduce((n, s) => n + (f(s) ?? 0), 0);
  const dead = (r.database?.ledger || []).filter(e => e.state === "dead").reduce((n, e) => n + e.entries, 0);
  const knows = f => owned.some(s => f(s) !== null);
  const most = f => Math.max(0, ...owned.map(s => f(s) ?? 0)), some = r.slots.length > owned.length; // the others are not known here
  const one = (name, value, note, level) => el("div", { "data-level": level || null }, el("dt", {}, name), el("dd", {}, value), el("dd", { class: "note" }, note));
  show("figures",
    one("Waiting", owned.length ? count(sum(s => s.pending_events)) : none, owned.length ? `events${some ? " of its slots" : ""}, ${count(sum(s => s.inflight))} in flight` : "this relay owns no slot"),
    one("Lag", owned.length ? duration(most(s => s.lag_seconds)) : none, owned.length ? "age of the oldest in flight" : ""),
    one("WAL behind", owned.length && knows(s => s.lag_bytes) ? bytes(most(s => s.lag_bytes)) : none, owned.length > 1 ? "of the slot furthest behind" : owned.length ? "written, not confirmed" : ""),
    one("Rate", rate(r.sinks.reduce((n, s) => n + s.rate, 0)), r.sinks.length > 1 ? "events, all sinks together" : "events acknowledged"),
    one("Dead letters", r.database?.ledger === undefined ? none : count(dead), dead ? "sagaz-relay dead-letter list" : r.database?.ledger === undefined ? "not known" : "none waits for a person", dead ? "degraded" : null));
}

function figure(r, title, values, now, format, options) {
  const seen = known(values);
  const peak = seen.length ? Math.max(...seen) : null;
  const minutes = Math.round(values.length * r.history.every_seconds / 60);
  const { el: drawing, top } = chart(values, { ...options, label: `${title} over the last ${minutes} minutes: now ${now}, highest ${format(peak)}` });
  return el("figure", {}, el("figcaption", {}, title, el("b", {}, now)), drawing,
    el("div", { class: "axis", "aria-hidden": "true" }, el("span", {}, `${minutes} min ago`), el("span", {}, peak === null ? "no samples yet" : `scale ${format(top)}, highest ${format(peak)}`), el("span", {}, "now")));
}

const roles = { owner: "ok", standby: "info", draining: "degraded", starting: "info" };
const walLevels = { reserved: "ok", extended: "degraded", unreserved: "broken", lost: "broken" };

function slot(r, s) {
  const owns = s.role === "owner" || s.role === "draining";
  const shared = (r.database?.slots || []).find(d => d.slot === s.slot);
  const lag = s.lag_bytes ?? shared?.lag_bytes ?? null, retained = s.retained_bytes ?? shared?.retained_bytes ?? null;
  const status = s.wal_status || shared?.wal_status || "";
  const h = r.history.slots[s.slot];
  const mode = { cdc: s.streaming ? "streaming" : "connecting", polling: "polling", recovering: "recovering" }[s.mode];
  const share = s.cap_bytes ? retained / s.cap_bytes : 0;
  const level = share > 0.9 ? "broken" : share > 0.5 ? "degraded" : "info";
  const kept = s.cap_bytes
    ? [`${bytes(retained)} of ${bytes(s.cap_bytes)} (${Math.round(share * 100)}\u00a0%)`, gauge(share, level, `${Math.round(share * 100)} % of max_slot_wal_keep_size is retained`)]
    : owns && retained !== null ? `${bytes(retained)}, without a limit` : bytes(retained);
  const facts = [
    fact("Owner", owns ? el("span", { class: "mono" }, r.worker_id) : shared?.owner ? el("span", { class: "mono" }, shared.owner) : "nobody known"),
    fact("Epoch", count(s.epoch || shared?.epoch || null)),
    fact(owns ? "Owned for" : s.role === "starting" ? "Starting for" : "Standing by for", duration(age(r, s.since))),
    owns ? fact("Finds events by", [mode || s.mode, s.stream_since_seconds ? ` for ${duration(s.stream_since_seconds)}` : ""].join("")) : null,
    owns && s.waits_for ? fact("Waits for", [{ server: "PostgreSQL", claims: "another worker's claims", sink: "a sink that is down", room: "room for a large event" }[s.waits_for] || s.waits_for, `for ${duration(s.waits_seconds)}`].join(", ")) : null,
    fact("RELAY_MODE", r.wanted_mode),
    owns ? fact("In flight", `${count(s.inflight)} of ${count(s.inflight_limit)} events, ${bytes(s.inflight_bytes)} of ${bytes(s.inflight_bytes_limit)}`) : null,
    fact("WAL retained", kept),
    fact("WAL status", status ? tag(walLevels[status] || "info", status) : none),
    owns ? fact("WAL left before loss", s.safe_bytes !== null ? bytes(s.safe_bytes) : status === "lost" ? "none" : status && s.cap_bytes === null ? "no limit" : none) : fact("WAL behind", bytes(lag)),
    owns ? fact("Since the lease was taken", `${count(s.marked)} marked, ${count(s.swept)} found in the table`) : null,
    owns ? fact("Confirmed up to", el("span", { class: "mono" }, s.watermark)) : null,
    owns && s.why ? fact("Why", el("span", { class: "said" }, s.why), true) : null,
  ];
  const charts = owns && h ? el("div", { class: "charts" },
    figure(r, "WAL behind", h.lag_bytes, bytes(lag), bytes, { least: 1024 * 1024, base: 1024 }),
    figure(r, "Lag", h.lag_seconds, duration(s.lag_seconds), duration, { least: 1 }),
    figure(r, "WAL retained", h.retained_bytes, bytes(retained), bytes, { least: 16 * 1024 * 1024, base: 1024, cap: s.cap_bytes })) : null;
  return el("article", { class: "card slot", "aria-label": `Slot ${s.slot}` },
    el("header", {}, el("h3", { class: "mono" }, s.slot), tag(s.gives_back ? "info" : roles[s.role] || "info", s.gives_back ? "giving back" : s.role), mode ? tag(s.streaming || s.why === "RELAY_MODE=polling" ? "ok" : "degraded", mode) : null),
    charts, el("dl", { class: "facts" }, facts));
}

// setChange shows a change of the number of slots that is under way.
function setChange(r) {
  const c = r.set?.change;
  if (!c) return [];
  const state = { making: "the new slots are being made", draining: "the old slots are read up to the switch" }[c.state] || c.state;
  const columns = [{ name: "Old slot" }, { name: "Owner" }, { name: "Left to the switch", class: "number" }, { name: "State" }];
  return [
    el("article", { class: "card slot", "aria-label": "Change of the number of slots" },
      el("header", {}, el("h3", {}, `From ${count(r.set.shards)} to ${count(c.target)} slots`), tag("info", c.state)),
      el("dl", { class: "facts" }, [
        fact("Now", state), fact("Under way for", duration(c.seconds)), fact("Worked on by", c.changer ? el("span", { class: "mono" }, c.changer) : "nobody yet"),
        c.switch ? fact("Switch at", el("span", { class: "mono" }, c.switch)) : null,
        fact("Waits for", el("span", { class: "said" }, c.waits_for), true),
      ])),
    c.old_slots.length ? table("Old slots", columns, c.old_slots.map(o => [
      el("span", { class: "mono" }, o.slot), o.owner ? el("span", { class: "mono" }, o.owner) : o.stopped ? "nobody, as it should be" : tag("degraded", "nobody"), bytes(o.left_bytes),
      o.stopped ? tag("ok", "through") : o.left_bytes === 0 ? tag("info", "finishing") : tag("info", "delivering")])) : [],
  ].flat();
}

// slots shows those that this relay works on as cards. The others are a table where there are
// several.
function slots(r) {
  const works = s => s.role === "owner" || s.role === "draining";
  const cards = r.slots.length > 1 ? r.slots.filter(works) : r.slots, rest = r.slots.filter(s => !cards.includes(s));
  const columns = [{ name: "Slot" }, { name: "Here" }, { name: "Owner" }, { name: "Epoch", class: "number" }, { name: "Owned for", class: "number" }, { name: "WAL behind", class: "number" }, { name: "WAL retained", class: "number" }, { name: "WAL status" }];
  const others = rest.map(s => {
    const d = (r.database?.slots || []).find(d => d.slot === s.slot);
    return [
      el("span", { class: "mono" }, s.slot), tag(roles[s.role] || "info", s.role), d?.owner ? el("span", { class: "mono" }, d.owner) : d ? tag("degraded", "nobody") : "nobody known",
      count(d?.epoch || null), d?.taken_at ? duration(age(r, d.taken_at)) : none, bytes(d?.lag_bytes ?? null), bytes(d?.retained_bytes ?? null), d?.wal_status ? tag(walLevels[d.wal_status] || "info", d.wal_status) : none,
    ];
  });
  if (!r.slots.length) return show("slots", empty("Not known yet: the database has them."));
  show("slots", setChange(r), cards.map(s => slot(r, s)), rest.length ? [table("Slots that this relay does not own", columns, others)] : []);
}

function sinks(r) {
  const columns = [{ name: "Sink" }, { name: "State" }, { name: "Rate", class: "number" }, { name: "Last 15 min", class: "trend" }, { name: "p99 to acknowledge", class: "number" },
    { name: "In ledger", class: "number" }, { name: "Last error", class: "error" }];
  show("sinks", table("Sinks", columns, r.sinks.map(s => {
    const [level, state] = s.isolated ? ["broken", "isolated"] : s.up ? ["ok", "up"] : ["degraded", "down"];
    const series = r.history.sinks[s.sink]?.rate || [];
    return [
      s.kind && s.kind !== s.sink ? el("span", {}, el("span", { class: s.sink.length <= 24 ? "whole" : null }, s.sink), el("span", { class: "soft whole" }, ` ${s.kind}`)) : s.sink,
      el("span", {}, tag(level, state), s.since ? el("span", { class: "soft whole" }, ` for ${duration(age(r, s.since))}`) : ""),
      rate(s.rate),
      spark(series, `Events a second to ${s.sink}: now ${rate(s.rate)}, highest ${rate(Math.max(0, ...known(series)))}`),
      s.p99_seconds === null ? none : duration(s.p99_seconds),
      count(s.ledger),
      s.last_error ? el("span", {}, el("span", { class: "said" }, s.last_error), el("span", { class: "soft" }, ` ${duration(age(r, s.last_error_at))} ago`)) : el("span", { class: "soft" }, "none"),
    ];
  })));
}

function ledger(r) {
  const d = r.database;
  if (!d?.ledger) return show("ledger", empty(d?.error ? `The database does not answer: ${d.error}` : "Not known yet."));
  if (!d.ledger.length) return show("ledger", empty("Empty: every event so far was delivered at the first try, or since."));
  const columns = [{ name: "State" }, { name: "Sink" }, { name: "Reason" }, { name: "Entries", class: "number" }, { name: "Oldest" }];
  const meaning = { retry: "to be offered, or waits for its next try", held: "behind another of its key", dead: "dead letter", unmarked: "delivered, the row does not take its mark" };
  show("ledger", table("Ledger by state and reason", columns, d.ledger.map(e => [
    tag(e.state === "dead" ? "broken" : "degraded", meaning[e.state] || e.state), e.sink, el("span", { class: "mono" }, e.reason || none), count(e.entries), `${duration(age(r, e.oldest))} ago`])));
}

const percent = share => `${(Math.floor(share * 1000) / 10).toFixed(1)} %`; // never rounded up to all of them

// marks shows how many of the table's updates were HOT: lately, which only the relay that reports
// for the table knows, and since its statistics began.
function marks(r) {
  const d = r.database;
  const recent = r.slots.map(s => s.hot_share).find(s => s !== null && s !== undefined);
  const total = d?.updates >= 100 ? d.hot_updates / d.updates : undefined;
  const share = recent ?? total;
  if (share === undefined) return show("marks", empty(d?.updates === undefined ? "Not known yet." : "Too few updates of the table to know whether they are HOT."));
  const hot = share >= 0.9;
  const all = total === undefined ? null : `${percent(total)} of all ${count(d.updates)}`;
  show("marks", el("div", { class: "card marks" }, el("p", {}, el("b", {}, percent(share) + " "), tag(hot ? "ok" : "degraded", hot ? "HOT" : "not HOT")),
    el("p", { class: "soft" }, recent === undefined ? `of all ${count(d.updates)} updates of the table touched no index.` : "of the table's updates in the last 5 minutes touched no index" + (all ? `; ${all}.` : ".")),
    hot ? null : el("p", { class: "soft" }, "Each other one writes to all of them: ", el("span", { class: "mono" }, "sagaz-relay doctor"), " says what helps.")));
}

const kinds = {
  standby: "standby", lease_taken: "lease taken", lease_lost: "lease lost", released: "lease released", draining: "draining", streaming: "streaming", interrupted: "interrupted",
  polling: "polling", recovering: "recovering", slot_gone: "slot accident", sink_down: "sink down", sink_up: "sink up", sink_isolated: "sink isolated", events_isolated: "events isolated", sink_added: "sink added", sink_removed: "sink removed", dead_letter: "dead letter", rows_unmarked: "rows not marked", divided: "slots changed",
};

// kind names a change; the end of one that has no name of its own for it is no accident any more.
const kind = c => c.kind === "rows_unmarked" && c.level === "ok" ? "rows marked" : kinds[c.kind] || c.kind;

function changes(r) {
  if (!r.changes.length) return show("changes", empty("None yet."));
  show("changes", el("ol", { class: "card log", reversed: "" }, r.changes.map(c => el("li", { "data-level": c.level },
    when(c.time),
    el("span", { class: "what" }, sign(c.level), kind(c)),
    el("span", { class: "said" }, c.text, c.times > 1 ? el("b", {}, ` ×${count(c.times)}`) : null),
    el("span", { class: "about soft" }, [c.sink, c.slot].filter(Boolean).join(" · "))))));
}

// announce reads to a screen reader what has changed, and only that: a new verdict at once, what
// flaps not more than every ten seconds.
const pause = 10000;
let announced = null, state = null, spoken = -pause;
function announce(r) {
  const newest = r.changes[0], now = `${r.verdict.summary}, ${words[r.verdict.level]}`;
  const key = JSON.stringify([now, newest?.time]);
  if (announced === key || now === state && performance.now() - spoken < pause) return;
  if (announced !== null) byId("announce").textContent = newest ? `${now}. ${[newest.sink || newest.slot, kind(newest), newest.text].filter(Boolean).join(", ")}` : now;
  if (announced !== null) spoken = performance.now();
  announced = key;
  state = now;
}

let last = null; // the last answer
function render(r) {
  last = r;
  byId("worker").textContent = r.worker_id;
  verdict(r);
  figures(r);
  slots(r);
  sinks(r);
  ledger(r);
  marks(r);
  changes(r);
  show("build", `Version ${r.version}${r.revision ? ` (${r.revision.slice(0, 12)})` : ""}, up for ${duration(age(r, r.started))}. Times are in ${zone}.`);
  announce(r);
}

function live(on, text) {
  byId("live").dataset.on = on ? "yes" : "no";
  byId("live").textContent = text;
  document.body.dataset.stale = on || !last ? "no" : "yes";
}

let wait = every, timer = 0, asking = false;
async function ask() {
  if (asking) return;
  asking = true;
  clearTimeout(timer);
  try {
    const answer = await fetch("status.json", { cache: "no-store", signal: AbortSignal.timeout(patience) });
    if (answer.status === 401) throw new Error("a token is needed: reload the page");
    if (!answer.ok) throw new Error(`status.json: ${answer.status}`);
    const r = await answer.json();
    render(r);
    live(true, `live, ${clock(r.time)}`);
    wait = every;
  } catch (e) {
    const why = e instanceof TypeError || e.name === "TimeoutError" ? "no answer" : e.message;
    live(false, last ? `${why} since ${clock(last.time)}` : why);
    wait = Math.min(slowest, wait * 1.5);
  }
  asking = false;
  if (!document.hidden) timer = setTimeout(ask, wait);
}

document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : ask()));
ask();
