"""The script of a target shard's page: the table, the pictures of one utterance, and their common time axis.

Every text of the shard enters the document as textContent, never as HTML.
"""

from __future__ import annotations

SCRIPT = r"""
"use strict";
const data = JSON.parse(document.getElementById("shard").textContent);
const $ = id => document.getElementById(id);
const BLANK = 0, PAD = 8, FRAME_PX = 7, HEAT_NATS = 10, MOST_CLASSES = 12;

const stack = document.querySelector(".stack"), scroller = stack.parentNode;

// ---------------------------------------------------------------- small helpers
const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
const words = text => {  // little-endian, whatever the machine is
  const view = new DataView(bytes(text).buffer);
  return Uint16Array.from({length: view.byteLength / 2}, (_, i) => view.getUint16(2 * i, true));
};
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const piece = id => id === BLANK ? "blank" : data.pieces ? data.pieces[id] : String(id);
const small = v => v === null ? "–" : v >= 0.001 || v === 0 ? v.toFixed(3) : v.toExponential(1);
function add(parent, tag, text, className) {
  const element = parent.appendChild(document.createElement(tag));
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
}

// ---------------------------------------------------------------- the table
const COLUMNS = [
  {key: "id", name: "utterance", label: true},
  {key: "seconds", name: "s", show: v => v.toFixed(2)},
  {key: "labels", name: "labels", show: String},
  {key: "rate", name: "labels/s", show: v => v.toFixed(1)},
  {key: "confidence", name: "confidence", show: small},
  {key: "tail", name: "tail mass", show: small},
  {key: "entropy", name: "entropy", show: small},
  {key: "text", name: "text", label: true},
];
const table = $("utterances"), body = table.tBodies[0], rows = [];
let chosen = null, path = null, geometry = null;

function fillTable() {
  for (const column of COLUMNS) {
    const head = add(table.tHead.rows[0], "th", undefined, column.label ? "label" : "number");
    head.scope = "col";
    const button = add(head, "button", column.name);
    button.type = "button";
    button.onclick = () => sortBy(column, head);
  }
  for (const utterance of data.utterances) {
    const row = add(body, "tr", undefined, utterance.paths ? "drawn" : "");
    for (const {key, label, show} of COLUMNS)
      add(row, "td", show ? show(utterance[key]) : utterance[key], label ? "label" : "number");
    row.cells[0].title = utterance.id;
    row.onclick = () => choose(row);
    row.utterance = utterance;
    row.searched = (utterance.id + "\n" + utterance.text).toLowerCase();
    rows.push(row);
  }
}

function sortBy({key}, head) {
  const ascending = head.getAttribute("aria-sort") !== "ascending", sign = ascending ? 1 : -1;
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  const compare = (a, b) => a === b ? 0 : a === null ? 1 : b === null ? -1 : a < b ? -sign : sign;
  rows.sort((a, b) => compare(a.utterance[key], b.utterance[key]));
  body.append(...rows);
}

function filter() {
  const wanted = $("find").value.trim().toLowerCase(), least = Number($("least").value) || 0;
  let shown = 0;
  for (const row of rows) {
    row.hidden = !row.searched.includes(wanted) || (row.utterance.confidence ?? 0) < least;
    shown += !row.hidden;
  }
  $("shown").textContent = shown === rows.length ? `${shown} utterances` : `${shown} of ${rows.length} utterances`;
}

function step(event) {  // arrow keys walk through the rows that are shown
  const by = {ArrowDown: 1, ArrowUp: -1}[event.key];
  if (!by) return;
  event.preventDefault();
  const shown = rows.filter(row => !row.hidden), next = shown[shown.indexOf(chosen) + by];
  if (next) { choose(next); next.focus(); }
}

// ---------------------------------------------------------------- one utterance
function choose(row) {
  if (chosen) { chosen.removeAttribute("aria-selected"); chosen.tabIndex = -1; }
  chosen = row;
  row.setAttribute("aria-selected", "true");
  row.tabIndex = 0;
  const {id, paths, wav, text} = row.utterance, audio = $("audio");
  $("name").textContent = id;
  audio.pause();
  audio.hidden = !wav;
  if (wav) audio.src = "data:audio/wav;base64," + wav; else audio.removeAttribute("src");
  $("pictures").hidden = !paths;
  $("ranks").hidden = !paths || paths.length < 2;
  $("ranks").replaceChildren();
  if (!paths) {
    $("spoken").textContent = text;
    $("facts").textContent = `Pictures are drawn of the first ${data.most} utterances; for this one: ` +
      "kdtrans inspect --html with --utt, or a higher --most.";
    path = geometry = null;
    return;
  }
  for (const other of paths) {
    const button = add($("ranks"), "button", `${other.weight.toFixed(3)}  ${other.text}`);
    button.type = "button";
    button.onclick = () => choosePath(other);
  }
  choosePath(paths[0]);
}

function choosePath(stored) {
  path = decoded(stored);
  const place = chosen.utterance.paths.indexOf(stored);
  [...$("ranks").children].forEach((button, i) => button.setAttribute("aria-pressed", i === place));
  $("spoken").textContent = stored.text;
  const seconds = stored.frames * stored.frame_s, labels = path.emitted.length;
  $("facts").textContent = [
    `${seconds.toFixed(2)} s`, `${labels} labels, ${(labels / seconds).toFixed(1)} a second`, stored.origin,
    `confidence ${small(stored.confidence)}`, `mean entropy ${small(chosen.utterance.entropy)} nats`,
  ].join(" · ");
  draw();
  hover(null);
}

function decoded(stored) {  // a path's arrays, and where each node lies: frame, labels before it, place in its frame
  const tokens = words(stored.path), nodes = [], emitted = [], inFrame = new Array(stored.frames + 1).fill(0);
  let t = 0, u = 0;
  tokens.forEach((token, n) => {
    nodes.push({n, token, t, u, slot: inFrame[t]++});
    if (token === BLANK) t++; else { emitted.push(nodes[n]); u++; }
  });
  const entropy = Float64Array.from(words(stored.entropy), v => v / 1000);
  for (const node of nodes) {
    node.start = (node.t + node.slot / inFrame[node.t]) * stored.frame_s;
    node.end = (node.t + (node.slot + 1) / inFrame[node.t]) * stored.frame_s;
  }
  const open = entropy.indexOf(Math.max(...entropy));
  const tail = Float64Array.from(words(stored.tail), v => v / 65535);
  return {...stored, nodes, emitted, entropy, tail, open, ids: words(stored.ids), logps: words(stored.logp),
    seconds: stored.frames * stored.frame_s};
}

function classesAt(n) {  // stored classes of a node, those left out excepted
  const found = [];
  for (let i = n * path.k; i < (n + 1) * path.k; i++)
    if (path.logps[i] !== data.left_out) found.push({id: path.ids[i], logp: -path.logps[i] * data.logp_unit});
  return found;
}

// ---------------------------------------------------------------- pictures
const rgb = name => {
  const hex = getComputedStyle(document.documentElement).getPropertyValue(name).trim().slice(1);
  return [0, 2, 4].map(i => parseInt(hex.slice(i, i + 2), 16));
};
const plain = colour => `rgb(${colour.join()})`;
const mixed = (from, to, share) => `rgb(${from.map((v, i) => Math.round(v + (to[i] - v) * share)).join()})`;

const font = () => "11px " + getComputedStyle(document.body).fontFamily;

function canvas(id, height) {
  const element = $(id), scale = Math.min(devicePixelRatio || 1, 16000 / geometry.width);
  element.width = Math.round(geometry.width * scale);
  element.height = Math.round(height * scale);
  element.style.width = geometry.width + "px";
  element.style.height = height + "px";
  const pen = element.getContext("2d");
  pen.scale(scale, scale);
  pen.font = font();
  return pen;
}

function draw() {
  if (!path) return;
  const mel = chosen.utterance.mel ? bytes(chosen.utterance.mel) : null;
  const frames = mel ? mel.length / data.bands : 0;
  const end = Math.max(path.seconds, (frames - 1) * data.shift_s);
  const room = scroller.clientWidth;
  const width = Math.max(room, Math.ceil(end / path.frame_s * FRAME_PX) + 2 * PAD);
  geometry = {end, width, x: s => PAD + s / end * (width - 2 * PAD)};
  stack.style.width = width + "px";
  stack.style.setProperty("--room", room + "px");
  const colours = {};
  for (const name of ["paper", "ink", "faint", "rule", "accent", "c1", "c2"]) colours[name] = rgb("--" + name);
  drawSpectrogram(mel, frames, colours);
  drawGrid();
  drawEntropy(colours);
  drawHeat(colours);
  drawAxis(colours);
  moveCursor();
}

function drawSpectrogram(mel, frames, colours) {
  const lines = labelLines(), strip = 13 * Math.max(1, ...lines.map(line => line + 1)) + 4, sound = mel ? 132 : 6;
  const pen = canvas("spectrogram", strip + sound), {x} = geometry;
  $("spectrogram-title").textContent = mel ? "Spectrogram, mel scale up to 8 kHz, and the labels where they are emitted"
    : "Labels where they are emitted (no audio on this page)";
  if (mel) {
    const image = new ImageData(frames, data.bands);
    for (let f = 0; f < frames; f++) for (let m = 0; m < data.bands; m++) {
      const share = (mel[f * data.bands + m] / 255) ** 1.4, at = 4 * ((data.bands - 1 - m) * frames + f);
      for (let c = 0; c < 3; c++) image.data[at + c] = colours.paper[c] + (colours.ink[c] - colours.paper[c]) * share;
      image.data[at + 3] = 255;
    }
    const sheet = document.createElement("canvas");
    sheet.width = frames;
    sheet.height = data.bands;
    sheet.getContext("2d").putImageData(image, 0, 0);
    const left = x(-data.shift_s / 2);  // a frame of the spectrogram is centred on its time
    pen.drawImage(sheet, left, strip, x((frames - 0.5) * data.shift_s) - left, sound);
  }
  pen.textAlign = "center";
  path.emitted.forEach(({token, t}, place) => {
    const at = x(t * path.frame_s);
    pen.fillStyle = plain(colours.ink);
    pen.fillText(piece(token), at, 10 + 13 * lines[place]);
    pen.fillStyle = `rgb(${colours.accent.join()}, 0.7)`;
    pen.fillRect(at - 0.5, strip, 1, sound);
  });
}

function labelLines() {  // on which line each label is written, so that none covers another
  const pen = $("spectrogram").getContext("2d"), ends = [], lines = [];
  pen.font = font();
  for (const {token, t} of path.emitted) {
    const at = geometry.x(t * path.frame_s), half = pen.measureText(piece(token)).width / 2;
    let line = ends.findIndex(right => right + 3 < at - half);
    if (line < 0) line = ends.length;
    ends[line] = at + half;
    lines.push(line);
  }
  return lines;
}

function drawGrid() {
  const svg = $("grid"), labels = path.emitted.length, unit = clamp(220 / Math.max(labels, 1), 9, 22);
  const height = labels * unit + 16, y = u => height - 8 - u * unit, {x, width} = geometry;
  svg.replaceChildren();
  svg.setAttribute("width", width);
  svg.setAttribute("height", height);
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const shape = (tag, attributes, text) => {
    const element = svg.appendChild(document.createElementNS("http://www.w3.org/2000/svg", tag));
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
  };
  for (let s = 0; s <= geometry.end; s += tick())
    shape("line", {class: "seconds", x1: x(s), x2: x(s), y1: 0, y2: height});
  for (const u of [0, labels]) shape("line", {class: "edge", x1: PAD, x2: width - PAD, y1: y(u), y2: y(u)});
  let steps = `M${x(0).toFixed(1)} ${y(0).toFixed(1)}`;  // a segment a node: blanks go right, labels go up
  for (const {token, t, u} of path.nodes)
    steps += token === BLANK ? `H${x((t + 1) * path.frame_s).toFixed(1)}` : `V${y(u + 1).toFixed(1)}`;
  shape("path", {d: steps});
  const size = Math.min(11, unit + 1);
  for (const {token, t, u} of path.emitted) {
    const at = x(t * path.frame_s), up = y(u + 0.5);
    shape("circle", {cx: at.toFixed(1), cy: up.toFixed(1), r: Math.min(2.5, unit / 3)});
    shape("text", {x: (at - 5).toFixed(1), y: up.toFixed(1), style: `font-size: ${size}px`}, piece(token));
  }
  shape("text", {class: "most", x: PAD + 3, y: y(labels) + 9}, `${labels} labels`);
}

function drawEntropy(colours) {
  const height = 76, pen = canvas("entropy", height), {x, width} = geometry;
  const top = Math.max(0.7, path.entropy[path.open]), y = h => height - 4 - h / top * (height - 18);
  pen.strokeStyle = plain(colours.rule);
  pen.fillStyle = plain(colours.faint);
  for (const h of [0, top / 2, top]) {
    pen.beginPath();
    pen.moveTo(PAD, y(h));
    pen.lineTo(width - PAD, y(h));
    pen.stroke();
    if (h) pen.fillText(h.toFixed(2), PAD, y(h) - 2);
  }
  for (const {n, start, end} of path.nodes) {
    const colour = n === path.open ? colours.accent : colours.c2;
    pen.fillStyle = plain(colour);
    pen.fillRect(x(start), y(path.entropy[n]), Math.max(x(end) - x(start) - 0.5, 0.8), y(0) - y(path.entropy[n]));
  }
}

function drawHeat(colours) {
  const unit = clamp(Math.floor(112 / path.k), 2, 14), pen = canvas("heat", unit * path.k), {x, width} = geometry;
  pen.strokeStyle = plain(colours.rule);
  pen.strokeRect(PAD - 0.5, 0.5, width - 2 * PAD + 1, unit * path.k - 1);
  for (const {n, token, start, end} of path.nodes) {
    const left = x(start), wide = x(end) - left;
    classesAt(n).forEach(({id, logp}, place) => {
      pen.fillStyle = mixed(colours.paper, id === BLANK ? colours.c2 : colours.c1, clamp(1 + logp / HEAT_NATS, 0.1, 1));
      pen.fillRect(left, place * unit, Math.max(wide - 0.4, 0.6), unit - (unit > 4 ? 0.6 : 0));
      if (id !== token || place === 0 || wide < 2.5) return;  // the most probable class needs no dot
      pen.fillStyle = plain(colours.ink);
      pen.beginPath();
      pen.arc(left + wide / 2, (place + 0.5) * unit, Math.min(2, wide / 3, unit / 3), 0, 7);
      pen.fill();
    });
  }
}

const tick = () => [0.1, 0.2, 0.5, 1, 2, 5, 10].find(s => geometry.x(s) - geometry.x(0) > 46) ?? 30;

function drawAxis(colours) {
  const pen = canvas("axis", 20);
  pen.fillStyle = pen.strokeStyle = plain(colours.faint);
  for (let i = 0; i * tick() <= geometry.end + 1e-6; i++) {
    const at = geometry.x(i * tick()), text = +(i * tick()).toFixed(1) + (i ? "" : " s");
    pen.fillRect(at, 0, 1, 4);
    pen.textAlign = i ? at > geometry.width - 24 ? "right" : "center" : "left";
    pen.fillText(text, i ? at : at - 3, 15);
  }
}

// ---------------------------------------------------------------- one node, and the cursor in time
const nodeAt = seconds => path.nodes.find(node => seconds < node.end) ?? path.nodes[path.nodes.length - 1];

function showNode(node) {
  const panel = $("node"), classes = classesAt(node.n);
  const does = node.token === BLANK ? "blank" : "emits " + piece(node.token);
  panel.replaceChildren();
  add(panel, "h3", `${(node.t * path.frame_s).toFixed(2)} s, ${does}`);
  add(panel, "p", `node ${node.n} of ${path.nodes.length}, frame ${node.t}, after ${node.u} labels, ` +
    `entropy ${path.entropy[node.n].toFixed(3)} nats${node.n === path.open ? ", the highest here" : ""}`);
  const lines = add(add(panel, "table"), "tbody");
  const line = (name, p, kind) => {
    const row = add(lines, "tr", undefined, kind);
    add(row, "td", name);
    add(row, "td", small(p));
    add(add(row, "td"), "i").style.width = 100 * p + "%";
  };
  for (const {id, logp} of classes.slice(0, MOST_CLASSES))
    line(piece(id), Math.exp(logp), id === node.token ? "own" : "");
  const more = classes.slice(MOST_CLASSES).reduce((sum, {logp}) => sum + Math.exp(logp), 0);
  if (more) line(`${classes.length - MOST_CLASSES} more`, more, "rest");
  line("others", path.tail[node.n], "rest");
  if (!classes.some(({id}) => id === node.token)) add(panel, "p", `${piece(node.token)} itself is left out`);
}

function hover(event) {
  if (!path) return;
  const box = stack.getBoundingClientRect();
  const place = event ? clamp(event.clientX - box.left, PAD, geometry.width - PAD) : null;
  $("pointer").hidden = place === null;
  if (place === null) { moveCursor(); return; }
  $("pointer").style.left = place + "px";
  showNode(nodeAt(secondsAt(place)));
}

const secondsAt = place => (place - PAD) / (geometry.width - 2 * PAD) * geometry.end;

function seek(event) {
  if (!path || $("audio").hidden) return;
  const left = stack.getBoundingClientRect().left;
  $("audio").currentTime = clamp(secondsAt(event.clientX - left), 0, $("audio").duration || 0);
}

function moveCursor() {  // to where the sound is; without one, the node of highest entropy is shown
  if (!path) return;
  const audio = $("audio"), heard = !audio.hidden && audio.currentTime > 0;
  $("cursor").hidden = !heard;
  if (heard) {
    const place = geometry.x(Math.min(audio.currentTime, geometry.end));
    $("cursor").style.left = place + "px";
    const seen = place - scroller.scrollLeft;
    if (!audio.paused && (seen < 0 || seen > scroller.clientWidth)) scroller.scrollLeft = place - 40;
  }
  if ($("pointer").hidden) showNode(heard ? nodeAt(audio.currentTime) : path.nodes[path.open]);
}

function follow() {
  moveCursor();
  if (!$("audio").paused) requestAnimationFrame(follow);
}

fillTable();
filter();
$("find").oninput = $("least").oninput = filter;
body.onkeydown = step;
stack.onpointermove = hover;
stack.onpointerleave = () => hover(null);
stack.onclick = seek;
$("audio").onplay = follow;
$("audio").onseeked = $("audio").onended = moveCursor;
addEventListener("resize", draw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
if (rows.length) choose(rows[0]);
"""
