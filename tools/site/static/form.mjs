// A form whose answers come from Python in a worker. Every change is asked at once; the newest question wins.
const element = (id) => document.getElementById(id);
const { page, first } = JSON.parse(element("data").textContent);
const form = element("form");
const worker = new Worker(new URL("worker.mjs", import.meta.url), { type: "module" });
const waiting = new Map(); // number of a request -> what to do with its reply
// Python starts to load before Vega's script runs: the charts wait for that script.
const vegaLoaded = new Promise((resolve) => addEventListener("load", resolve));
let number = 0, busy = false, next = false;

function ask(kind, given, view) {
  number += 1;
  worker.postMessage({ number, kind, page, given, view });
  return new Promise((resolve, reject) => waiting.set(number, { resolve, reject }));
}

worker.onmessage = ({ data }) => {
  const { resolve, reject } = waiting.get(data.number);
  waiting.delete(data.number);
  if (data.failure) reject(new Error(data.failure));
  else resolve(JSON.parse(data.reply));
};
worker.onerror = (event) => say(`Python could not be loaded: ${event.message || "see the browser's console"}`, true);

function given() {
  const values = {};
  for (const field of form.elements) {
    if (field.name && field.value !== "") values[field.name] = field.type === "number" ? field.valueAsNumber : field.value;
  }
  return values;
}

function say(text, wrong = false) {
  element("message").textContent = text;
  element("message").classList.toggle("wrong", wrong);
}

async function draw(shown) {
  element("answer").innerHTML = shown.answer;
  Object.values(shown.parts).forEach((html, n) => (element(`part-${n}`).innerHTML = html));
  if (!shown.chart) return;
  const chart = element("chart");
  const { title, $schema, ...spec } = shown.chart;
  spec.width = Math.max(280, Math.min(640, chart.clientWidth - 130));
  element("chart-title").textContent = title.text;
  chart.setAttribute("aria-label", spec.description);
  await vegaLoaded;
  await window.vegaEmbed(chart, spec, { mode: "vega-lite", renderer: "svg", actions: false, ast: true });
}

async function update() {
  if (busy) {
    next = true;
    return;
  }
  if (!form.checkValidity()) {
    const field = form.querySelector(":invalid:not(fieldset)");
    say(`${field.labels[0].textContent.trim()}: ${field.validationMessage}`, true);
    return;
  }
  busy = true;
  const asked = performance.now();
  try {
    const shown = await ask("shown", given(), element("view")?.value);
    if (shown.error) {
      say(shown.error, true);
    } else {
      await draw(shown);
      say("");
      command();
      if (element("json").open) await fillJson();
    }
    document.body.dataset.took = (performance.now() - asked).toFixed(0);
    document.body.dataset.state = "ready";
  } catch (error) {
    say(`${error.message}. Reload the page.`, true);
    document.body.dataset.state = "failed";
  }
  busy = false;
  if (next) {
    next = false;
    update();
  }
}

async function fillJson() {
  element("json-text").textContent = JSON.stringify(await ask("plain", given()), null, 1);
}

function command() {
  const changed = Object.entries(given()).filter(([name, value]) => String(value) !== form.dataset[name]);
  const quoted = changed.map(([name, value]) => ` --set '${name}=${value}'`).join("");
  element("command").textContent = `labkit ${page === "calculator" ? "cost" : "select"}${quoted}`;
  const fragment = new URLSearchParams(changed).toString();
  history.replaceState(null, "", fragment ? `#${fragment}` : location.pathname);
}

function fill() {
  const day = form.elements.prices_on;
  if (day) day.value = new Date(Date.now() - 60000 * new Date().getTimezoneOffset()).toISOString().slice(0, 10);
  for (const field of form.elements) if (field.name) form.dataset[field.name] = field.value;
  for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
    if (form.elements[name]) form.elements[name].value = value;
    oneTraffic(name);
  }
}

// The traffic is given in requests or in tokens: setting one clears the other.
function oneTraffic(name) {
  const other = { requests_per_s: "tokens_per_day", tokens_per_day: "requests_per_s" }[name];
  if (!other) return;
  if (form.elements[name].value !== "") form.elements[other].value = "";
  form.elements.requests_per_s.required = form.elements.tokens_per_day.value === "";
}

form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("input", (event) => {
  oneTraffic(event.target.name);
  update();
});
element("view")?.addEventListener("input", update);
element("json").addEventListener("toggle", () => element("json").open && document.body.dataset.state === "ready" && fillJson());
window.ask = ask; // for the tests

fill();
say("Python is loading: the fields answer in a few seconds. Below is the answer to the first question.");
draw(first);
update();
