// Draws the charts from the results in the page, and sorts the tables.
(function () {
'use strict';

const run = JSON.parse(document.getElementById('results').textContent);
const architectures = run.architectures;
const MOST_POINTS = 160;        // of one curve; longer ones are averaged

// ---- curves ----

// Points {x, y} in at most MOST_POINTS means of neighbours; the last point stays itself.
function thinned(points) {
  const size = Math.ceil(points.length / MOST_POINTS);
  if (size <= 1) return points;
  const result = [];
  for (let first = 0; first < points.length; first += size) {
    const part = points.slice(first, first + size);
    const mean = key => part.reduce((sum, point) => sum + point[key], 0) / part.length;
    result.push({x: mean('x'), y: mean('y')});
  }
  return result;
}

// One curve an architecture; x is divided by `divisor`.
function curve(x, y, divisor) {
  return architectures.map(a =>
    a.curve.filter(p => known(p[x]) && known(p[y])).map(p => ({x: p[x] / divisor, y: p[y]})));
}

// ---- charts (charts.js has their parts) ----

let charts = [];

// Many architectures are shown by kinds (lab/results.h): a kind has a colour, those of it differ in
// dashes and points.
const kinds = [...new Set(architectures.map(a => a.kind || ''))];
const grouped = architectures.length > 8 && kinds.length > 1;
const DASHES = [[], [6, 3], [2, 3], [10, 3, 2, 3]];

// Which colour, and how many had it before.
function lookOf(index) {
  if (!grouped) return {colour: index, round: Math.floor(index / COLOURS)};
  const kind = architectures[index].kind || '';
  const before = architectures.slice(0, index).filter(a => (a.kind || '') === kind).length;
  return {colour: kinds.indexOf(kind), round: before};
}

function series(index, points, more) {
  const look = lookOf(index);
  const colour = scheme.series[look.colour % COLOURS];
  return Object.assign({
    label: architectures[index].name,
    architecture: index,
    data: points,
    borderColor: colour,
    backgroundColor: colour,
    borderWidth: 2,
    borderDash: DASHES[look.round % DASHES.length],
    pointStyle: POINTS[(grouped ? look.round : index + 3 * look.round) % POINTS.length],
    pointRadius: 0,
    pointHoverRadius: 5,
    // Points at the edge of the chart are drawn whole; lines that leave at the top are cut.
    clip: {left: 6, top: 0, right: 6, bottom: 6},
  }, more);
}

// A legend of kinds: one entry for each, which hides and shows all of it.
function kindLegend() {
  if (!grouped) return {};
  const members = (chart, kind) => chart.data.datasets.flatMap((dataset, i) =>
    dataset.architecture !== undefined && kinds[lookOf(dataset.architecture).colour] === kind ? [i] : []);
  return {
    onClick: (event, item, legend) => {
      const chart = legend.chart, of = item.kind === undefined ? [item.datasetIndex] : members(chart, item.kind);
      const visible = of.some(i => chart.isDatasetVisible(i));
      for (const i of of) chart.setDatasetVisibility(i, !visible);
      chart.update();
    },
    generateLabels: chart => {
      const plain = Chart.defaults.plugins.legend.labels.generateLabels(chart);
      const kept = plain.filter(item => chart.data.datasets[item.datasetIndex].architecture === undefined);
      return kinds.flatMap(kind => {
        const of = members(chart, kind);
        const first = plain.find(item => item.datasetIndex === of[0]);
        return first === undefined ? [] : [Object.assign({}, first, {
          text: kind || 'other', kind, hidden: !of.some(i => chart.isDatasetVisible(i)),
          pointStyle: 'circle', lineDash: []})];
      }).concat(kept);
    },
  };
}

// Places for names {text, width, x, y} beside their points: to the right, the left, above or below,
// where they lie in the area and cover no point and no name before them; others go without. Returns
// {text, left, top} of those that have one.
function placedNames(names, points, area, height) {
  const gap = 8, half = 4;    // from a point to its name; of what a point covers
  const taken = points.map(p => ({left: p.x - half, right: p.x + half, top: p.y - half, bottom: p.y + half}));
  const placed = [];
  for (const {text, width, x, y} of names) {
    const corners = [[x + gap, y - height / 2], [x - gap - width, y - height / 2],
                     [x - width / 2, y - gap - height], [x - width / 2, y + gap]];
    for (const [left, top] of corners) {
      const right = left + width, bottom = top + height;
      if (left < area.left || right > area.right || top < area.top || bottom > area.bottom) continue;
      if (taken.some(t => left < t.right && t.left < right && top < t.bottom && t.top < bottom)) continue;
      taken.push({left, right, top, bottom});
      placed.push({text, left, top});
      break;
    }
  }
  return placed;
}

// Names beside the points of a scatter chart, the last of each series.
const pointNames = {
  id: 'pointNames',
  afterDatasetsDraw(chart) {
    const ctx = chart.ctx, height = 13;
    ctx.save();
    ctx.font = '11px ' + Chart.defaults.font.family;
    ctx.textBaseline = 'middle';
    ctx.fillStyle = scheme.ink;
    const points = [], names = [];
    chart.data.datasets.forEach((dataset, i) => {
      if (!chart.isDatasetVisible(i)) return;
      const all = chart.getDatasetMeta(i).data.map(point => ({x: point.x, y: point.y}));
      points.push(...all);
      if (all.length === 0) return;
      const text = dataset.label.length > 24 ? dataset.label.slice(0, 23) + '…' : dataset.label;
      names.push(Object.assign({text, width: ctx.measureText(text).width}, all[all.length - 1]));
    });
    for (const name of placedNames(names, points, chart.chartArea, height)) {
      ctx.fillText(name.text, name.left, name.top + height / 2);
    }
    ctx.restore();
  },
};

function contextAxis(contexts, title = 'context in tokens') {
  const room = 1.25;
  return Object.assign(
    axis(title, context, contexts[0] / room, contexts[contexts.length - 1] * room), {
      type: 'logarithmic',
      afterBuildTicks: scale => { scale.ticks = contexts.map(value => ({value})); },
    });
}

// Draws a chart into its figure, or hides the figure if there is nothing to draw. scales: made only
// where there are points.
function draw(id, type, datasets, scales, tooltip) {
  const figure = document.getElementById(id);
  datasets = datasets.filter(dataset => dataset.data.length > 0);
  figure.hidden = datasets.every(dataset => dataset.reference);
  if (figure.hidden) return;
  const legend = kindLegend();
  charts.push(new Chart(figure.querySelector('canvas'), {
    type,
    data: {datasets},
    plugins: type === 'scatter' ? [pointNames] : [],
    options: {
      animation: false,
      responsive: true,
      maintainAspectRatio: false,
      parsing: false,
      normalized: true,
      interaction: {mode: 'nearest', intersect: false},
      scales: scales(),
      plugins: {
        legend: {position: 'bottom',
                 labels: {color: scheme.ink, usePointStyle: true, boxHeight: 7, padding: 14,
                          font: {size: 12.5},
                          ...(grouped ? {generateLabels: legend.generateLabels} : {})},
                 ...(grouped ? {onClick: legend.onClick} : {})},
        tooltip: {callbacks: {title: () => '', label: item => tooltip(item.dataset.label, item.raw)}},
      },
    },
  }));
}

// Losses are divided by what is asked for: the class of an image, the characters of a sound, tokens.
const unitOfLoss = architectures.some(a => a.images) ? 'an image'
  : architectures.some(a => a.sound) ? 'a character' : 'a token';

function drawCurves() {
  const round = value => String(Number(value.toFixed(2)));
  const seconds = architectures.flatMap(a => a.curve.map(p => p.seconds)).filter(known);
  const unit = timeUnit(seconds.reduce((most, value) => Math.max(most, value), 0));
  const time = value => round(value) + ' ' + unit.name;

  const losses = (id, curves, title, format, after) => {
    draw(id, 'line', curves.map((points, i) => series(i, points)), () => {
      const low = extent(curves, 'y')[0], high = settled(curves);
      const room = 0.04 * (high - low);
      return {x: axis(title, format, 0, extent(curves, 'x')[1]),
              y: axis('loss in nats ' + unitOfLoss, round, low - room, high + room)};
    }, (name, p) => name + ': ' + p.y.toFixed(3) + ' after ' + after(p.x));
  };
  losses('loss-tokens', curve('tokens', 'loss', 1).map(thinned), 'training tokens', count,
         x => count(x) + ' tokens');
  losses('loss-time', curve('seconds', 'loss', unit.divisor).map(thinned),
         'training time in ' + unit.name, round, time);

  const heldOut = curve('seconds', 'held_out_bits_per_byte', unit.divisor);
  const sets = heldOut.map((points, i) =>
    series(i, points, {pointRadius: points.length > 40 ? 0 : 3}));
  const gzip = run.data.gzip_bits_per_byte;
  const last = extent(heldOut, 'x');
  if (known(gzip) && last) {
    sets.push({label: 'gzip -9: ' + bits(gzip), data: [{x: 0, y: gzip}, {x: last[1], y: gzip}],
               borderColor: scheme.soft, backgroundColor: scheme.soft, borderWidth: 1.5,
               borderDash: [5, 5], pointRadius: 0, pointHoverRadius: 0, pointStyle: 'line',
               reference: true});
  }
  draw('held-out-time', 'line', sets, () => {
    let low = extent(heldOut, 'y')[0], high = settled(heldOut);
    if (known(gzip)) {
      low = Math.min(low, gzip);
      high = Math.max(high, gzip);
    }
    const room = 0.08 * (high - low);
    return {x: axis('training time in ' + unit.name, round, 0, last[1]),
            y: axis('bits per byte', round, low - room, high + room)};
  }, (name, p) => name.startsWith('gzip -9') ? name
       : name + ': ' + bits(p.y) + ' after ' + time(p.x));
}

function drawContexts() {
  const chart = (id, key, title, format, unit) => {
    const points = architectures.map(a =>
      a.inference.filter(p => known(p[key]) && p[key] > 0 && p.context > 0)
        .map(p => ({x: p.context, y: p[key]})).sort((p, q) => p.x - q.x));
    const contexts = [...new Set(points.flat().map(p => p.x))].sort((p, q) => p - q);
    draw(id, 'line', points.map((list, i) => series(i, list, {pointRadius: 4})),
      () => ({x: contextAxis(contexts), y: logAxis(title, format, extent(points, 'y'))}),
      (name, p) => name + ' at ' + context(p.x) + ': ' + format(p.y) + unit);
  };
  chart('prompt-context', 'prompt_tokens_per_second', 'prompt tokens/s', count, ' tokens/s');
  chart('decode-context', 'decode_tokens_per_second', 'decoded tokens/s', count, ' tokens/s');
  chart('state-context', 'state_bytes', 'state bytes of a sequence', bytes, '');
}

// A figure for a chart of a task, made once.
function taskFigure(id, title, note, label) {
  if (document.getElementById(id)) return;
  const figure = document.createElement('figure');
  figure.className = 'chart';
  figure.id = id;
  const caption = document.createElement('figcaption');
  const hint = document.createElement('small');
  hint.textContent = note;
  caption.append(title + ' ', hint);
  const box = document.createElement('div');
  box.className = 'canvas';
  const canvas = document.createElement('canvas');
  canvas.setAttribute('role', 'img');
  canvas.setAttribute('aria-label', label);
  box.append(canvas);
  figure.append(caption, box);
  document.getElementById('task-charts').append(figure);
}

// Two charts for each task: accuracy by length, and by what a sequence of that length keeps.
function drawTasks() {
  const solved = () => axis('solved, %', String, -2, 102);
  const tasks = [...new Set(architectures.flatMap(a => a.tasks.map(p => p.task)))];
  tasks.forEach((task, index) => {
    const points = architectures.map(a => a.tasks.filter(p => p.task === task && p.length > 0)
      .map(p => ({x: p.length, y: 100 * p.accuracy, state: p.state_bytes}))
      .sort((p, q) => p.x - q.x));
    const tooltip = (name, at, p) => name + ' at ' + context(at) + ': ' + p.y.toFixed(1) + '%';
    taskFigure('task-' + index, task + ' by length',
               'share of the examples solved; higher is better', task + ' solved against length');
    const lengths = [...new Set(points.flat().map(p => p.x))].sort((p, q) => p - q);
    draw('task-' + index, 'line', points.map((list, i) => series(i, list, {pointRadius: 4})),
      () => ({x: contextAxis(lengths, 'length in tokens'), y: solved()}),
      (name, p) => tooltip(name, p.x, p));

    const states = points.map(list => list.filter(p => known(p.state) && p.state > 0)
      .map(p => ({x: p.state, y: p.y, length: p.x})));
    taskFigure('task-state-' + index, task + ' by state', 'a point for each length; best at the top left',
               task + ' solved against bytes of state');
    draw('task-state-' + index, 'scatter',
      states.map((list, i) => series(i, list, {pointRadius: 6, pointHoverRadius: 8})),
      () => ({x: logAxis('state bytes of a sequence', bytes, extent(states, 'x')), y: solved()}),
      (name, p) => tooltip(name, p.length, p) + ', ' + bytes(p.x));
  });
}

function drawScatters() {
  const radius = grouped ? 5 : 8;
  const chart = (id, speed, title, format, unit) => {
    const points = architectures.map(a => {
      const x = speed(a), y = a.held_out_bits_per_byte;
      return known(x) && known(y) ? [{x, y}] : [];
    });
    draw(id, 'scatter',
      points.map((list, i) => series(i, list, {pointRadius: radius, pointHoverRadius: radius + 2})), () => {
        const xs = extent(points, 'x'), ys = extent(points, 'y');
        const roomX = 0.12 * (xs[1] - xs[0]) || 0.1 * xs[1];
        const roomY = 0.15 * (ys[1] - ys[0]) || 0.05;
        // Speeds that differ by little read better on a linear axis.
        return {x: xs[0] > 0 && xs[1] / xs[0] > 8 ? logAxis(title, format, xs)
                  : axis(title, format, Math.max(0, xs[0] - roomX), xs[1] + roomX),
                y: axis('held-out bits per byte', value => String(Number(value.toFixed(3))),
                        ys[0] - roomY, ys[1] + roomY)};
      }, (name, p) => name + ': ' + bits(p.y) + ' bits/byte, ' + format(p.x) + unit);
  };
  chart('quality-training', a => a.train_tokens_per_second, 'training tokens/s', count, ' tokens/s');

  // Decoding at the longest context that most architectures reached.
  const reached = new Map();
  for (const a of architectures) {
    for (const p of a.inference) {
      if (known(p.decode_tokens_per_second)) reached.set(p.context, (reached.get(p.context) || 0) + 1);
    }
  }
  const most = Math.max(0, ...reached.values());
  const at = Math.max(0, ...[...reached].filter(entry => entry[1] === most).map(entry => entry[0]));
  const there = key => a => {
    const point = a.inference.find(p => p.context === at);
    return point && point[key];
  };
  const where = ' at a context of ' + context(at);
  chart('quality-decode', there('decode_tokens_per_second'), 'decoded tokens/s' + where, count, ' tokens/s');
  chart('quality-state', there('state_bytes'), 'state bytes of a sequence' + where, bytes, ' of state');
}

function drawAll() {
  for (const chart of charts) chart.destroy();
  charts = [];
  readScheme();
  Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;
  drawCurves();
  drawContexts();
  drawTasks();
  drawScatters();
  // A heading without charts under it goes too.
  for (const group of document.querySelectorAll('.charts')) {
    const empty = !group.querySelector('.chart:not([hidden])');
    group.hidden = empty;
    group.previousElementSibling.hidden = empty;
  }
}

// ---- tables ----

function sortBy(header, column) {
  const table = header.closest('table');
  const body = table.tBodies[0];
  const words = column === 0 || body.querySelector(`td:nth-child(${column + 1})`)?.className === 'text';
  const ascending = header.getAttribute('aria-sort') === 'descending' ||
    (words && header.getAttribute('aria-sort') !== 'ascending');
  for (const other of table.tHead.querySelectorAll('th')) other.removeAttribute('aria-sort');
  header.setAttribute('aria-sort', ascending ? 'ascending' : 'descending');
  const sign = ascending ? 1 : -1;
  const rows = [...body.rows].sort((a, b) => {
    if (words) return sign * a.cells[column].textContent.localeCompare(b.cells[column].textContent);
    const x = a.cells[column].dataset.value, y = b.cells[column].dataset.value;
    // What was not measured stays last either way.
    if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
    return sign * (Number(x) - Number(y));
  });
  body.append(...rows);
}

for (const table of document.querySelectorAll('table')) {
  const headers = table.tHead.rows[table.tHead.rows.length - 1].cells;
  for (let column = 0; column < headers.length; ++column) {
    headers[column].querySelector('button').addEventListener('click',
      () => sortBy(headers[column], column));
  }
}

// A legend of many lines must not press the chart flat.
for (const group of document.querySelectorAll('.charts')) {
  group.classList.toggle('many', architectures.length > 6);
}
drawAll();
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', drawAll);
// Paper is white: the page's colours follow by style sheet, the charts are drawn again.
matchMedia('print').addEventListener('change', drawAll);
})();
