"""The page around the figures: template, style and script, with nothing in them that a network would be asked for."""

from __future__ import annotations

import json
from string import Template
from typing import Any

__all__ = ["PAGE", "SCRIPT", "STYLE", "embedded"]

# The policy makes "opens without a network" a thing that browsers enforce. data: and blob: are plotly's own pictures.
PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline'; \
style-src 'unsafe-inline'; img-src data: blob:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>$style</style>
</head>
<body>
<main>
$body
</main>
<script type="application/json" id="figures">$figures</script>
<script>$plotly</script>
<script>$script</script>
</body>
</html>
""")

STYLE = Template("""
:root { color-scheme: light; $light }
@media screen and (prefers-color-scheme: dark) { :root { color-scheme: dark; $dark } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); -webkit-text-size-adjust: 100%;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1060px; margin: 0 auto; padding: 48px 24px 64px; }
h1 { font-size: 30px; line-height: 1.2; letter-spacing: -0.015em; margin: 0 0 20px; overflow-wrap: anywhere; }
h2 { font-size: 20px; line-height: 1.3; letter-spacing: -0.01em; margin: 56px 0 4px; }
p { margin: 0 0 12px; max-width: 46em; overflow-wrap: anywhere; text-wrap: pretty; }
.eyebrow { color: var(--muted); font-size: 14px; margin-bottom: 4px; }
.lead { font-size: 18px; }
.caption, .none { color: var(--muted); font-size: 14.5px; max-width: 68em; }
.none { background: var(--panel); border-radius: 8px; padding: 20px 24px; margin: 12px 0; max-width: none; }
.warning { border-left: 3px solid var(--best); padding-left: 14px; }
figure { margin: 8px 0 0; }
table { border-collapse: collapse; font-size: 15px; font-variant-numeric: tabular-nums; width: 100%; }
th, td { text-align: right; padding: 8px 0 8px 20px; border-bottom: 1px solid var(--rule); vertical-align: top; }
th { font-weight: 600; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
tbody th { font-weight: 400; color: var(--muted); }
thead th { border-bottom-color: var(--faint); white-space: nowrap; }
td.text { text-align: left; overflow-wrap: anywhere; min-width: 12em; }
th.text { text-align: left; }
td { white-space: nowrap; }
td.text { white-space: normal; }
.summary { max-width: 760px; margin-top: 28px; }
.strong { font-weight: 650; }
.settings table { margin-top: 12px; }
.settings th, .settings td { padding-top: 5px; padding-bottom: 5px; font-size: 14.5px; }
.settings td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.settings th { white-space: nowrap; width: 1%; }
.scroll { overflow: auto; max-height: 640px; }
.scroll th, .scroll td { font-size: 14px; padding-top: 5px; padding-bottom: 5px; }
.scroll thead th { position: sticky; top: 0; background: var(--paper); }
summary { cursor: pointer; font-weight: 600; margin: 12px 0; }
summary:focus-visible { outline: 2px solid var(--front); outline-offset: 4px; }
code { font: 0.92em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
@media (max-width: 640px) {
  main { padding: 28px 16px 40px; }
  h1 { font-size: 24px; }
  .lead { font-size: 16.5px; }
  h2 { margin-top: 44px; }
  table { font-size: 14px; }
  th, td { padding-left: 10px; }
  .summary :is(th, td):nth-child(5) { display: none; }
  .settings th { white-space: normal; width: 36%; }
}
@media print {
  main { max-width: none; padding: 0; }
  .scroll { max-height: none; overflow: visible; }
  section, tr { break-inside: avoid; }
  .modebar-container { display: none; }
}
@page { margin: 16mm; }
""")

SCRIPT = """
"use strict";
(() => {
  const {figures, dark: swaps} = JSON.parse(document.getElementById("figures").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)"), phone = matchMedia("(max-width: 640px)");
  const swap = (colour) => swaps[colour] || colour;
  const repaint = (key, value) =>
    key === "colorscale" ? value.map(([at, colour]) => [at, swap(colour)])
    : !/color$/.test(key) ? value
    : Array.isArray(value) ? value.map(swap) : typeof value === "string" ? swap(value) : value;
  const put = (target, path, value) => {
    const keys = path.split("."), last = keys.pop();
    keys.reduce((at, key) => (at[key] ??= {}), target)[last] = value;
  };
  const draw = (printing) => {
    for (const [id, text] of Object.entries(figures)) {
      const {data, layout} = JSON.parse(text, dark.matches && !printing ? repaint : undefined);
      if (phone.matches && !printing)
        for (const [path, value] of Object.entries(layout.meta.narrow)) put(layout, path, value);
      if (printing) layout.width = 670;
      Plotly.react(id, data, layout, {
        responsive: true, displaylogo: false, displayModeBar: !phone.matches && "hover", scrollZoom: false,
        modeBarButtons: [["zoom2d", "pan2d", "resetScale2d", "toImage"]],
        toImageButtonOptions: {format: "svg", filename: id},
      });
    }
  };
  draw(false);
  dark.addEventListener("change", () => draw(false));
  phone.addEventListener("change", () => draw(false));
  addEventListener("beforeprint", () => {
    document.querySelectorAll("details").forEach((details) => { details.open = true; });
    draw(true);
  });
  addEventListener("afterprint", () => draw(false));
})();
"""


def embedded(value: Any) -> str:
    """JSON that no HTML parser can take for markup, whatever the names in it."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
