"""The style sheet of the pages: a quiet, well-set paper, for wide screens, phones and print, light and dark."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark;
  --paper: #fdfdfb; --ink: #1d1d1b; --faint: #6d6b66; --rule: #dad7cf; --wash: #f3f1eb; --accent: #9c2f2f;
  --c0: #8a8780; --c1: #c98a1b; --c2: #2f6f9f; --c3: #9c2f2f;
  --c4: #3d7f5a; --c5: #7b559c; --c6: #b0578b; --c7: #4a8f98; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #191918; --ink: #e4e1d9; --faint: #9a968d; --rule: #3a3935; --wash: #232321; --accent: #e08b80;
  --c0: #a19e96; --c1: #e0ad4e; --c2: #76afd8; --c3: #e08b80;
  --c4: #7fbf9a; --c5: #b497d6; --c6: #dd93bf; --c7: #86c5cd; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 1.0625rem/1.55 Charter, "Bitstream Charter", "Source Serif 4", Cambria, Georgia, serif;
  font-variant-numeric: lining-nums; }
main { max-width: 46rem; margin: 0 auto; padding: 3.5rem 1.25rem 4rem; }
h1 { font-size: 1.75rem; line-height: 1.2; font-weight: 600; margin: 0 0 .4rem; text-wrap: balance; }
h2 { font-size: 1.15rem; font-weight: 600; margin: 3rem 0 .5rem; }
h3 { font-size: 1rem; font-weight: 600; margin: 1.5rem 0 .25rem; }
p { margin: .5rem 0; }
.byline { color: var(--faint); font-size: .875rem; margin: 0 0 2rem; }
.headline { font-size: 1.25rem; line-height: 1.45; margin: 0 0 2rem; padding: .1rem 0 .1rem 1rem;
  border-left: 3px solid var(--accent); text-wrap: pretty; }
.note, figcaption { color: var(--faint); font-size: .875rem; line-height: 1.45; }
.scroll { overflow-x: auto; margin: .75rem 0; } .scroll + .scroll { margin-top: 1.5rem; }
table { border-collapse: collapse; width: 100%;
  border-top: 1.5px solid var(--ink); border-bottom: 1.5px solid var(--ink);
  font-size: .9375rem; font-variant-numeric: lining-nums tabular-nums; }
th { font-weight: 600; font-size: .875rem; vertical-align: bottom; border-bottom: 1px solid var(--ink); }
th small { display: block; font-weight: 400; color: var(--faint); }
th, td { padding: .4rem .6rem; text-align: right; white-space: nowrap; vertical-align: top; }
th.label, td.label { text-align: left; }
th:first-child, td:first-child { padding-left: 0; position: sticky; left: 0; background: var(--paper); }
th:last-child, td:last-child { padding-right: 0; }
tbody tr + tr td { border-top: 1px solid var(--rule); }
.size, .interval, .change { color: var(--faint); font-size: .8125rem; }
.size { display: block; line-height: 1.3; }
.wer { font-weight: 600; }
.interval { margin-left: .35rem; }
.change { display: block; min-height: 1.3em; line-height: 1.3; }
.change b { font-weight: 600; color: var(--ink); } .change.unsure b { font-weight: 400; color: inherit; }
svg { display: block; }
.whisker { width: 8.5rem; height: .85rem; margin: .1rem 0 .1rem auto; }
.whisker .axis { stroke: var(--rule); stroke-width: .8; }
.whisker .range { stroke: var(--faint); stroke-width: 2; stroke-linecap: round; }
.whisker .run { stroke: var(--faint); stroke-width: 1; }
.whisker circle { fill: var(--ink); }
tr:has(strong) .whisker circle { fill: var(--accent); }
tr:has(strong) .whisker .range { stroke: var(--accent); opacity: .6; }
.bar { width: 5rem; height: .4rem; display: inline-block; vertical-align: middle; border-radius: 2px; }
.bar .empty { fill: var(--rule); } .bar .full { fill: var(--c2); }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(19rem, 100%), 1fr)); gap: 1.25rem; }
figure { margin: .5rem 0; min-width: 0; }
.plot { width: 100%; height: auto; overflow: visible; }
.plot polyline { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.plot .grid { stroke: var(--rule); stroke-width: 1; }
.plot text { fill: var(--faint); font-size: 13px; }
.plot text.y { text-anchor: end; dominant-baseline: middle; } .plot text.x { text-anchor: middle; }
.legend { display: flex; flex-wrap: wrap; gap: .15rem 1.1rem; font-size: .875rem; margin: .75rem 0 .25rem; }
.legend i { display: inline-block; width: 1.2rem; height: 0;
  margin-right: .4rem; vertical-align: middle; }
.utterance { color: var(--faint); font-size: .8125rem; margin: 1.1rem 0 .1rem; overflow-wrap: anywhere; }
.pairs { margin: 0; line-height: 1.3; }
.pairs span { display: inline-block; vertical-align: top; margin: 0 .1rem .2rem 0; }
.pairs b { display: block; font-weight: 400; font-size: .9375rem; color: var(--accent); }
.pairs .wrong { background: var(--wash); border-radius: 3px; padding: 0 .25rem; }
details { margin: 1rem 0; } summary { cursor: pointer; color: var(--faint); font-size: .9375rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.25rem; font-size: .9375rem;
  margin: .75rem 0; }
dt { color: var(--faint); } dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 34rem) { body { font-size: 1rem; } main { padding-top: 2rem; } h1 { font-size: 1.45rem; }
  .headline { font-size: 1.125rem; }
  th, td { padding: .35rem .3rem; } .whisker { width: 5.25rem; } .bar { width: 2.5rem; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .5rem; } }
@media print { main { max-width: none; padding: 0; } .scroll { overflow: visible; } }
"""
