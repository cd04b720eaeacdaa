package browser

// contrast returns the texts whose contrast is below what WCAG 2 calls AA: 4.5, or 3 for large ones.
const contrast = `(() => {
	const channel = c => { c /= 255; return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; };
	const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
	const parse = s => { const m = s.match(/[\d.]+/g).map(Number); return { rgb: m.slice(0, 3), alpha: m.length > 3 ? m[3] : 1 }; };
	const ground = e => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c.alpha === 1) return c.rgb; } return [255, 255, 255]; };
	const low = new Set();
	const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
	let seen = 0;
	while (walk.nextNode()) {
		const e = walk.currentNode.parentElement, text = walk.currentNode.data.trim();
		if (!text || e.closest(".unseen, .skip, noscript, thead") || !e.getClientRects().length) continue;
		seen++;
		const style = getComputedStyle(e), a = light(parse(style.color).rgb), b = light(ground(e));
		const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
		const size = parseFloat(style.fontSize), large = size >= 24 || size >= 18.66 && style.fontWeight >= 700;
		if (ratio < (large ? 3 : 4.5)) low.add(ratio.toFixed(2) + " " + text.slice(0, 40) + " " + style.color + " on " + ground(e));
	}
	if (seen < 60) low.add("only " + seen + " texts were found");
	return [...low];
})()`

// basics returns what somebody with a screen reader would miss.
const basics = `(() => {
	const out = [], all = s => [...document.querySelectorAll(s)];
	const want = (ok, what) => { if (!ok) out.push(what); };
	want(document.documentElement.lang === "en", "no language");
	want(document.title.length > 10, "no title");
	for (const landmark of ["body > header", "main", "body > footer", "nav[aria-label]"]) want(all(landmark).length === 1, landmark + " occurs " + all(landmark).length + " times");
	want(all("h1").length === 1, all("h1").length + " headings of level 1");
	let level = 0;
	for (const h of all("h1, h2, h3, h4")) { const n = Number(h.tagName[1]); want(n <= level + 1, "heading skips a level: " + h.textContent); level = n; }
	for (const s of all("section")) { const by = s.getAttribute("aria-labelledby"); want(by && document.getElementById(by)?.textContent.trim(), "section without a name"); }
	want(all("#announce[role=status][aria-live=polite]").length === 1, "no polite announcement");
	for (const t of all("table")) {
		want(t.getAttribute("aria-label"), "table without a name");
		for (const h of t.querySelectorAll("thead th")) want(h.scope === "col" && h.textContent, "column without a header");
		for (const row of t.querySelectorAll("tbody tr")) want(row.querySelector("th[scope=row]"), "row without a header");
	}
	want(all("table").length >= 2, "only " + all("table").length + " tables");
	for (const i of all("img")) want(i.hasAttribute("alt"), "image without alt");
	for (const s of all("svg")) want(s.getAttribute("aria-hidden") === "true" || s.getAttribute("role") === "img" && s.getAttribute("aria-label"), "drawing without a text: " + s.outerHTML.slice(0, 80));
	want(all("svg[role=img]").length >= 5, "only " + all("svg[role=img]").length + " charts");
	for (const s of all(".tag, .verdict, .what")) want(s.querySelector("svg") && s.textContent.trim(), "a state told by colour alone: " + s.textContent);
	const ids = all("[id]").map(e => e.id);
	want(new Set(ids).size === ids.length, "an id occurs twice");
	for (const d of all("dl")) want([...d.children].every(c => c.tagName === "DIV" && c.querySelector("dt") && c.querySelector("dd")), "a list of facts with something else in it");
	for (const a of all("a")) want(a.textContent.trim(), "link without a text");
	return out;
})()`
