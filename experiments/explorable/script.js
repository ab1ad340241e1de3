"use strict"; // Shows the numbers of numbers.py in the page of template.html.
const SIDE = 24, CELLS = 12, KERNEL = 5, DIGIT = 28; // of the feature map, the pooled map, the filter, the image
const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
const floats = (text) => new Float32Array(bytes(text).buffer);
const cut = (array, size) =>
  Array.from({ length: array.length / size }, (_, i) => array.subarray(i * size, (i + 1) * size));
const images = cut(bytes(data.images), DIGIT ** 2), maps = cut(floats(data.maps), SIDE ** 2);
const cotangents = cut(floats(data.cotangents), CELLS ** 2), gradients = cut(floats(data.gradients), KERNEL ** 2);
const filter = floats(data.filter), full = floats(data.full), count = images.length;

// --- The arithmetic of this page; tests compare it with jpool's ---

// What part of the cotangent of a window each of its elements receives.
function shares(values, rule) {
  const best = Math.max(...values), firstNaN = values.findIndex(Number.isNaN);
  const tied = firstNaN < 0 ? [...values.keys()].filter((i) => values[i] === best) : [firstNaN];
  const alone = tied.length === 1 && firstNaN < 0;
  const winners = { first: tied.slice(0, 1), last: tied.slice(-1), split: tied, none: alone ? tied : [] }[rule];
  return values.map((_, i) => (winners.includes(i) ? 1 / winners.length : 0));
}

// The four elements of a window, as indices of the feature map.
function windowOf(cell) {
  const first = 2 * SIDE * Math.floor(cell / CELLS) + 2 * (cell % CELLS);
  return [first, first + 1, first + SIDE, first + SIDE + 1];
}

// The winner of each window, as an index of the feature map; the first of equal elements wins.
const select = (map) => Array.from({ length: CELLS ** 2 }, (_, cell) => {
  const elements = windowOf(cell);
  return elements[shares(elements.map((i) => map[i]), "first").indexOf(1)];
});

// Sends the cotangent of each window to its winner.
function route(winners, ct) {
  const routed = new Float32Array(SIDE ** 2);
  winners.forEach((winner, cell) => { routed[winner] = ct[cell]; });
  return routed;
}

// For how many of the first n examples each element has won.
function wins(n) {
  const times = new Array(SIDE ** 2).fill(0);
  for (const one of winners.slice(0, n)) for (const winner of one) times[winner] += 1;
  return times;
}

const sumOf = (arrays) => Array.from(arrays[0], (_, i) => arrays.reduce((sum, array) => sum + array[i], 0));
const meanOf = (n) => sumOf(gradients.slice(0, n)).map((sum) => sum / n);
const afterStep = (mean, rate) => mean.map((slope, i) => filter[i] - rate * slope);
const distance = (mean) => Math.hypot(...mean.map((slope, i) => slope - full[i]));

const winners = maps.map(select);
const means = images.map((_, i) => meanOf(i + 1)), distances = means.map(distance);

// --- Drawing ---

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const range = (arrays) => [Math.min, Math.max].map((most) => most(...arrays.map((array) => most(...array))));
const largest = (arrays) => Math.max(...range(arrays).map(Math.abs));
const norm = (array) => Math.hypot(...array);
const MINUS = "\u2212", short = (value) => String(Number(value.toPrecision(3))).replace("-", MINUS);
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));

function scale(from, to) { // a colour for each number from 0 to 1
  const [start, end] = [css(from), css(to)].map(rgb);
  return (t) => `rgb(${start.map((part, i) => Math.round(part + (end[i] - part) * clamp(t, 0, 1))).join(" ")})`;
}
function signed(limit, power = 1) { // blue above zero, orange below; power 0.5 shows small numbers too
  const [above, below] = [scale("zero", "positive"), scale("zero", "negative")];
  return (value) => (value > 0 ? above : below)((Math.abs(value) / limit) ** power);
}
function between([low, high], from, to) {
  const colour = scale(from, to);
  return (value) => colour((value - low) / (high - low));
}
const ink = () => between([0, 255], "paper", "text"), level = () => between(mapRange, "dark", "bright");
const small = (arrays) => signed(largest(arrays), 0.5);

// Draws a square array, and then what `over` adds; `text` is for those who cannot see it.
function draw(canvas, values, side, colour, text, over = () => {}) {
  const pen = canvas.getContext("2d"), k = Math.round(480 / side);
  canvas.width = canvas.height = k * side;
  canvas.setAttribute("aria-label", text);
  values.forEach((value, i) => {
    pen.fillStyle = colour(value);
    pen.fillRect(k * (i % side), k * Math.floor(i / side), k, k);
  });
  over(pen, (i) => [k * (i % side), k * Math.floor(i / side), k]);
}
function box(pen, [x, y, k], elements = 1) {
  for (const [colour, width] of [[css("dark"), 9], [css("chosen"), 5]]) {
    Object.assign(pen, { strokeStyle: colour, lineWidth: width });
    pen.strokeRect(x, y, k * elements, k * elements);
  }
}
function dots(pen, at, elements) {
  Object.assign(pen, { fillStyle: css("winner"), strokeStyle: css("dark"), lineWidth: 1.5 });
  pen.beginPath();
  for (const [x, y, k] of elements.map(at)) {
    pen.moveTo(x + 0.75 * k, y + k / 2);
    pen.arc(x + k / 2, y + k / 2, k / 4, 0, 7);
  }
  pen.fill();
  pen.stroke();
}
function grid(pen) { // the borders of the windows
  Object.assign(pen, { strokeStyle: css("soft"), lineWidth: 0.7 });
  for (let i = 0; i <= 480; i += 480 / CELLS) pen.strokeRect(i, -1, 0, 482), pen.strokeRect(-1, i, 482, 0);
}
function hatch(pen, [x, y, k]) {
  pen.beginPath();
  for (const part of [0.5, 1, 1.5]) {
    pen.moveTo(x + k * Math.max(part - 1, 0), y + k * Math.min(part, 1));
    pen.lineTo(x + k * Math.min(part, 1), y + k * Math.max(part - 1, 0));
  }
  pen.stroke();
}
function drawKernel(canvas, values, colour, text) { // with signs, for readers who do not see the colours
  draw(canvas, values, KERNEL, colour, text, (pen, at) => values.forEach((value, i) => {
    const [x, y, k] = at(i);
    Object.assign(pen, { fillStyle: css("text"), font: "28px sans-serif", textAlign: "center" });
    if (value) pen.fillText(value > 0 ? "+" : MINUS, x + k / 2, y + k / 2 + 10);
  }));
}
function drawDigit(canvas, i, over) {
  draw(canvas, images[i], DIGIT, ink(), `Example ${i + 1}: a handwritten ${data.labels[i]}.`, over);
}
function drawMap(canvas, i, text = "", more = () => {}) {
  draw(canvas, maps[i], SIDE, level(), `Example ${i + 1}: its feature map, 24 by 24, and winners. ${text}`, (pen, at) => {
    grid(pen);
    dots(pen, at, winners[i]);
    more(pen, at);
  });
}
function drawRouted(canvas, i, text = "", more = () => {}) {
  const routed = route(winners[i], cotangents[i]), label = `Example ${i + 1}: its cotangents, at the winners. ${text}`;
  draw(canvas, routed, SIDE, small(cotangents), label, (pen, at) => {
    grid(pen);
    more(pen, at);
  });
}
function arrow(x, y, dx, dy, colour, width) { // in SVG, with y upwards
  const length = norm([dx, dy]), [ux, uy] = [dx / length, dy / length], head = 4 * width;
  if (!length) return "";
  const corner = ([u, v]) => `${x + dx + u * ux - v * uy},${-(y + dy + u * uy + v * ux)}`;
  const corners = [[0, 0], [-head, head / 2], [-head, -head / 2]].map(corner).join(" ");
  const line = `M${x} ${-y}L${x + dx - (head * ux) / 2} ${-(y + dy - (head * uy) / 2)}`;
  return `<path d="${line}" stroke="${colour}" stroke-width="${width}"/><polygon points="${corners}" fill="${colour}"/>`;
}

// --- The five parts; each draws from the state ---

const state = { a: 1, b: -0.5, rule: "first", example: 1, row: 5, column: 6, stage: 4, rate: data.rate };
const mapRange = range(maps);

function drawWindow() {
  const { a, b, rule } = state, [toA, toB] = shares([a, b], rule);
  let parts = `<path d="M-2.6 2.6L2.6-2.6" stroke="${css("negative")}" stroke-width=".03"/>`;
  for (let i = -2; i <= 2; i += 0.5) {
    for (let j = -2; j <= 2; j += 0.5) {
      const [x, y] = shares([i, j], rule), colour = css(i === j ? "negative" : "positive");
      parts += `<circle cx="${i}" cy="${-j}" r=".035" fill="${colour}"/>${arrow(i, j, 0.36 * x, 0.36 * y, colour, 0.035)}`;
    }
  }
  const point = `<circle cx="${a}" cy="${-b}" r=".13" fill="none" stroke="${css("text")}" stroke-width=".05"/>`;
  $("plane").innerHTML = parts + point + arrow(a, b, toA, toB, css("text"), 0.07);
  const reason = a === b ? "a = b: there is no derivative, and the rule decides" : `${a > b ? "a" : "b"} is larger`;
  const [m, ...parted] = [Math.max(a, b), toA, toB].map(short);
  const said = `a = ${short(a)}, b = ${short(b)}: m = ${m}. J<sub>a</sub> = ${parted[0]}, J<sub>b</sub> = ${parted[1]}: ${reason}.`;
  $("said-window").innerHTML = said;
  $("plane").setAttribute("aria-label", `The plane of a and b. ${$("said-window").textContent}`);
}

function drawOne() {
  const i = state.example - 1, cell = (state.row - 1) * CELLS + state.column - 1, elements = windowOf(cell);
  const winner = winners[i][cell], [top, left] = [Math.floor(winner / SIDE), winner % SIDE];
  const values = elements.map((element) => maps[i][element]), pooled = winners[i].map((element) => maps[i][element]);
  const tied = values.filter((value) => value === maps[i][winner]).length, ct = short(cotangents[i][cell]);
  const where = `row ${state.row}, column ${state.column}`, won = `row ${top + 1}, column ${left + 1}`;
  $("said-one").textContent =
    `Example ${i + 1}, a ${data.labels[i]}; window in ${where}. Its elements: ${values.map(short).join(", ")}. ` +
    `The winner is in ${won} of the feature map${tied > 1 ? ` (${tied} elements are equal, the first wins)` : ""}. ` +
    `Forward: its value ${short(pooled[cell])} is kept. Backward: it receives the cotangent ${ct}, the other three 0.`;
  drawDigit($("digit"), i, (pen, at) => box(pen, at(top * DIGIT + left), KERNEL));
  drawMap($("map"), i, `In the window in ${where}, ${won} has won.`, (pen, at) => box(pen, at(elements[0]), 2));
  const chosen = (pen, at) => box(pen, at(cell));
  draw($("pooled"), pooled, CELLS, level(), `The pooled map: in ${where} the value ${short(pooled[cell])}.`, chosen);
  draw($("cotangents"), cotangents[i], CELLS, small(cotangents), `The cotangents: in ${where} ${ct}.`, chosen);
  drawRouted($("routed"), i, `${ct} in ${won}; 0 at all that did not win.`, (pen, at) => box(pen, at(winner)));
}

function drawBatch() {
  const n = state.example, times = wins(n), covered = times.filter(Boolean).length, colour = scale("zero", "chosen");
  const percent = `${((100 * covered) / SIDE ** 2).toFixed(1)} %`;
  $("said-batch").textContent =
    `Example ${n} is a ${data.labels[n - 1]}. Elements that have received a gradient from examples 1 to ${n}: ` +
    `${covered} of ${SIDE ** 2}, ${percent}. From example ${n} alone: ${CELLS ** 2}, a quarter.`;
  drawDigit($("batch-digit"), n - 1);
  drawMap($("batch-map"), n - 1);
  const text = `${percent} of the elements have received a gradient from examples 1 to ${n}.`;
  draw($("filled"), times, SIDE, (value) => colour(value && 0.25 + (0.75 * value) / n), text, (pen, at) => {
    grid(pen);
    times.forEach((value, i) => value || hatch(pen, at(i)));
  });
}

const STAGES = [
  "Forward: every example by itself; its winners are marked.",
  "Backward: every example by itself. Each cotangent goes to its own winner. Summed over all positions, that gives " +
    "one gradient of the filter for each example.",
  "Average: only these gradients, which all have the shape of the filter, 5 × 5.",
  "One step: the optimiser gets the mean, once.",
];
const LANE = { digit: 1, "feature map": 1, "routed cotangents": 2, "gradient of the filter": 2 };
const LANES = [LANE, LANE, LANE, LANE, { "mean gradient of all": 3, "filter after the step": 4 }];
const picture = ([name, stage]) =>
  `<figure data-stage="${stage}"><canvas role="img"></canvas><figcaption>${name}</figcaption></figure>`;
$("lanes").innerHTML = LANES.map((lane) => `<div role="group">${Object.entries(lane).map(picture).join("")}</div>`).join("");

function drawOrder() {
  const first = Math.min(state.example, count - 3) - 1, mean = means.at(-1);
  const canvases = [...$("lanes").children].map((lane) => [...lane.querySelectorAll("canvas")]), last = canvases.pop();
  canvases.forEach(([digit, map, routed, gradient], lane) => {
    const i = first + lane, text = `Example ${i + 1}: its gradient of the filter, of norm ${short(norm(gradients[i]))}`;
    drawDigit(digit, i);
    drawMap(map, i);
    drawRouted(routed, i);
    drawKernel(gradient, gradients[i], small(gradients), text);
    $("lanes").children[lane].setAttribute("aria-label", `Example ${i + 1}`);
    digit.nextSibling.textContent = `example ${i + 1}`;
  });
  drawKernel(last[0], mean, small(means), `The mean of ${count} gradients, of norm ${short(norm(mean))}`);
  drawKernel(last[1], afterStep(mean, state.rate), signed(largest([filter])), "The filter after the step");
  for (const figure of $("lanes").querySelectorAll("figure")) {
    figure.classList.toggle("later", figure.dataset.stage > state.stage);
  }
  const shown = `Shown: examples ${first + 1} to ${first + 4} of ${count}.`;
  $("said-order").textContent = `${state.stage}. ${STAGES[state.stage - 1]} ${shown}`;
}

function drawAngles() {
  $("angles").innerHTML = data.ways.map(({ name, cosine, norm }) => {
    const angle = Math.acos(cosine), [x, y] = [Math.cos, Math.sin].map((part) => 30 * norm * part(angle));
    const size = `(cosine ${cosine.toFixed(2)}), ${norm.toFixed(2)} times as long`;
    const text = `${name}: ${((180 * angle) / Math.PI).toFixed(0)}° from the right gradient ${size}`;
    const arrows = arrow(0, 0, 30, 0, css("positive"), 3) + arrow(0, 0, x, y, css("negative"), 3);
    const svg = `<svg viewBox="-20 -122 150 136" role="img" aria-label="${text}">${arrows}<text x="36" y="4">right</text></svg>`;
    return `<figure>${svg}<figcaption>${text}</figcaption></figure>`;
  }).join("");
}

function drawStep() {
  const n = state.example, mean = means[n - 1], size = norm(full), of = n === 1 ? "1 gradient" : `${n} gradients`;
  const cosine = mean.reduce((sum, slope, i) => sum + slope * full[i], 0) / norm(mean) / size;
  const after = afterStep(mean, state.rate), colour = signed(largest([filter]));
  $("said-step").textContent =
    `The mean of ${of} is ${short(distances[n - 1])} from the gradient over all digits, whose norm is ${short(size)} ` +
    `(root mean square over all batches: ${short(Math.sqrt(data.noise / n))}). Its direction is ` +
    `${cosine > 0.9 ? "nearly right" : cosine > 0 ? "partly right" : "wrong"}, cosine ${cosine.toFixed(2).replace("-", MINUS)}. ` +
    `A step with learning rate ${state.rate} changes the filter, of norm ${short(norm(filter))}, by ${short(state.rate * norm(mean))}.`;
  drawKernel($("before"), filter, colour, "The filter before the step.");
  drawKernel($("mean"), mean, small(means), `The mean gradient of ${n} examples.`);
  drawKernel($("full"), full, small(means), "The gradient over all digits.");
  drawKernel($("after"), after, colour, `The filter after a step with learning rate ${state.rate}.`);
  drawNoise(n);
}
function drawNoise(n) { // a chart of the distances, with the expected ones
  const expected = distances.map((_, i) => Math.sqrt(data.noise / (i + 1))), top = Math.max(...distances, ...expected);
  const x = (i) => 50 + (370 * (i - 1)) / (count - 1), y = (value) => 200 - (185 * value) / top;
  const curve = (values, style) =>
    `<polyline points="${values.map((value, i) => `${x(i + 1)},${y(value)}`).join(" ")}" fill="none" ${style}/>`;
  const ticks = [0, 0.25, 0.5, 0.75, 1].map((part) => {
    const i = Math.max(1, Math.round(part * count)), value = part * top;
    return `<text x="${x(i)}" y="218" text-anchor="middle">${i}</text>` +
      `<text x="44" y="${y(value) + 4}" text-anchor="end">${value.toFixed(2)}</text>`;
  });
  $("noise").innerHTML =
    `<path d="M50 15V200H420" fill="none" stroke="${css("soft")}"/>${ticks.join("")}` +
    `<text x="235" y="235" text-anchor="middle">n, examples in the mean</text>` +
    curve(expected, `stroke="${css("soft")}" stroke-width="2" stroke-dasharray="6 5"`) +
    curve(distances, `stroke="${css("positive")}" stroke-width="2.5"`) +
    `<circle cx="${x(n)}" cy="${y(distances[n - 1])}" r="6" fill="${css("winner")}"/>`;
  const ends = [distances[0], distances.at(-1)].map(short);
  $("noise").setAttribute("aria-label", `Distance to the gradient over all digits: ${ends[0]} for one example, ${short(distances[n - 1])} for ${n}, ${ends[1]} for ${count}.`);
}

// --- What the reader does ---

const DRAWN = [ // each part, and the state that it shows
  [drawWindow, "a", "b", "rule"], [drawOne, "example", "row", "column"], [drawBatch, "example"],
  [drawOrder, "example", "stage", "rate"], [drawAngles], [drawStep, "example", "rate"],
];
const NUMBERS = ["a", "b", "row", "column", "rate"], sliders = [...document.querySelectorAll(".example")];
let timer = 0;
const prefers = (what) => matchMedia(`(prefers-${what})`);

const ALL = {};
function show(given = ALL) {
  const changed = Object.keys(given).filter((name) => given[name] !== state[name]);
  Object.assign(state, given);
  for (const name of NUMBERS) $(name).value = state[name];
  for (const slider of sliders) {
    slider.value = state.example;
    slider.setAttribute("aria-valuetext", `${state.example} of ${count}, a ${data.labels[state.example - 1]}`);
  }
  for (const slider of document.querySelectorAll("input[type=range]")) slider.nextSibling.textContent = slider.value;
  const active = timer ? "" : document.activeElement.closest("section")?.id ?? "batch"; // whose news are read aloud
  for (const news of document.querySelectorAll("output")) {
    news.setAttribute("aria-live", news.closest("section").id === active ? "polite" : "off");
  }
  for (const [part, ...names] of DRAWN) if (given === ALL || names.some((name) => changed.includes(name))) part();
}
const step = (by) => show({ example: clamp(state.example + by, 1, count) });

for (const name of NUMBERS) $(name).addEventListener("input", () => show({ [name]: Number($(name).value) }));
for (const slider of document.querySelectorAll("input[type=range]")) slider.after(document.createElement("span"));
for (const slider of sliders) {
  slider.addEventListener("input", () => {
    const example = Number(slider.value);
    play(false);
    show({ example });
  });
}
$("rule").addEventListener("change", (event) => show({ rule: event.target.value }));
$("stage").addEventListener("change", (event) => show({ stage: Number(event.target.value) }));
document.addEventListener("keydown", (event) => {
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (by && event.target.tagName !== "INPUT" && !event.altKey && !event.ctrlKey && !event.metaKey && !event.shiftKey) step(by);
});

// Calls act(x, y), from 0 to 1, at such an event.
function onPoint(element, name, holds, act) {
  element.addEventListener(name, (event) => {
    const area = element.getBoundingClientRect();
    if (holds(event)) act((event.clientX - area.left) / area.width, (event.clientY - area.top) / area.height);
  });
}
const quarter = (value) => clamp(Math.round(value * 4) / 4, -2, 2);
const cellAt = (part) => clamp(Math.ceil(CELLS * part), 1, CELLS);
const toPlane = (x, y) => show({ a: quarter(5.2 * x - 2.6), b: quarter(2.6 - 5.2 * y) });
const toCell = (x, y) => show({ row: cellAt(y), column: cellAt(x) });
onPoint($("plane"), "pointerdown", (event) => event.buttons === 1 && !$("plane").setPointerCapture(event.pointerId), toPlane);
onPoint($("plane"), "pointermove", (event) => $("plane").hasPointerCapture(event.pointerId), toPlane);
for (const id of ["pooled", "cotangents"]) onPoint($(id), "click", () => true, toCell);
onPoint($("pooled"), "pointermove", (event) => event.pointerType === "mouse", toCell);

function play(starts) {
  clearInterval(timer);
  const pause = prefers("reduced-motion: reduce").matches ? 1000 : 150; // ms
  timer = starts ? setInterval(() => (state.example < count ? step(1) : play(false)), pause) : 0;
  $("play").textContent = starts ? "Pause" : "Play";
}
$("play").addEventListener("click", () => {
  if (!timer && state.example === count) show({ example: 1 });
  play(!timer);
});
prefers("color-scheme: dark").addEventListener("change", () => show());

const taps = bytes(data.winners), all = taps.length.toLocaleString("en"); // jpool's winners
const same = winners.flat().filter((winner, i) => winner === windowOf(i % CELLS ** 2)[taps[i]]).length;
$("check").textContent = `In your browser just now, ${same.toLocaleString("en")} of ${all} winners agreed with jpool's.`;
show();
