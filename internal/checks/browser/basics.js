// What somebody with a screen reader would miss.
(() => {
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
})()
