"""What the page of a target shard adds to the style sheet of the report."""

from __future__ import annotations

SHARD_STYLE = """
main { max-width: 76rem; }
.byline { margin-bottom: 1.25rem; }
.filters { display: flex; flex-wrap: wrap; gap: .4rem 1.5rem; align-items: baseline; font-size: .875rem;
  color: var(--faint); margin: 0 0 .5rem; }
.filters output { margin-left: auto; }
input { font: inherit; color: var(--ink); background: var(--paper); border: 0; border-bottom: 1px solid var(--faint);
  border-radius: 0; padding: .1rem .2rem; width: 11rem; } input[type=number] { width: 5.5rem; }
:focus-visible { outline: 2px solid var(--c2); outline-offset: 1px; }
.rows { max-height: 19rem; overflow: auto; border-bottom: 1.5px solid var(--ink);
  border-top: 1.5px solid var(--ink); }
.rows table { border: 0; font-size: .875rem; border-collapse: separate; border-spacing: 0; }
.rows th { position: sticky; top: 0; background: var(--paper); z-index: 1; padding-block: .3rem; }
.rows th:first-child { z-index: 2; }
.rows td { padding-block: .16rem; unicode-bidi: isolate; }
.rows td.label:last-child { max-width: 30rem; overflow: hidden; text-overflow: ellipsis; }
.rows td:first-child { max-width: 18rem; overflow: hidden; text-overflow: ellipsis; padding-left: 1.1rem; }
.rows th:first-child { padding-left: 1.1rem; }
th button { font: inherit; color: inherit; background: none; border: 0; padding: 0; cursor: pointer; }
th button::after { content: "▾"; visibility: hidden; margin-left: .2rem; }
th[aria-sort] button::after { visibility: visible; } th[aria-sort=ascending] button::after { content: "▴"; }
tbody tr { cursor: pointer; }
tbody tr.drawn td:first-child::before { content: "●"; font-size: .5rem; color: var(--c2); position: absolute;
  left: .2rem; margin-top: .3rem; }
tbody tr:hover td { background: var(--wash); }
tbody tr[aria-selected=true] td { background: var(--wash); color: var(--accent); }
#detail h2 { margin: 1.75rem 0 .1rem; overflow-wrap: anywhere; unicode-bidi: isolate; }
#spoken { font-size: 1.125rem; margin: 0; overflow-wrap: anywhere; unicode-bidi: isolate; text-wrap: pretty; }
#facts { margin: .1rem 0 .6rem; }
audio { display: block; width: 100%; height: 2.4rem; margin: .6rem 0; }
audio[hidden], .hair[hidden], .ranks[hidden], .pictures[hidden] { display: none; }
.ranks { display: grid; gap: .1rem; margin: .5rem 0; }
.ranks button { font: inherit; font-size: .9375rem; color: var(--faint); background: none; border: 0;
  border-left: 3px solid var(--rule); padding: .05rem .6rem; text-align: left; cursor: pointer; unicode-bidi: isolate;
  overflow-wrap: anywhere; }
.ranks button[aria-pressed=true] { color: var(--ink); border-color: var(--accent); }
.pictures { display: grid; grid-template-columns: minmax(0, 1fr) 15rem; gap: 1.75rem; align-items: start; }
.scroller { overflow-x: auto; overflow-y: hidden; }
.stack { position: relative; cursor: crosshair; min-width: 100%; }
.stack h3 { font-size: .8125rem; font-weight: 400; color: var(--faint); margin: .7rem 0 .2rem; position: sticky;
  left: 0; width: max-content; max-width: var(--room, 100%); cursor: default; }
.stack h3 i { display: inline-block; width: .7rem; height: .7rem; margin-right: .25rem; vertical-align: -.05rem; }
.stack h3 .blank { background: var(--c2); } .stack h3 .label { background: var(--c1); }
.stack canvas, .stack svg { display: block; }
#grid { overflow: visible; }
#grid path { fill: none; stroke: var(--accent); stroke-width: 1.6; stroke-linejoin: round; }
#grid .seconds { stroke: var(--rule); stroke-width: 1; } #grid .edge { stroke: var(--faint); stroke-width: 1; }
#grid circle { fill: var(--accent); }
#grid text { font-size: 11px; fill: var(--ink); text-anchor: end; dominant-baseline: middle; }
#grid text.most { fill: var(--faint); text-anchor: start; }
.hair { position: absolute; top: 0; bottom: 0; width: 0; border-left: 1px dashed var(--faint); pointer-events: none; }
.hair.now { border-left: 1.5px solid var(--accent); }
#node { position: sticky; top: 1rem; font-size: .875rem; font-variant-numeric: lining-nums tabular-nums;
  min-height: 15rem; margin-top: .7rem; }
#node h3 { margin: 0; font-size: .9375rem; } #node p { margin: 0 0 .5rem; color: var(--faint); }
#node table { border: 0; font-size: .875rem; table-layout: fixed; }
#node td { padding: .06rem .3rem; border: 0; position: static; }
#node td:first-child { width: 4.5rem; text-align: left; overflow: hidden; text-overflow: ellipsis;
  unicode-bidi: isolate; }
#node td:nth-child(2) { width: 3.9rem; } #node td:last-child { padding: 0; }
#node i { display: block; height: .5rem; margin-top: .45rem; background: var(--c2); border-radius: 1px;
  min-width: 1px; }
#node tr { cursor: default; } #node tr:hover td { background: none; }
#node .own td { color: var(--accent); font-weight: 600; } #node .own i { background: var(--accent); }
#node .rest td { color: var(--faint); } #node .rest i { background: var(--c0); }
@media (max-width: 52rem) { .pictures { grid-template-columns: minmax(0, 1fr); gap: .5rem; } #node { position: static; }
  .rows { max-height: 14rem; } .rows td:first-child { max-width: 9rem; } .filters output { margin-left: 0; } }
@media print { .rows { max-height: none; } }
"""
