// Charts as inline SVG. Values are numbers or null; null leaves a gap.

const NS = "http://www.w3.org/2000/svg";

export function svg(name, attributes, ...children) {
  const el = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) el.setAttribute(key, value);
  el.append(...children);
  return el;
}

const W = 360, H = 64;

// A round number at or above the largest value, so that the scale does not jump with each sample.
// base is 1024 for bytes, which are round in their units.
export function ceiling(max, least, base = 1) {
  if (!(max > least)) return least;
  const whole = base > 1 ? base ** Math.floor(Math.log(max) / Math.log(base)) : 1;
  const unit = whole * 10 ** Math.floor(Math.log10(max / whole));
  for (const step of [1, 2, 5, 10]) if (max <= step * unit) return step * unit;
  return max;
}

// The lines and areas of a series, one for each run without a gap.
function runs(values, top) {
  const x = i => (values.length < 2 ? W : i * W / (values.length - 1));
  const y = v => H - Math.min(1, v / top) * (H - 2);
  const out = [];
  let from = -1;
  for (let i = 0; i <= values.length; i++) {
    const known = i < values.length && values[i] !== null;
    if (known && from < 0) from = i;
    if (known || from < 0) continue;
    const points = [];
    for (let j = from; j < i; j++) points.push(`${x(j).toFixed(1)} ${y(values[j]).toFixed(1)}`);
    if (points.length === 1) points.unshift(`${Math.max(0, x(from) - 2).toFixed(1)} ${y(values[from]).toFixed(1)}`);
    const line = "M" + points.join("L");
    const first = points[0].split(" ")[0], last = points[points.length - 1].split(" ")[0];
    out.push(svg("path", { class: "area", d: `${line}L${last} ${H}L${first} ${H}Z` }), svg("path", { class: "stroke", d: line }));
    from = -1;
  }
  return out;
}

export function known(values) {
  return values.filter(v => v !== null);
}

// A chart over its whole box. label is its text alternative; cap, if given and in reach, is a limit
// that is drawn.
export function chart(values, { label, least, base, cap }) {
  const max = Math.max(0, ...known(values));
  const near = cap && max > cap / 2;
  const top = near ? Math.max(cap, max) * 1.05 : ceiling(max, least, base);
  const el = svg("svg", { viewBox: `0 0 ${W} ${H}`, preserveAspectRatio: "none", role: "img", "aria-label": label },
    svg("line", { class: "rule", x1: 0, x2: W, y1: H, y2: H }), svg("line", { class: "rule", x1: 0, x2: W, y1: 1, y2: 1 }));
  el.append(...runs(values, top));
  if (near) {
    const y = H - cap / top * (H - 2);
    el.append(svg("line", { class: "cap", x1: 0, x2: W, y1: y, y2: y }));
  }
  return { el, top };
}

export function spark(values, label) {
  const el = svg("svg", { class: "spark", viewBox: `0 0 ${W} ${H}`, preserveAspectRatio: "none", role: "img", "aria-label": label },
    svg("line", { class: "rule", x1: 0, x2: W, y1: H, y2: H }));
  el.append(...runs(values, ceiling(Math.max(0, ...known(values)), 1)));
  return el;
}

// A share of a whole as a bar.
export function gauge(share, level, label) {
  return svg("svg", { class: "gauge", viewBox: "0 0 100 6", preserveAspectRatio: "none", role: "img", "aria-label": label, "data-level": level },
    svg("rect", { x: 0, y: 0, height: 6, width: (Math.min(1, Math.max(0, share)) * 100).toFixed(1) }));
}

// Signs whose shape has the meaning of their colour.
const shapes = {
  ok: ["path", { d: "M1.5 6.5l3 3L10.5 2.5", fill: "none", stroke: "currentColor", "stroke-width": 2 }],
  info: ["circle", { cx: 6, cy: 6, r: 4, fill: "none", stroke: "currentColor", "stroke-width": 2 }],
  degraded: ["path", { d: "M6 1L11.5 11H.5Z", fill: "currentColor" }],
  broken: ["path", { d: "M2 2l8 8M10 2l-8 8", fill: "none", stroke: "currentColor", "stroke-width": 2.4 }],
};

export function sign(level) {
  const [name, attributes] = shapes[level] || shapes.info;
  return svg("svg", { viewBox: "0 0 12 12", "aria-hidden": "true" }, svg(name, attributes));
}
