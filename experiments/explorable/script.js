"use strict"; // Shows the numbers of numbers.py in the page of template.html.
const SIDE = 24, CELLS = 12, KERNEL = 5, DIGIT = 28; // of the feature map, the pooled map, the filter, the image
const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
const floats = (text) => new Float32Array(bytes(text).buffer);
const cut = (array, size) =>
  Array.from({ length: array.length / size }, (_, i) => array.subarray(i * size, (i + 1) * size));
const labels = bytes(data.labels), images = cut(bytes(data.images), DIGIT ** 2), maps = cut(floats(data.maps), SIDE ** 2);
const cotangents = cut(floats(data.cotangents), CELLS ** 2), gradients = cut(floats(data.gradients), KERNEL ** 2);
const ways = cut(floats(data.ways), KERNEL ** 2), losses = cut(floats(data.losses), floats(data.losses).length / 4);
const quartiles = cut(floats(data.quartiles), 3), orders = cut(floats(data.orders), data.sizes.length);
const filter = floats(data.filter), accuracies = floats(data.accuracies), [limit] = floats(data.limit);

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

// Divides the cotangent of each window equally among the elements that won for any digit: the wrong average (b).
function spread(ct) {
  const routed = new Float32Array(SIDE ** 2);
  ct.forEach((value, cell) => {
    const won = [...new Set(winners.map((one) => one[cell]))];
    for (const winner of won) routed[winner] = value / won.length;
  });
  return routed;
}

// The 25 pixels that an element of the feature map saw; times its cotangent they are its term of the gradient.
const patchOf = (image, element) => Array.from({ length: KERNEL ** 2 }, (_, i) =>
  image[pixelOf(element) + DIGIT * Math.floor(i / KERNEL) + (i % KERNEL)] / 255);
const pixelOf = (element) => DIGIT * Math.floor(element / SIDE) + (element % SIDE); // the first of these

// What the first winners of a digit add up to, row by row: all of them, to its gradient of the filter.
const sumOf = (i, count) => winners[i].slice(0, count).reduce((sum, winner, cell) => {
  const patch = patchOf(images[i], winner);
  return sum.map((value, k) => value + cotangents[i][cell] * patch[k]);
}, Array(KERNEL ** 2).fill(0));

const mean = (arrays) => Array.from(arrays[0], (_, i) => arrays.reduce((sum, array) => sum + array[i], 0) / arrays.length);
const norm = (array) => Math.hypot(...array);
const afterStep = (gradient, rate) => Array.from(filter, (weight, i) => weight - rate * gradient[i]);
const cosine = (x, y) => Array.from(x).reduce((sum, value, i) => sum + value * y[i], 0) / norm(x) / norm(y);
const angle = (x, y) => (180 / Math.PI) * Math.acos(clamp(cosine(x, y), -1, 1)); // in degrees

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const winners = maps.map(select), meanImage = mean(images), meanMap = mean(maps), meanCotangents = mean(cotangents);
const meanWinners = select(meanMap);

// --- Drawing ---

const wide = matchMedia("(min-width: 75rem)"), dark = matchMedia("(prefers-color-scheme: dark)"); // as in the template
const range = (arrays) => [Math.min, Math.max].map((most) => most(...arrays.map((array) => most(...array))));
const largest = (arrays) => Math.max(...range(arrays).map(Math.abs));
const MINUS = "\u2212", signs = (text) => text.replace(/-/g, MINUS);
const short = (value) => signs(String(Number(value.toPrecision(3))));
const fixed = (value, digits = 2) => signs(value.toFixed(digits).replace(/^-(0\.0*)$/, "$1"));
const percent = (part) => `${(100 * part).toFixed(0)} %`;
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));

function scale(...names) { // a colour for each number from 0 to 1, between these in equal steps
  const stops = names.flatMap((name) => css(name).split(" ")).map(rgb), last = stops.length - 1;
  return (t) => {
    const at = clamp(t, 0, 1) * last, i = Math.min(Math.floor(at), last - 1);
    return `rgb(${stops[i].map((part, j) => Math.round(part + (stops[i + 1][j] - part) * (at - i))).join(" ")})`;
  };
}
function signed(limit, up = "positive", down = "negative") {
  const [above, below] = [scale("zero", up), scale("zero", down)];
  return (value) => (value > 0 ? above : below)(Math.abs(value) / limit);
}
function between([low, high]) {
  const colour = scale("paper", "text");
  return (value) => colour((value - low) / (high - low));
}
const mapRange = range(maps), filterLimit = largest([filter, afterStep(ways[0], Number($("rate").value))]);

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
function box(pen, [x, y, k], elements) {
  for (const [colour, width] of [[css("paper"), 11], [css("chosen"), 7]]) {
    Object.assign(pen, { strokeStyle: colour, lineWidth: width });
    pen.strokeRect(x - 4, y - 4, k * elements + 8, k * elements + 8);
  }
}
function dots(pen, at, elements) {
  Object.assign(pen, { fillStyle: css("winner"), strokeStyle: css("dark"), lineWidth: 1.5 });
  pen.beginPath();
  for (const [x, y, k] of elements.map(at)) {
    pen.moveTo(x + 0.8 * k, y + k / 2);
    pen.arc(x + k / 2, y + k / 2, 0.3 * k, 0, 7);
  }
  pen.fill();
  pen.stroke();
}
function grid(pen) { // the borders of the windows
  Object.assign(pen, { strokeStyle: css("line"), lineWidth: 1.5 });
  for (let i = 0; i <= 480; i += 480 / CELLS) pen.strokeRect(i, -1, 0, 482), pen.strokeRect(-1, i, 482, 0);
}
function drawMap(canvas, map, image, won, text, more = () => {}) { // winners that saw only blank paper have no dot
  draw(canvas, map, SIDE, between(mapRange), text, (pen, at) => {
    grid(pen);
    more(pen, at);
    dots(pen, at, won.filter((winner) => patchOf(image, winner).some(Boolean)));
  });
}
function drawRouted(canvas, routed, most, text, more = () => {}) {
  draw(canvas, routed, SIDE, signed(most), text, (pen, at) => {
    grid(pen);
    more(pen, at);
  });
}
function drawKernel(svg, values, text, colour = signed(limit), most = limit) { // 5 x 5, with the numbers
  const zero = wide.matches ? "0" : "", size = wide.matches ? 0.3 : 0.38;
  svg.setAttribute("aria-label", `${text}: ${Array.from(values, (value) => fixed(value)).join(", ")}.`);
  svg.innerHTML = Array.from(values, (value, i) => {
    const [x, y] = [i % KERNEL, Math.floor(i / KERNEL)], ink = Math.abs(value) > 0.6 * most ? "paper" : "text";
    const number = fixed(value).replace(/0(?=\.)/, zero);
    return `<rect x="${x}" y="${y}" width="1.01" height="1.01" fill="${colour(value)}"/>` +
      `<text x="${x + 0.5}" y="${y + 0.62}" text-anchor="middle" style="font-size:${size}px;fill:${css(ink)}">${number}</text>`;
  }).join("");
}
const drawFilter = (svg, values, text) => drawKernel(svg, values, text, signed(filterLimit, "more", "less"), filterLimit);
function arrow(x, y, dx, dy, colour, width) { // in SVG, with y upwards
  const length = norm([dx, dy]), [ux, uy] = [dx / length, dy / length], head = 4 * width;
  if (!length) return "";
  const corner = ([u, v]) => `${x + dx + u * ux - v * uy},${-(y + dy + u * uy + v * ux)}`;
  const corners = [[0, 0], [-head, head / 2], [-head, -head / 2]].map(corner).join(" ");
  const line = `M${x} ${-y}L${x + dx - (head * ux) / 2} ${-(y + dy - (head * uy) / 2)}`;
  return `<path d="${line}" stroke="${colour}" stroke-width="${width}"/><polygon points="${corners}" fill="${colour}"/>`;
}

// --- The parts; each draws from the state ---

const state = { way: 0, rate: Number($("rate").value), a: 1, b: -0.5, rule: "first", digit: 0, row: 8, column: 5, count: 144, n: 0, order: 0 };
const cellOf = () => (state.row - 1) * CELLS + state.column - 1;
const WAYS = [ // what stands where the three gradients stand, what makes the step, and what to say of it
  ["gradients of the filter: Σ\u00a0patch\u00a0×\u00a0cotangent", "their mean", () =>
    "Each gradient is the sum, over the winners of its digit, of patch × cotangent: the pixels that the winner saw, times " +
    "the derivative of the loss with respect to the winner. All are 5 × 5, so they have a mean. jax.grad of the mean loss gives the same."],
  ["too early: the mean of the maps, with its own winners", "what (a) gives", (turned) =>
    `(a) averages the activations that are pooled, here the maps. Their mean has winners of its own. The gradient is ${turned} from the right one.`],
  ["too early: mean cotangents, divided among all winners", "what (b) gives", (turned) =>
    "(b) averages the cotangents of each window, and divides each mean equally among the elements that won for any of the " +
    `three digits. The gradient is ${turned} from the right one. The layers above get the right one.`],
  ["too early: mean cotangents, winners of the mean map", "what (c) gives", (turned) =>
    "(c) averages the errors (the cotangents of the ten scores), and sends their mean back through the means of all " +
    `activations. The gradient is ${turned} from the right one, about as far as that of (b). But the layers above get wrong ones too, so it learns less.`],
];
for (const id of ["digits", "maps"]) $(id).insertAdjacentHTML("beforeend", `<canvas role="img"></canvas>`.repeat(3));
$("gradients").insertAdjacentHTML("beforeend",
  `<svg class="of-digit" viewBox="0 0 5 5" role="img"></svg>`.repeat(3) + `<canvas id="early" class="early" role="img"></canvas>`);
for (const canvas of $("maps").querySelectorAll("canvas")) canvas.classList.add("touch");

function drawAnswer() {
  const { way, rate } = state, cell = cellOf(), [over, name, say] = WAYS[way], gradient = ways[way];
  const window = (pen, at) => box(pen, at(windowOf(cell)[0]), 2);
  $("answer").dataset.way = way;
  $("averaged").textContent = over;
  $("of-mean").firstChild.textContent = name;
  images.forEach((image, i) => {
    const [digit, map, kernel] = ["digits", "maps", "gradients"].map((id) => $(id).children[i + 1]), label = labels[i];
    const patch = (pen, at) => way === 1 || box(pen, at(pixelOf(winners[i][cell])), KERNEL);
    draw(digit, image, DIGIT, between([0, 255]), `One of the digits, a handwritten ${label}.`, patch);
    drawMap(map, maps[i], image, way === 1 ? [] : winners[i], `Feature map of the ${label}, 24 by 24, and winners.`, window);
    drawKernel(kernel, gradients[i], `Gradient of the filter for the ${label}`);
  });
  if (way === 1) drawMap($("early"), meanMap, meanImage, meanWinners, "The mean of the three feature maps, and its winners.");
  const sent = way === 2 ? spread(meanCotangents) : route(meanWinners, meanCotangents), most = largest([sent]);
  if (way > 1) drawRouted($("early"), sent, most, `${over}.`);
  drawKernel($("mean"), gradient, way ? "The gradient of the filter that this gives" : "The mean of the three gradients");
  drawKernel($("right"), ways[0], "The right gradient: the mean of the three");
  drawFilter($("before"), filter, "The filter before the step");
  drawFilter($("after"), afterStep(gradient, rate), "The filter after the step");
  const [before, after] = [0, rate].map((at) => losses[way][Math.round(at * (losses[way].length - 1))]);
  $("said-answer").innerHTML = `<strong>A step, filter ${MINUS}\u00a0${rate} × gradient, takes the mean loss of the three from ` +
    `${before.toFixed(3)} to ${after.toFixed(3)}.</strong> ${say(`${fixed(angle(gradient, ways[0]), 0)}°`)}`;
  const bar = (name, most, less, more, or = "") => { // colours stay the same beyond the ends
    const colours = [...css(less).split(" ").reverse(), css("zero"), ...css(more).split(" ")];
    return `<p>${name}<i style="background:linear-gradient(90deg,${colours})"></i>${MINUS}${fixed(most)}${or && " or less"} to ${fixed(most)}${or}</p>`;
  };
  $("scale").innerHTML = bar("gradients and their mean", limit, "negative", "positive") + bar("filters", filterLimit, "less", "more", " or more") +
    (way > 1 ? bar("mean cotangents", most, "negative", "positive") : "");
}

function drawWindow() {
  const { a, b, rule } = state, [toA, toB] = shares([a, b], rule), ends = [-2, -1, 0, 1, 2];
  const label = (x, y, text) => `<text x="${x}" y="${y}" text-anchor="middle" style="font-size:.24px">${signs(String(text))}</text>`;
  let parts = `<path d="M-2.4 2.4L2.4-2.4" stroke="${css("equal")}" stroke-width=".03"/>` + label(0, 2.9, "a") + label(-2.85, 0.08, "b") +
    ends.map((i) => label(i, 2.6, i) + label(-2.55, 0.08 - i, i)).join("");
  for (let i = -2; i <= 2; i += 0.5) {
    for (let j = -2; j <= 2; j += 0.5) {
      const [x, y] = shares([i, j], rule), colour = css(i === j ? "equal" : "accent");
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
  const i = state.digit, cell = cellOf(), elements = windowOf(cell), winner = winners[i][cell], ct = cotangents[i][cell];
  const [top, left] = [Math.floor(winner / SIDE), winner % SIDE], won = `row ${top + 1}, column ${left + 1}`;
  const values = elements.map((element) => maps[i][element]), tied = values.filter((value) => value === maps[i][winner]).length;
  const where = `row ${state.row}, column ${state.column}`, patch = patchOf(images[i], winner), most = largest(cotangents);
  const window = (pen, at) => box(pen, at(elements[0]), 2);
  $("said-one").textContent =
    `The ${labels[i]}; window in ${where}. Its elements: ${values.map(short).join(", ")}. The winner is in ${won} of ` +
    `the feature map${tied > 1 ? ` (${tied} elements are equal, the first wins)` : ""}. Forward: its value ${short(maps[i][winner])} ` +
    `is kept. Backward: it receives the cotangent ${short(ct)}, the other three 0. ` +
    `${patch.some(Boolean) ? "" : "It saw blank paper only, zeros, and so adds nothing."}`;
  draw($("image"), images[i], DIGIT, between([0, 255]), `The digit, a handwritten ${labels[i]}.`, (pen, at) => box(pen, at(pixelOf(winner)), KERNEL));
  drawMap($("map"), maps[i], images[i], winners[i], `Feature map of the ${labels[i]}. In the window in ${where}, ${won} has won.`, window);
  drawRouted($("routed"), route(winners[i], cotangents[i]), most, `Cotangents: ${short(ct)} in ${won}; 0 at all that did not win.`, window);
  $("arriving").textContent = `backward: its cotangents, at the winners; ${MINUS}${fixed(most)} red, ${fixed(most)} blue`;
  const term = patch.map((value) => value * ct), own = largest([term]) || 1, { count } = state;
  drawKernel($("term"), term, "What this winner adds to the gradient", signed(own), own);
  $("adds").textContent = `this winner adds: patch × cotangent (its own colours, ${MINUS}${fixed(own)} to ${fixed(own)})`;
  drawKernel($("sum"), sumOf(i, count), `The sum over the first ${count} winners of the ${labels[i]}`);
  $("added").textContent = `sum of ${count} of the 144 winners${count < 144 ? ", row by row" : ": this digit's gradient"}`;
}

function drawMore() {
  const { n, order } = state, count = data.sizes[n], [low, median, high] = Array.from(quartiles[n], (value) => fixed(value));
  const x = (i) => 60 + (375 * Math.log(data.sizes[i])) / Math.log(data.sizes.at(-1)), y = (value) => 105 - 95 * value;
  const points = (values) => values.map((value, i) => `${x(i)},${y(value)}`);
  const column = (i) => quartiles.map((part) => part[i]), one = Array.from(orders[order]);
  const text = (x, y, anchor, words, more = "") => `<text x="${x}" y="${y}" text-anchor="${anchor}" ${more}>${words}</text>`;
  $("cosines").innerHTML =
    [-1, -0.5, 0, 0.5, 1].map((value) => `<path d="M55 ${y(value)}H445" stroke="${css("line")}"/>` +
      text(50, y(value) + 4, "end", signs(String(value)))).join("") +
    data.sizes.map((size, i) => text(x(i), 218, "middle", size)).join("") + text(250, 240, "middle", "digits in the mean") +
    text(-105, 14, "middle", "cosine with the mean over all", `transform="rotate(-90)"`) +
    `<polygon points="${points(column(0)).concat(points(column(2)).reverse()).join(" ")}" fill="${css("accent")}" opacity=".25"/>` +
    `<polyline points="${points(column(1)).join(" ")}" fill="none" stroke="${css("accent")}" stroke-width="2.5"/>` +
    `<polyline points="${points(one).join(" ")}" fill="none" stroke="${css("text")}" stroke-width="1.5" stroke-dasharray="5 4"/>` +
    `<circle cx="${x(n)}" cy="${y(one[n])}" r="6" fill="${css("winner")}" stroke="${css("text")}"/>`;
  $("said-more").textContent = `${count === 1 ? "One digit" : `The mean of ${count} digits`}: the median of the cosine is ${median}; ` +
    `half of the orders lie between ${low} and ${high}. In this draw, ${order + 1} of ${orders.length}, it is ${fixed(one[n])}.`;
  $("cosines").setAttribute("aria-label", `Cosines by the number of digits. ${$("said-more").textContent}`);
}

// --- What the reader does ---

const DRAWN = [ // each part, and the state that it shows
  [drawAnswer, "way", "rate", "row", "column"], [drawWindow, "a", "b", "rule"], [drawOne, "digit", "row", "column", "count"],
  [drawMore, "n", "order"],
];
const NUMBERS = ["rate", "a", "b", "row", "column", "count", "n"], CHOICES = ["way", "rule", "digit"];

function show(given = state) {
  const changed = Object.keys(given).filter((name) => given === state || given[name] !== state[name]);
  Object.assign(state, given);
  for (const name of NUMBERS) {
    $(name).value = state[name];
    $(name).nextSibling.textContent = name === "n" ? data.sizes[state.n] : signs(String(state[name]));
  }
  $("n").setAttribute("aria-valuetext", data.sizes[state.n]);
  for (const radio of document.querySelectorAll("input[type=radio]")) radio.checked = radio.value === String(state[radio.name]);
  const active = document.activeElement.closest("section")?.id ?? "answer"; // whose news are read aloud
  for (const news of document.querySelectorAll("output")) {
    news.setAttribute("aria-live", news.closest("section").id === active ? "polite" : "off");
  }
  for (const [part, ...names] of DRAWN) if (names.some((name) => changed.includes(name))) part();
}

$("digit").insertAdjacentHTML("beforeend", [...labels].map((label, i) => // the label has the words
  `<label><input type="radio" name="digit" value="${i}"> ${label}</label>`).join(""));
accuracies.forEach((part, i) => { document.querySelectorAll(".ways b")[i].textContent = percent(part); });
for (const name of NUMBERS) {
  $(name).after(document.createElement("span"));
  $(name).addEventListener("input", () => show({ [name]: Number($(name).value) }));
}
for (const name of CHOICES) {
  const read = (value) => (name === "rule" ? value : Number(value));
  const more = () => (name === "rule" ? { b: state.a } : {}); // a rule decides where both are equal: go there
  for (const radio of document.getElementsByName(name)) {
    radio.addEventListener("change", () => show({ [name]: read(radio.value), ...more() }));
  }
}
$("order").addEventListener("click", () => show({ order: (state.order + 1) % orders.length }));

// Calls act(x, y), from 0 to 1, at such an event.
function onPoint(element, name, holds, act) {
  element.addEventListener(name, (event) => {
    const area = element.getBoundingClientRect();
    if (holds(event)) act((event.clientX - area.left) / area.width, (event.clientY - area.top) / area.height);
  });
}
const quarter = (value) => clamp(Math.round(value * 4) / 4, -2, 2);
const cellAt = (part) => clamp(Math.ceil(CELLS * part), 1, CELLS);
const toPlane = (x, y) => show({ a: quarter(5.6 * x - 3), b: quarter(2.6 - 5.6 * y) });
onPoint($("plane"), "pointerdown", (event) => event.buttons === 1 && !$("plane").setPointerCapture(event.pointerId), toPlane);
onPoint($("plane"), "pointermove", (event) => $("plane").hasPointerCapture(event.pointerId), toPlane);
for (const map of document.querySelectorAll("canvas.touch")) {
  const i = [...$("maps").children].indexOf(map) - 1;
  const toCell = (x, y) => show({ row: cellAt(y), column: cellAt(x), ...(i < 0 ? {} : { digit: i }) });
  onPoint(map, "click", () => true, toCell);
}

const arrows = (ends) => ends.map(([from, to]) => `M4 ${from}L40 ${to}M32 ${to - 4}L40 ${to}L32 ${to + 4}`).join(""), ROWS = [84, 272, 460];
const LINKS = { side: ROWS.map((y) => [y, y]), meet: ROWS.map((y) => [y, 272]), straight: [[272, 272]] };
for (const [name, ends] of Object.entries(LINKS)) {
  for (const path of document.querySelectorAll(`path.${name}`)) path.setAttribute("d", arrows(ends));
}
for (const media of [dark, wide]) media.addEventListener("change", () => show());

const taps = bytes(data.winners); // jpool's winners
const same = winners.flat().filter((winner, i) => winner === windowOf(i % CELLS ** 2)[taps[i]]).length;
$("check").textContent = `In your browser just now, ${same} of ${taps.length} winners agreed with jpool's.`;
show();
