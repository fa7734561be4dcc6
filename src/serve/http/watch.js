// Asks the server every few seconds what is new in its runs, and draws their curves.
const LIVE_MS = 2000, QUIET_MS = 6000;

let runs = [];  // of the server's answer, in its order
const curves = new Map();  // by name: {version, points: {step: [...], tokens: [...], ...}}
const colours = new Map();  // by name, in the order in which they came
const shown = new Map();  // by name, whether its lines are drawn; those not in it are
const charts = new Map();  // by id of the figure
const view = Object.assign({x: "tokens", smoothing: 0.6}, store.get("watch", {}));

// --- what the server says -------------------------------------------------------------------------

async function fetched(path) {
  const response = await fetch(path, {headers: headers()});
  $("key-form").hidden = response.status !== 401;
  if (!response.ok) throw new Error(await problemOf(response));
  return response.json();
}

async function bring(run) {
  const have = curves.get(run.name) ?? {version: -1, points: {step: []}};
  const length = have.points.step.length;
  if (have.version === run.version && length === run.points) return;
  const from = have.version === run.version ? length : 0;
  const query = new URLSearchParams({run: run.name, version: Math.max(0, have.version), from});
  const news = await fetched("/runs/curve?" + query);
  const points = {};
  for (const [name, values] of Object.entries(news.points)) {
    points[name] = (have.points[name] ?? []).slice(0, news.from).concat(values);
  }
  curves.set(run.name, {version: news.version, points});
}

let next = 0;  // a timer

async function refresh() {
  clearTimeout(next);
  let live = true;
  try {
    const list = await fetched("/runs");
    runs = list.runs;
    for (const run of runs) {
      try {
        await bring(run);
      } catch (error) {  // of a run that has just gone, which the next list says
        if (error instanceof TypeError) throw error;
      }
    }
    live = runs.some((run) => run.state === "running" || run.state === "waiting");
    notice(list.omitted > 0 ? list.omitted + " further runs are not shown." : "");
  } catch (error) {
    const gone = error instanceof TypeError;  // of fetch: nobody answers
    notice(gone ? "The server does not answer. What is shown is what it said last." : error.message);
  }
  draw();
  next = setTimeout(refresh, live && !document.hidden ? LIVE_MS : QUIET_MS);
}

// --- runs ----------------------------------------------------------------------------------------

function duration(seconds) {
  if (seconds < 90) return Math.round(seconds) + " s";
  if (seconds < 5400) return Math.round(seconds / 60) + " min";
  return (seconds / 3600).toFixed(1) + " h";
}

function lastOf(name, key) {
  return (curves.get(name)?.points[key] ?? []).findLast(known);
}

function factsOf(run) {
  const facts = element("p", {className: "facts"});
  if (!run.last) return facts;
  const bold = (text) => element("b", {textContent: text});
  facts.append("loss ", bold(run.last.loss.toFixed(3)));
  const heldOut = lastOf(run.name, "held_out_bits_per_byte");
  if (known(heldOut)) facts.append(" · ", bold(bits(heldOut)), " bits/byte");
  facts.append(element("br"), `step ${run.last.step} · ${count(run.last.tokens)} tokens · ${duration(run.last.seconds)}`);
  if (run.state === "running") {
    facts.append(element("br"), count(run.last.tokens_per_second) + " tokens/s");
    if (run.share > 0) facts.append(` · ${Math.floor(100 * run.share)}%, ${duration(run.last.seconds * (1 / run.share - 1))} left`);
  }
  return facts;
}

const meanings = {
  waiting: "No step has ended yet",
  running: "A process is training it",
  finished: "It has used up its budget",
  stopped: "It ended before its budget was used up; --resume goes on",
  died: "Its process was killed; --resume goes on from its last saved state",
};

// A run keeps its colour when others come.
function colourOf(name) {
  if (!colours.has(name)) colours.set(name, colours.size);
  return colours.get(name);
}

function drawRun(run) {
  const off = shown.get(run.name) === false;
  const box = element("input", {type: "checkbox", checked: !off, onchange() {
    shown.set(run.name, box.checked);
    draw();
  }});
  const item = element("li", {className: `series-${colourOf(run.name) % COLOURS}${off ? " off" : ""}`, title: run.pattern},
    element("label", {}, box, element("span", {textContent: run.name}),
      element("span", {className: "state " + run.state, textContent: run.state, title: meanings[run.state]})),
    factsOf(run));
  if (known(run.share) && run.state !== "finished") {
    const bar = element("i");
    bar.style.width = 100 * run.share + "%";
    item.append(element("div", {className: "done"}, bar));
  }
  return item;
}

function drawRuns() {
  const focused = [...$("runs").querySelectorAll("input")].indexOf(document.activeElement);
  $("runs").replaceChildren(...runs.map(drawRun));
  if (focused >= 0) $("runs").querySelectorAll("input")[focused]?.focus();
  if (runs.length === 0) {
    $("runs").append(element("li", {className: "empty", textContent: "No runs yet. They appear here when their first state is saved."}));
  }
}

// --- charts --------------------------------------------------------------------------------------

// An exponential mean, corrected for its beginning.
function smoothed(points, weight) {
  let sum = 0, weights = 0;
  return points.map((point) => {
    sum = weight * sum + (1 - weight) * point.y;
    weights = weight * weights + (1 - weight);
    return {...point, y: sum / weights};
  });
}

function pointsOf(name, key, divisor) {
  const points = curves.get(name)?.points;
  if (!points || shown.get(name) === false) return [];
  const made = [];
  for (let i = 0; i < points.step.length; ++i) {
    const y = points[key][i];
    if (known(y)) made.push({x: points[view.x][i] / divisor, y});
  }
  return made;
}

// A line of a run. Its last point says how the run is: a dot goes on, a square has finished, a
// cross was stopped or died.
function lineOf(run, points, more) {
  const index = colourOf(run.name), colour = scheme.series[index % COLOURS];
  const end = {running: "circle", waiting: "circle", finished: "rect", stopped: "crossRot", died: "crossRot"}[run.state];
  const only = (value, rest) => points.map((_, i) => i + 1 === points.length ? value : rest);
  return Object.assign({
    label: run.name,
    data: points,
    borderColor: colour,
    backgroundColor: colour,
    borderWidth: 1.8,
    borderDash: index < COLOURS ? [] : [6, 3],
    pointStyle: end,
    pointRadius: only(end === "crossRot" ? 6 : 4.5, 0),
    pointBorderWidth: only(end === "crossRot" ? 3 : 1, 0),
    pointHoverRadius: 5,
    clip: {left: 8, top: 0, right: 8, bottom: 8},
  }, more);
}

function chart(id, lines, axes, format) {
  const figure = $(id);
  const datasets = lines.filter((line) => line.data.length > 0);
  figure.hidden = datasets.length === 0;
  if (figure.hidden) return;
  const options = {
    animation: false,
    responsive: true,
    maintainAspectRatio: false,
    parsing: false,
    normalized: true,
    interaction: {mode: "nearest", axis: "x", intersect: false},
    scales: axes(datasets.map((line) => line.data)),
    plugins: {
      legend: {display: false},
      tooltip: {callbacks: {
        title: (items) => items.length > 0 ? place(items[0].raw.x) : "",
        label: (item) => item.dataset.label + ": " + format(item.raw.y),
      }},
    },
  };
  const made = charts.get(id);
  if (made) {
    made.data.datasets = datasets;
    made.options = options;
    made.update("none");
  } else {
    charts.set(id, new Chart(figure.querySelector("canvas"), {type: "line", data: {datasets}, options}));
  }
}

let unit = {divisor: 1, name: ""};  // of the axis along which runs go
const round = (value) => String(Number(value.toPrecision(3)));
function place(x) {
  if (view.x === "seconds") return round(x) + " " + unit.name;
  return view.x === "tokens" ? count(x) + " tokens" : "step " + Math.round(x);
}

function alongAxis(lines) {
  const title = {tokens: "training tokens", seconds: "training time in " + unit.name, step: "steps"}[view.x];
  return axis(title, view.x === "seconds" ? round : count, 0, extent(lines, "x")[1]);
}

function drawCharts() {
  const longest = Math.max(0, ...runs.map((run) => run.last?.seconds ?? 0));
  unit = view.x === "seconds" ? timeUnit(longest) : {divisor: 1, name: ""};
  const linesOf = (key, weight = 0, more = {}) => runs.map((run) =>
    lineOf(run, smoothed(pointsOf(run.name, key, unit.divisor), weight), more));
  // What falls from a high beginning would press the rest flat: `top` leaves that out.
  const level = (title, format, top, room = 0.06) => (lines) => {
    const low = extent(lines, "y")[0], high = top ? settled(lines) : extent(lines, "y")[1];
    const space = room * (high - low) || 0.05 * Math.abs(high) || 1;
    return {x: alongAxis(lines), y: axis(title, format, low - space, high + space)};
  };
  const fromZero = (title, format) => (lines) =>
    ({x: alongAxis(lines), y: axis(title, format, 0, 1.06 * extent(lines, "y")[1])});
  const small = (value) => value === 0 ? "0" : value < 0.01 ? value.toExponential(1) : round(value);

  chart("loss", linesOf("loss", view.smoothing), level("nats a token", round, true), (y) => y.toFixed(3));
  chart("held-out", linesOf("held_out_bits_per_byte"), level("bits per byte", round, true), bits);
  chart("speed", linesOf("tokens_per_second", view.smoothing), fromZero("tokens/s", count), (y) => count(y) + " tokens/s");
  chart("rate", linesOf("learning_rate"), fromZero("", small), small);
  chart("norm", linesOf("gradient_norm", view.smoothing), level("", small, true), small);
  const most = linesOf("most_expert_share", view.smoothing);
  const least = linesOf("least_expert_share", view.smoothing, {borderDash: [2, 3]});
  chart("experts", [...most, ...least], fromZero("share", round), (y) => y.toFixed(2));
}

function draw() {
  drawRuns();
  drawCharts();
}

function start() {
  for (const name of ["x", "smoothing"]) {
    $(name).value = view[name];
    $(name).addEventListener("input", () => {
      view[name] = name === "x" ? $(name).value : Number($(name).value);
      store.set("watch", view);
      drawCharts();
    });
  }
  $("key-form").onsubmit = (event) => {
    event.preventDefault();
    settings.key = $("key").value;
    store.set("settings", settings);
    refresh();
  };
  const recolour = () => {
    readScheme();
    Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;
    draw();
  };
  connectTheme(recolour);
  recolour();
  refresh();
}
