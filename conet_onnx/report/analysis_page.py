"""The page around an analysis: template, style and script, with nothing in them that a network would be asked for."""

from __future__ import annotations

from string import Template

__all__ = ["PAGE", "SCRIPT", "STYLE"]

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline'; \
style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>$style</style>
<style id="hot"></style>
</head>
<body>
<main>
$body
</main>
<script type="application/json" id="facts">$facts</script>
<script>$script</script>
</body>
</html>
""")

# A width's colour is a hue; how light it is depends on what it is used for, and on whether it is day.
STYLE = """
:root { --l: .86; --c: .085; --wl: .66; --wc: .14; --box: #eceff2; }
@media screen and (prefers-color-scheme: dark) { :root { --l: .43; --c: .085; --wl: .6; --wc: .12; --box: #262d35; } }
main { max-width: 1480px; }
rect[class^="h"] { fill: oklch(var(--l) var(--c) var(--h)); }
path { fill: none; stroke: var(--faint); stroke-width: 1.3; opacity: .75; }
path[class] { stroke: oklch(var(--wl) var(--wc) var(--h)); stroke-width: 2; }
.k { display: inline-block; width: 13px; height: 13px; border-radius: 3px; margin-right: 8px; vertical-align: -1px;
  background: oklch(var(--wl) var(--wc) var(--h)); }
.stage { display: grid; grid-template-columns: minmax(0, 1fr) 340px; border: 1px solid var(--rule); border-radius: 8px;
  overflow: hidden; margin-top: 12px; height: min(76vh, 900px); }
#view { overflow: auto; cursor: grab; background: var(--paper); }
#view:focus-visible { outline: 2px solid var(--front); outline-offset: -2px; }
#view.drag { cursor: grabbing; user-select: none; }
#graph { display: block; margin: 0 auto; }
svg { font: 600 12px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
svg text { fill: var(--ink); pointer-events: none; }
svg .n { font-size: 10px; font-weight: 400; }
svg .w { text-anchor: end; font-size: 11px; font-weight: 500; }
svg .f { fill: var(--box); }
svg .o { fill: transparent; stroke: color-mix(in srgb, var(--ink) 28%, transparent); }
svg .mix .o { stroke: var(--ink); stroke-dasharray: 3 3; }
#graph .b { cursor: pointer; }
#graph .b:hover .o { stroke: var(--ink); }
#graph .found .o { stroke: var(--best); stroke-width: 3; }
#graph .chosen .o { stroke: var(--ink); stroke-width: 2.5; stroke-dasharray: none; }
#about { border-left: 1px solid var(--rule); background: var(--panel); padding: 14px 18px 24px; overflow: auto;
  font-size: 14px; line-height: 1.45; }
#about h3 { font-size: 15.5px; margin: 0 0 4px; overflow-wrap: anywhere; }
#about h4 { font-size: 13px; margin: 16px 0 2px; color: var(--muted); font-weight: 600; }
#about p { margin: 2px 0; }
#about ul { margin: 2px 0; padding: 0; list-style: none; }
#about li { padding: 2px 0; overflow-wrap: anywhere; }
#about li.axis { padding-left: 12px; color: var(--muted); }
button, .tools input, .tools select { font: inherit; font-size: 14px; color: inherit; background: var(--paper);
  border: 1px solid var(--rule); border-radius: 6px; padding: 4px 10px; }
button { cursor: pointer; }
button:hover { border-color: var(--faint); }
:is(button, input, select, a):focus-visible { outline: 2px solid var(--front); outline-offset: 1px; }
.link { border: 0; padding: 0; background: none; color: var(--front); text-align: left; overflow-wrap: anywhere; }
.link:hover { text-decoration: underline; }
.tools { display: flex; flex-wrap: wrap; gap: 8px; align-items: center; margin-top: 12px; font-size: 14px; }
.tools input { flex: 1 1 200px; max-width: 340px; min-width: 0; }
.tools output { color: var(--muted); min-width: 7em; }
.tools .zoom { margin-left: auto; display: flex; gap: 6px; }
.wide { overflow: auto; max-height: 640px; margin-top: 12px; }
.wide th, .wide td { font-size: 14px; padding: 5px 0 5px 20px; }
.wide th:first-child, .wide td:first-child { padding-left: 0; }
.wide thead th { position: sticky; top: 0; background: var(--paper); z-index: 1; }
.wide td.text { min-width: 9em; }
.wide tbody th { color: var(--ink); }
.wide thead button { border: 0; padding: 0; background: none; font-weight: 600; white-space: nowrap; }
.wide thead [aria-sort="ascending"] button::after { content: " \\2191"; }
.wide thead [aria-sort="descending"] button::after { content: " \\2193"; }
#widths tbody tr { cursor: pointer; }
#widths tbody tr:hover, #widths tr.chosen { background: var(--panel); }
#axes tr.away { display: none; }
@media (max-width: 900px) {
  .stage { grid-template-columns: minmax(0, 1fr); grid-template-rows: minmax(0, 3fr) minmax(0, 2fr); height: 86vh; }
  #about { border-left: 0; border-top: 1px solid var(--rule); }
  .tools .zoom { margin-left: 0; }
}
@media print {
  :root { --l: .86; --c: .085; --wl: .66; --wc: .14; --box: #eceff2; }
  .tools, #about { display: none; }
  .wide { overflow: visible; max-height: none; }
  .js .stage { display: none; }
  #strips svg { break-inside: avoid; margin: 3mm 2mm 0 0; vertical-align: top; }
  .wide thead th { position: static; }
  #axes tr.away { display: table-row; }
  section { break-inside: auto; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""

SCRIPT = """
"use strict";
(() => {
  document.documentElement.classList.add("js");
  const facts = JSON.parse(document.getElementById("facts").textContent);
  const view = document.getElementById("view"), graph = document.getElementById("graph");
  const about = document.getElementById("about"), hot = document.getElementById("hot");
  const boxes = [...graph.querySelectorAll(".b")];
  const widths = new Map(facts.widths.map((width) => [width.id, width]));
  const size = [graph.width.baseVal.value, graph.height.baseVal.value];

  // Zoom and pan: the browser's own scrolling, of a picture that grows and shrinks
  let zoom = 1;
  const scale = (to, x = view.clientWidth / 2, y = view.clientHeight / 2) => {
    const [left, top] = [(view.scrollLeft + x) / zoom, (view.scrollTop + y) / zoom];
    zoom = Math.min(4, Math.max(0.02, to));
    graph.setAttribute("width", size[0] * zoom);
    graph.setAttribute("height", size[1] * zoom);
    view.scrollLeft = left * zoom - x;
    view.scrollTop = top * zoom - y;
  };
  const fit = () => { scale(Math.min(view.clientWidth / size[0], view.clientHeight / size[1], 1)); };
  const start = () => { scale(Math.min(1, Math.max(view.clientWidth / size[0], 0.6))); view.scrollTo(0, 0); };
  const act = (id, does) => document.getElementById(id).addEventListener("click", does);
  act("closer", () => scale(zoom * 1.4));
  act("further", () => scale(zoom / 1.4));
  act("whole", fit);
  act("actual", () => scale(1));
  view.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    const frame = view.getBoundingClientRect();
    scale(zoom * Math.exp(-event.deltaY / 300), event.clientX - frame.left, event.clientY - frame.top);
  }, {passive: false});
  view.addEventListener("keydown", (event) => {
    if (event.key === "+" || event.key === "=") scale(zoom * 1.4);
    else if (event.key === "-") scale(zoom / 1.4);
    else if (event.key === "0") fit();
    else if (event.key === "Escape") choose(null);
  });
  let from = null, moved = false;
  view.addEventListener("pointerdown", (event) => {
    if (event.pointerType !== "mouse" || event.button) return;
    from = [event.clientX + view.scrollLeft, event.clientY + view.scrollTop];
    moved = false;
  });
  addEventListener("pointermove", (event) => {
    if (!from) return;
    const [left, top] = [from[0] - event.clientX, from[1] - event.clientY];
    moved ||= Math.abs(left - view.scrollLeft) + Math.abs(top - view.scrollTop) > 4;
    if (!moved) return;
    view.classList.add("drag");
    view.scrollLeft = left;
    view.scrollTop = top;
  });
  addEventListener("pointerup", () => { from = null; view.classList.remove("drag"); });

  const centre = (box) => {
    const [frame, at] = [view.getBoundingClientRect(), box.getBoundingClientRect()];
    view.scrollLeft += at.left + at.width / 2 - frame.left - frame.width / 2;
    view.scrollTop += at.top + at.height / 2 - frame.top - frame.height / 2;
  };

  // What is chosen: a width, which stays lit, or a node
  const make = (tag, text, kind) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (kind) made.className = kind;
    return made;
  };
  const swatch = (width) => make("i", undefined, "k h" + facts.widths.indexOf(width));
  const button = (text, does) => {
    const made = make("button", text, "link");
    made.type = "button";
    made.addEventListener("click", does);
    return made;
  };
  const widthButton = (width) => {
    const made = button(width.id + (width.name === width.id ? "" : " · " + width.name), () => choose(width.id));
    made.prepend(swatch(width));
    return made;
  };
  const light = (id) => {
    hot.textContent = id === null ? "" :
      `#graph .b:not([data-w~="${id}"]) { opacity: .22; } #graph path:not([data-w~="${id}"]) { opacity: .12; }`;
    document.querySelectorAll("#widths tr.chosen").forEach((row) => row.classList.remove("chosen"));
    if (id !== null) document.querySelector(`#widths tr[data-w="${id}"]`)?.classList.add("chosen");
  };
  const list = (title, items) => {
    if (!items.length) return [];
    const made = make("ul");
    for (const item of items) { const line = make("li"); line.append(item); made.append(line); }
    return [make("h4", `${title} (${items.length})`), made];
  };
  const choose = (id, scroll = false) => {
    graph.querySelectorAll(".chosen").forEach((box) => box.classList.remove("chosen"));
    light(id);
    if (id === null) { about.replaceChildren(make("p", facts.idle)); return; }
    const width = widths.get(id);
    const head = make("h3", " " + id + (width.name === id ? "" : " · " + width.name));
    head.prepend(swatch(width));
    const role = (which) => width.members.filter((m) => m[2] === which).map((m) => `${m[0]}[${m[1]}]`);
    const held = boxes.filter((box) => (box.dataset.w ?? "").split(" ").includes(id));
    about.replaceChildren(
      head, make("p", `${width.size} channels, ${width.mixed.length ? "mixed" : "exact"}. Touches ${width.params} of ` +
        `the parameters and ${width.macs} of the MACs.`),
      ...(width.limit ? [make("p", `It cannot grow: ${width.limit}.`)] : []),
      button("Clear", () => choose(null)),
      ...list("Mixed by", width.mixed.map((name) => button(name, () => goTo(name)))),
      ...list("Weights that make it", role("out")), ...list("Weights that sum over it", role("in")),
      ...list("Scales, biases and others", role("channel")),
      ...list("Nodes that hold it", held.slice(0, 200).map((box) => {
        const node = facts.nodes[box.dataset.n];
        return button(`${node.op} ${node.name}`, () => pick(box));
      })),
    );
    about.scrollTop = 0;
    if (scroll && held.length) centre(held[0]);
  };
  const tensor = (name) => {
    const made = make("ul"), head = make("li", name);
    made.append(head);
    (facts.tensors[name] ?? []).forEach(([what, ids, reason], axis) => {
      const line = make("li", `[${axis}] ${what}`, "axis");
      if (reason >= 0) {
        line.append(`, ${facts.reasons[reason][0]}`);
        line.title = facts.reasons[reason][1];
      }
      for (const id of ids.slice(0, 12)) { line.append(make("br"), widthButton(widths.get(id))); }
      if (ids.length > 12) line.append(make("br"), `and ${ids.length - 12} more`);
      made.append(line);
    });
    return made;
  };
  const pick = (box, scroll = true) => {
    choose(null);
    box.classList.add("chosen");
    const node = facts.nodes[box.dataset.n];
    const part = (title, names) => names.length ? [make("h4", title), ...names.map(tensor)] : [];
    about.replaceChildren(make("h3", node.op), make("p", node.name),
      ...(node.mixes ? [make("p", "Takes statistics across channels: shrinking them is approximate.")] : []),
      ...part("Makes", node.out), ...part("Reads", node.in));
    about.scrollTop = 0;
    if (scroll) centre(box);
  };
  const goTo = (name) => {
    const box = boxes.find((b) => facts.nodes[b.dataset.n].name === name);
    if (box) pick(box);
  };
  graph.addEventListener("click", (event) => {
    if (moved) return;
    const box = event.target.closest(".b");
    if (!box) choose(null);
    else pick(box, false);
  });

  // Find by any name: of a node, of what it reads and makes, of a width
  const field = document.getElementById("find"), told = document.getElementById("told");
  let matches = [], at = -1;
  const made = new Set(facts.nodes.flatMap((node) => node.out));
  const texts = boxes.map((box) => {
    const node = facts.nodes[box.dataset.n];
    const held = (box.dataset.w ?? "").split(" ").filter(Boolean).map((id) => widths.get(id)?.name ?? "");
    const weights = node.in.filter((name) => !made.has(name));
    return [node.name, node.op, ...weights, ...node.out, ...held].join("\\n").toLowerCase();
  });
  const find = () => {
    const wanted = field.value.trim().toLowerCase();
    matches.forEach((box) => box.classList.remove("found"));
    const ids = (box) => (box.dataset.w ?? "").split(" ");
    matches = !wanted ? [] : widths.has(wanted) ? boxes.filter((box) => ids(box).includes(wanted))
      : boxes.filter((_, k) => texts[k].includes(wanted));
    matches.forEach((box) => box.classList.add("found"));
    at = -1;
    told.textContent = !wanted ? "" : matches.length ? `${matches.length} found` : "not found";
    if (matches.length) next(1);
  };
  const next = (step) => {
    if (!matches.length) return;
    at = (at + step + matches.length) % matches.length;
    told.textContent = `${at + 1} of ${matches.length}`;
    if (zoom < 0.5) scale(0.8);
    pick(matches[at]);
  };
  field.addEventListener("input", find);
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter") { event.preventDefault(); next(event.shiftKey ? -1 : 1); }
  });

  // Tables
  for (const table of document.querySelectorAll("table.sortable")) {
    table.querySelectorAll("thead th").forEach((head, column) => {
      const sorter = make("button", head.textContent);
      sorter.type = "button";
      head.replaceChildren(sorter);
      sorter.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        table.querySelectorAll("thead th").forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const key = (row) => row.cells[column].dataset.v ?? row.cells[column].textContent;
        const order = new Intl.Collator("en", {numeric: true}).compare;
        const rows = [...table.tBodies[0].rows].sort((a, b) => order(key(a), key(b)));
        table.tBodies[0].append(...(down ? rows.reverse() : rows));
      });
    });
  }
  document.querySelectorAll("#widths tbody tr").forEach((row) => row.addEventListener("click", () => {
    choose(row.dataset.w, true);
    document.querySelector(".stage").scrollIntoView({block: "center"});
  }));
  const kind = document.getElementById("kind");
  const filter = () => document.querySelectorAll("#axes tbody tr").forEach((row) => {
    row.classList.toggle("away", kind.value === "-" ? row.dataset.k === "spatial"
      : kind.value !== "" && row.dataset.k !== kind.value);
  });
  kind?.addEventListener("change", filter);
  if (kind) filter();

  // On paper a long graph is cut into strips, side by side
  const strips = document.getElementById("strips");
  const cut = () => {
    scale(1);
    const row = Number(graph.dataset.row), unit = Math.min(0.15, 176 / size[0]);  // millimetres
    const tall = row * Math.floor(225 / unit / row);
    const parts = [...graph.querySelectorAll("path, .b")].map((part) => {
      const [at, box] = [part.transform.baseVal, part.getBBox()];
      const top = box.y + (at.numberOfItems ? at.getItem(0).matrix.f : 0);
      return [part, top, top + box.height];
    });
    for (let top = 2; top < size[1]; top += tall) {  // between two rows
      const strip = graph.cloneNode(false), high = Math.min(tall, size[1] - top);
      strip.removeAttribute("id");
      strip.setAttribute("viewBox", `0 ${top} ${size[0]} ${high}`);
      strip.setAttribute("width", `${size[0] * unit}mm`);
      strip.setAttribute("height", `${high * unit}mm`);
      for (const [part, from, to] of parts) if (to >= top && from < top + high) strip.append(part.cloneNode(true));
      strips.append(strip);
    }
  };
  let before = null;
  addEventListener("beforeprint", () => { before = zoom; light(null); cut(); });
  addEventListener("afterprint", () => { strips.replaceChildren(); if (before !== null) scale(before); });
  choose(null);
  start();
})();
"""
