// The page: what is chosen goes to /classify, what comes back is shown. It keeps nothing.

const $ = (id) => document.getElementById(id);
const TOP_K = 5;
const EVERY_MS = 80; // no more than a request in so long
const PATIENCE_MS = 400; // an older one is given up for the next, while the slider moves

const state = {
  key: "",
  photo: null, // {blob, name, sample}
  about: null, // /budgets
  unit: "flops",
  place: { flops: 0.35, latency_ms: 0.5, confidence: 0.75 }, // of the slider, 0 to 1
  answer: null,
};

// ---------------------------------------------------------------------------------- numbers

const number = (value, digits = 3) =>
  value.toLocaleString("en", { maximumSignificantDigits: digits, useGrouping: false });

function withSuffix(value, digits = 3) {
  const steps = [["T", 1e12], ["G", 1e9], ["M", 1e6], ["K", 1e3], ["", 1]];
  const [suffix, size] = steps.find(([, one]) => Math.abs(value) >= one * 0.9995) ?? ["", 1];
  return [number(value / size, digits), suffix];
}

const flopsText = (value) => withSuffix(value).join(" ") + "FLOPs";
const msText = (value) => `${number(value)} ms`;
const percent = (share, digits = 3) => `${number(100 * share, digits)} %`;

/** Between two numbers, in equal factors where they lie far apart. */
function scale(low, high) {
  const far = high / low > 8;
  return {
    at: (part) => (far ? low * (high / low) ** part : low + (high - low) * part),
    part: (value) => (far ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low || 1)),
  };
}

function range() {
  const { flops, latency_ms: latency } = state.about;
  if (state.unit === "flops") return scale(flops.min, flops.max);
  if (state.unit === "confidence") return scale(0.3, 0.99);
  return scale(1.3 * latency.min, Math.max(4 * latency.largest_subnet, 10 * latency.min));
}

/** The budget as a person would write it: never below the smallest network, and up to the largest. */
function budget() {
  const value = range().at(state.place[state.unit]);
  if (state.unit === "latency_ms") return number(value);
  if (state.unit === "confidence") return value.toFixed(2);
  const { min, max } = state.about.flops;
  return atLeast(state.place.flops < 1 ? min : max, value);
}

/** FLOPs in three digits that are not below so many. */
function atLeast(least, value = least) {
  const text = withSuffix(value).join("");
  if (flopsOf(text) >= least) return text;
  const unit = 10 ** (Math.floor(Math.log10(value)) - 2);
  return withSuffix(unit * Math.ceil(value / unit)).join("");
}

/** What both networks of the largest pair may spend together. */
const forBoth = () => atLeast(Math.max(...state.about.confidence.pairs.map((one) => one.budget_flops)));

/** The headers that say what is asked for. */
function asked() {
  const value = budget();
  if (state.unit === "flops") return { "FLOPs-Budget": value };
  if (state.unit === "latency_ms") return { "Latency-Budget": value };
  return { Confidence: value, "FLOPs-Budget": forBoth() };
}

function flopsOf(text) {
  const size = { T: 1e12, G: 1e9, M: 1e6, K: 1e3 }[text.at(-1)];
  return size ? Number(text.slice(0, -1)) * size : Number(text);
}

// ---------------------------------------------------------------------------------- the server

const url = (path) => new URL(path, document.baseURI);

/** The answer, or an Error with the server's own words. */
async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (state.key) {
    // A header has a byte in each character; the key's are UTF-8.
    headers.Authorization = `Bearer ${String.fromCharCode(...new TextEncoder().encode(state.key))}`;
  }
  let answer;
  try {
    answer = await fetch(url(path), { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error(`The server cannot be reached at ${url("")}`);
  }
  if (answer.ok) return answer;
  const problem = await answer.json().catch(() => ({}));
  const error = new Error(problem.detail ?? `${answer.status} ${answer.statusText}`);
  error.status = answer.status;
  error.retry_s = Number(answer.headers.get("Retry-After")) || 0;
  throw error;
}

function fail(error) {
  $("error").textContent = error.message;
  $("error").hidden = false;
  if (error.status === 401 && $("key-form").hidden) {
    $("key-form").hidden = false;
    $("key").focus();
  }
}

async function start() {
  try {
    state.about = await (await ask("budgets")).json();
  } catch (error) {
    fail(error);
    if (error.status !== 401) setTimeout(start, 1000 * (error.retry_s || 3));
    return;
  }
  $("error").hidden = $("key-form").hidden = true;
  const { model } = state.about;
  $("model").replaceChildren(
    "One set of weights, a network of any size: you name the budget. The model is ",
    element("b", model.name),
    `, version ${model.version}${model.precision === "fp32" ? "" : ` in ${model.precision}`}, with ${state.about.labels.length} classes.`,
  );
  showCard(state.about.card);
  $("by-confidence").hidden = !state.about.confidence?.pairs.length;
  drawChart();
  placeSlider();
  if (state.photo) soon();
  else await takeSample($("samples").querySelector("button"));
}

let timer, sentAt = -Infinity, inFlight = null, waiting = false;

/** Ask again, in a moment: whatever is chosen then. */
function soon() {
  if (!state.photo || !state.about) return;
  waiting = true;
  document.body.classList.add("stale");
  clearTimeout(timer);
  const gap = inFlight ? PATIENCE_MS : EVERY_MS;
  timer = setTimeout(classify, Math.max(0, sentAt + gap - performance.now()));
}

async function classify() {
  inFlight?.abort();
  const mine = (inFlight = new AbortController());
  sentAt = performance.now();
  waiting = false;
  try {
    const answer = await ask(`classify?top_k=${TOP_K}`, {
      method: "POST",
      body: state.photo.blob,
      headers: {
        "Content-Type": state.photo.blob.type || "application/octet-stream",
        ...asked(),
      },
      signal: mine.signal,
    });
    const document = await answer.json();
    const roundTripMs = performance.now() - sentAt;
    if (mine.signal.aborted) return;
    $("error").hidden = $("key-form").hidden = true;
    show(document, answer.headers, roundTripMs);
  } catch (error) {
    if (mine.signal.aborted) return;
    fail(error);
    if ([429, 503, 504].includes(error.status)) setTimeout(soon, 1000 * (error.retry_s || 1));
  } finally {
    if (inFlight === mine) {
      inFlight = null;
      if (waiting) soon();
    }
  }
}

// ---------------------------------------------------------------------------------- the answer

function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function shape(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function show(answer, headers, roundTripMs) {
  state.answer = answer;
  document.body.classList.remove("stale");
  showBars(answer.predictions);
  const { subnet } = answer;
  const spent = headers.get("Spent-FLOPs") ?? headers.get("Served-FLOPs") ?? subnet.flops;
  $("flops").textContent = withSuffix(Number(spent)).join(" ");
  $("params").textContent = withSuffix(subnet.params).join(" ");
  showTiming(headers.get("Server-Timing") ?? "", roundTripMs);
  showServed(subnet);
  showHint(answer.budget);
  if ($("subnet").textContent !== subnet.id) showNetwork(subnet);
  showCode();
}

function showBars(predictions) {
  const bars = $("bars");
  while (bars.children.length < predictions.length) {
    const row = element("li", "");
    const track = element("span", "", { class: "track", "aria-hidden": "true" });
    track.append(element("span", "", { class: "fill" }));
    row.append(element("span", "", { class: "label" }), element("span", "", { class: "share" }), track);
    bars.append(row);
  }
  while (bars.children.length > predictions.length) bars.lastChild.remove();
  predictions.forEach(({ label, probability }, index) => {
    const row = bars.children[index];
    row.querySelector(".label").textContent = label;
    row.querySelector(".label").title = label;
    row.querySelector(".share").textContent = `${(100 * probability).toFixed(1)} %`;
    row.querySelector(".fill").style.transform = `scaleX(${probability})`;
  });
}

function showTiming(text, roundTripMs) {
  const ms = {};
  for (const [, name, value] of text.matchAll(/([a-z]+);dur=([\d.]+)/g)) ms[name] = Number(value);
  const total = Object.values(ms).reduce((sum, one) => sum + one, 0);
  $("infer").textContent = "infer" in ms ? msText(ms.infer) : "–";
  $("total").textContent = msText(total);
  const stages = Object.entries(ms);
  $("stages").replaceChildren(...stages.map(() => element("span", "")));
  stages.forEach(([, value], index) => ($("stages").children[index].style.flexGrow = value));
  const words = stages.filter(([, value]) => value > 0).map(([name, value]) => `${name} ${msText(value)}`);
  $("timing").textContent = `${words.join(" · ")}; ${msText(roundTripMs)} with the way here and back`;
}

function showHint(asked) {
  const { flops, latency_ms: latency } = state.about;
  const words = {
    flops: `${flopsText(flops.min)} to ${flopsText(flops.max)}. A larger budget is served by the largest network.`,
    confidence: "A small network answers. Where it is less sure than this, a larger one answers as well.",
    latency_ms: `From the complete photo to the answer, inside the server. The smallest network takes about ${msText(latency.min)} here.`,
  };
  let more = asked?.degraded ? " A larger network would not have been in time." : "";
  if (state.unit === "confidence" && asked) more = ` This answer spent ${flopsText(asked.spent_flops)} of at most ${flopsText(flopsOf(forBoth()))}.`;
  $("hint").textContent = words[state.unit] + more;
}

// ---------------------------------------------------------------------------------- the chart

// In pixels: the chart is as wide as it is, and the slider as long as its axis (page.css).
const LEFT = 52, BESIDE = 14, TOP = 18, BOTTOM = 178;
let chart;

/** Round numbers between two, five of them or so. */
function ticks(low, high) {
  const rough = (high - low) / 6, size = 10 ** Math.floor(Math.log10(rough));
  const step = size * [1, 2, 5, 10].find((one) => one * size >= rough);
  const first = Math.ceil(low / step);
  return Array.from({ length: Math.floor(high / step) - first + 1 }, (_, index) => (first + index) * step);
}

function drawChart() {
  const { flops, frontier, measured_on: images, measured_in, model } = state.about;
  const width = $("chart").clientWidth, right = width - BESIDE;
  $("chart").setAttribute("viewBox", `0 0 ${width} 204`);
  const accuracy = ["held_out_accuracy", "test_accuracy", "agreement"].find((name) => frontier.every((row) => row[name] != null));
  const name = accuracy ?? "infer_ms";
  const rows = frontier.map((row) => [row.flops, row[name]]).sort((a, b) => a[0] - b[0]);
  const heights = rows.map(([, y]) => y);
  const low = Math.min(...heights), high = Math.max(...heights);
  const room = 0.15 * (high - low) || 0.1 * high || 1;
  const across = scale(flops.min, flops.max);
  const x = (value) => LEFT + (right - LEFT) * across.part(value);
  const y = (value) => BOTTOM - ((BOTTOM - TOP) * (value - low + room)) / (high - low + 2 * room);
  const words = accuracy ? (value) => percent(value) : msText;
  chart = { x, y, rows, words, width };

  const lines = low < high ? ticks(low - room, high + room) : [low];
  const points = rows.map(([a, b]) => `${x(a)},${y(b)}`).join(" ");
  const marks = [0, 0.25, 0.5, 0.75, 1].filter((part) => width > 500 || part !== 0.25 && part !== 0.75);
  const what = { held_out_accuracy: "held-out accuracy", test_accuracy: "test accuracy", agreement: "agreement with fp32", infer_ms: "predicted milliseconds" }[name]
    + (accuracy && measured_in !== model.precision ? ` in ${measured_in}` : "");
  const whole = accuracy && images ? `${what} on ${images}` : what;
  $("chart").replaceChildren(
    ...lines.flatMap((value) => [
      shape("line", { class: "grid", x1: LEFT, x2: right, y1: y(value), y2: y(value) }),
      shape("text", { x: LEFT - 8, y: y(value) + 4, "text-anchor": "end" }, words(value)),
    ]),
    shape("text", { x: right, y: BOTTOM - 8, "text-anchor": "end" }, `${width > 600 ? whole : what} against FLOPs`),
    shape("polygon", { class: "area", points: `${x(rows[0][0])},${BOTTOM} ${points} ${x(rows.at(-1)[0])},${BOTTOM}` }),
    shape("polyline", { class: "line", points }),
    ...rows.map(([a, b]) => {
      const point = shape("circle", { class: "point", cx: x(a), cy: y(b), r: 4 });
      point.append(shape("title", {}, `${flopsText(a)}: ${words(b)}`));
      return point;
    }),
    ...marks.map((part) => shape("text", {
      x: LEFT + (right - LEFT) * part,
      y: BOTTOM + 20,
      "text-anchor": part === 0 ? "start" : part === 1 ? "end" : "middle",
    }, withSuffix(across.at(part)).join(" "))),
    shape("line", { id: "allowed", class: "allowed", y1: TOP - 10, y2: BOTTOM, visibility: "hidden" }),
    shape("circle", { id: "served", class: "served", r: 8, visibility: "hidden" }),
    shape("text", { id: "said", class: "said" }),
  );
  $("chart").setAttribute("aria-label", `${whole} against FLOPs: ` + rows.map(([a, b]) => `${flopsText(a)} ${words(b)}`).join(", "));
}

/** The height of the curve over so many FLOPs. */
function between(flops) {
  const { rows } = chart;
  const next = rows.findIndex(([x]) => x >= flops);
  if (next <= 0) return rows.at(next === 0 ? 0 : -1)[1];
  const [[x0, y0], [x1, y1]] = [rows[next - 1], rows[next]];
  return y0 + ((y1 - y0) * (flops - x0)) / (x1 - x0 || 1);
}

function showServed({ flops }) {
  const { x, y, rows, words, width } = chart;
  const measured = rows.find(([one]) => one === flops);
  const height = between(flops);
  const at = x(flops);
  const dot = $("served"), said = $("said");
  dot.setAttribute("cx", at);
  dot.setAttribute("cy", y(height));
  dot.setAttribute("visibility", "visible");
  said.textContent = `${flopsText(flops)}, ${measured ? "" : "about "}${words(height)}`;
  const long = said.getComputedTextLength();
  const fits = at + 14 + long < width - BESIDE;
  said.setAttribute("x", fits ? at + 14 : Math.max(at - 14 - long, LEFT));
  said.setAttribute("y", Math.min(y(height) + 26, BOTTOM - 26));
}

function placeSlider() {
  const part = state.place[state.unit], text = budget();
  $("slider").value = Math.round(1000 * part);
  const [value, suffix] = state.unit === "flops" ? withSuffix(flopsOf(text)) : [text, ""];
  const said = { flops: `${value} ${suffix}FLOPs`, latency_ms: `${text} ms`, confidence: `${percent(text)} sure` }[state.unit];
  $("asked").textContent = said;
  $("slider").setAttribute("aria-valuetext", said);
  const line = $("allowed");
  line.setAttribute("visibility", state.unit === "flops" ? "visible" : "hidden");
  for (const end of ["x1", "x2"]) line.setAttribute(end, chart.x(Math.min(flopsOf(text), state.about.flops.max)) || LEFT);
  showHint();
  showCode();
}

// ---------------------------------------------------------------------------------- the network

const networks = new Map();

async function showNetwork(subnet) {
  $("subnet").textContent = subnet.id;
  $("arch").replaceChildren(
    ...Object.entries(subnet.arch).flatMap(([name, value]) => [
      element("dt", name.replaceAll("_", " ")),
      element("dd", [value].flat().join(" ")),
    ]),
  );
  try {
    if (!networks.has(subnet.id)) {
      const arch = encodeURIComponent(JSON.stringify(subnet.arch));
      networks.set(subnet.id, (await (await ask(`subnets/${subnet.id}?arch=${arch}`)).json()).layers);
    }
  } catch (error) {
    fail(error);
    return;
  }
  if (state.answer.subnet.id === subnet.id) drawLayers(networks.get(subnet.id));
}

function drawLayers(layers) {
  const all = 640, height = 132, most = Math.max(...layers.map((one) => one.largest));
  const step = all / layers.length, width = Math.min(0.78 * step, 40);
  const tall = (flops) => Math.max((height * flops) / most, 2);
  const column = (name, index, flops, more = {}) =>
    shape("rect", { class: name, x: index * step + (step - width) / 2, width, y: height - tall(flops), height: tall(flops), rx: 3, ...more });
  if ($("layers").dataset.columns !== String(layers.length)) {
    $("layers").dataset.columns = layers.length;
    $("layers").replaceChildren(
      ...layers.flatMap((one, index) => [column("most", index, one.largest), column("used", index, 0)]),
    );
  }
  layers.forEach((one, index) => {
    const [frame, used] = [$("layers").children[2 * index], $("layers").children[2 * index + 1]];
    frame.setAttribute("class", one.flops ? "most" : "dropped");
    used.setAttribute("visibility", one.flops ? "visible" : "hidden");
    used.setAttribute("y", height - tall(one.flops));
    used.setAttribute("height", tall(one.flops));
    const said = one.flops ? `${flopsText(one.flops)} of ${flopsText(one.largest)}` : "left out";
    for (const each of [frame, used]) each.replaceChildren(shape("title", {}, `${one.name}: ${said}`));
  });
  const present = layers.filter((one) => one.flops).length;
  $("layers").setAttribute("aria-label", `${present} of ${layers.length} layers are there`);
}

// ---------------------------------------------------------------------------------- programs

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function showCode() {
  if (!state.photo || !state.about) return;
  const { name, sample } = state.photo, amount = budget();
  const headers = Object.entries(asked()).map(([name, value]) => `-H '${name}: ${value}'`).join(" ");
  const server = String(url("")).replace(/\/$/, "");
  const key = state.key ? ` \\\n  -H "Authorization: Bearer $KEY"` : "";
  $("curl").textContent = sample
    ? `curl -s ${server}/page/${sample} |\n  curl -T - ${headers}${key} \\\n  ${server}/classify`
    : `curl -T ${quoted(name)} ${headers}${key} \\\n  ${server}/classify`;
  const budgets = {
    flops: `flops="${amount}"`,
    latency_ms: `latency_ms=${amount}`,
    confidence: state.unit === "confidence" && `flops="${forBoth()}", confidence=${amount}`,
  }[state.unit];
  $("python").textContent = [
    ...(state.key ? ["import os", ""] : []),
    "from shiftnas_serve.client import Client",
    "",
    `with Client("${server}"${state.key ? ', key=os.environ["KEY"]' : ""}) as client:`,
    `    answer = client.classify(${JSON.stringify(sample ? "photo.jpg" : name)}, ${budgets})`,
    "    print(answer.label, answer.subnet.flops)",
  ].join("\n");
}

// ---------------------------------------------------------------------------------- the card

/** Headings, lists, tables and paragraphs of Markdown; whatever else there is stays text. */
function showCard(text) {
  $("card").hidden = !text;
  const made = [];
  for (const part of (text ?? "").replace(/\r/g, "").split(/\n{2,}|\n(?=#)|(?<=^#.*)\n/m)) {
    const lines = part.split("\n").filter((line) => line.trim());
    if (!lines.length) continue;
    if (/^#+ /.test(lines[0])) made.push(inline("h3", lines.join(" ").replace(/^#+ /, "")));
    else if (lines.every((line) => line.startsWith("|"))) made.push(table(lines));
    else if (/^[-*] /.test(lines[0])) {
      const list = element("ul", "");
      list.append(...part.split(/^[-*] /m).filter((one) => one.trim()).map((one) => inline("li", one)));
      made.push(list);
    } else made.push(inline("p", lines.join(" ")));
  }
  $("card-text").replaceChildren(...made);
}

function inline(name, text) {
  const made = element(name, "");
  for (const part of text.split(/(\*\*[^*]+\*\*|`[^`]+`)/)) {
    if (part.startsWith("**")) made.append(element("b", part.slice(2, -2)));
    else if (part.startsWith("`")) made.append(element("code", part.slice(1, -1)));
    else made.append(part);
  }
  return made;
}

function table(lines) {
  const made = element("table", "");
  const blank = /^[|:\- ]+$/; // the line below the names of the columns, and names that are none
  lines.forEach((line, index) => {
    if (blank.test(line)) return;
    const row = element("tr", "");
    const cells = line.replace(/^\||\|\s*$/g, "").split("|");
    row.append(...cells.map((cell) => inline(index ? "td" : "th", cell.trim())));
    made.append(row);
  });
  return made;
}

// ---------------------------------------------------------------------------------- what people do

let shown = null;

function take(blob, name, sample = null) {
  state.photo = { blob, name, sample };
  if (shown) URL.revokeObjectURL(shown);
  shown = URL.createObjectURL(blob);
  $("preview").src = shown;
  $("preview").hidden = false;
  for (const button of $("samples").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(button.value === sample));
  }
  soon();
}

async function takeSample(button) {
  try {
    const blob = await (await ask(`page/${button.value}`)).blob();
    take(blob, button.value, button.value);
  } catch (error) {
    fail(error);
  }
}

function takeFrom(transfer) {
  const file = [...transfer.files][0];
  if (file) take(file, file.name || "photo");
  return Boolean(file);
}

$("preview").addEventListener("error", () => ($("preview").hidden = true)); // the server says why
$("file").addEventListener("change", (event) => {
  takeFrom(event.target);
  event.target.value = ""; // the same file may be chosen again
});
$("samples").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) takeSample(button);
});
document.addEventListener("paste", (event) => takeFrom(event.clipboardData) && event.preventDefault());
for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    document.body.classList.toggle("dragging", kind === "dragenter" || kind === "dragover");
    if (kind === "drop") takeFrom(event.dataTransfer);
  });
}
$("slider").addEventListener("input", (event) => {
  if (!state.about) return;
  state.place[state.unit] = event.target.value / 1000;
  placeSlider();
  soon();
});
for (const radio of document.getElementsByName("unit")) {
  radio.addEventListener("change", () => {
    state.unit = radio.value;
    if (!state.about) return;
    placeSlider();
    soon();
  });
}
new ResizeObserver(() => {
  if (!chart || $("chart").clientWidth === chart.width) return;
  drawChart();
  placeSlider();
  if (state.answer) showServed(state.answer.subnet);
}).observe($("budget"));
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  state.key = $("key").value.trim();
  $("key").value = "";
  start();
});
for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", async () => {
    const from = $(button.dataset.copy);
    try {
      await navigator.clipboard.writeText(from.textContent); // where the page came over https, or from here
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(from);
      button.textContent = "Selected";
    }
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
}

start();
