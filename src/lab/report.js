// Draws the charts from the results in the page, and sorts the tables.
(function () {
'use strict';

const run = JSON.parse(document.getElementById('results').textContent);
const architectures = run.architectures;
const COLOURS = 8;              // as in report.css
const MOST_POINTS = 240;        // of one curve; longer ones are averaged
const POINTS = ['circle', 'rect', 'triangle', 'rectRot', 'star', 'crossRot', 'cross', 'rectRounded'];

const known = value => typeof value === 'number' && isFinite(value);

// ---- numbers as people read them ----

function scaled(value, units, base) {
  let unit = 0;
  while (Math.abs(value) >= base && unit + 1 < units.length) {
    value /= base;
    ++unit;
  }
  const digits = value >= 100 || Number.isInteger(value) ? 0 : value >= 10 ? 1 : 2;
  return String(Number(value.toFixed(digits))) + units[unit];
}
const count = value => scaled(value, ['', 'k', 'M', 'G', 'T'], 1000);
const bytes = value => scaled(value, [' B', ' kB', ' MB', ' GB', ' TB'], 1000);
const context = value =>
  value % 1048576 === 0 ? value / 1048576 + 'M' : value % 1024 === 0 ? value / 1024 + 'k' : String(value);
const bits = value => value.toFixed(3);

// The unit of a time axis: seconds up to five minutes, then minutes, then hours.
function timeUnit(seconds) {
  return seconds <= 300 ? {divisor: 1, name: 's'}
    : seconds <= 3 * 3600 ? {divisor: 60, name: 'min'} : {divisor: 3600, name: 'h'};
}

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

function curve(x, y) {
  return architectures.map(a =>
    a.curve.filter(p => known(p[x]) && known(p[y])).map(p => ({x: p[x], y: p[y]})));
}

// The highest value worth showing: what any curve holds after its first twentieth. Before it, all
// fall from the same chance level, and would press the rest flat.
function settled(curves) {
  let top = 0;
  for (const points of curves) {
    const rest = points.slice(Math.floor(points.length / 20));
    for (const point of rest) top = Math.max(top, point.y);
  }
  return top;
}

function extent(curves, key) {
  const values = curves.flat().map(point => point[key]);
  return values.length ? [Math.min(...values), Math.max(...values)] : null;
}

// ---- charts ----

let charts = [];
let scheme = {};

function readScheme() {
  const style = getComputedStyle(document.documentElement);
  const value = name => style.getPropertyValue(name).trim();
  scheme = {ink: value('--ink'), soft: value('--soft'), grid: value('--grid'), card: value('--card'),
            line: value('--line'), series: []};
  for (let i = 0; i < COLOURS; ++i) scheme.series.push(value('--series-' + i));
}

function series(index, points, more) {
  const colour = scheme.series[index % COLOURS];
  return Object.assign({
    label: architectures[index].name,
    data: points,
    borderColor: colour,
    backgroundColor: colour,
    borderWidth: 2,
    borderDash: index < COLOURS ? [] : [6, 3],
    pointStyle: POINTS[index % POINTS.length],
    pointRadius: 0,
    pointHoverRadius: 5,
    tension: 0,
  }, more);
}

function axis(title, format, more) {
  return Object.assign({
    type: 'linear',
    title: {display: true, text: title, color: scheme.soft, font: {size: 12}},
    ticks: {color: scheme.soft, callback: value => format(value), maxRotation: 0,
            autoSkipPadding: 14},
    grid: {color: scheme.grid, borderColor: scheme.line},
  }, more);
}

// A logarithmic axis over [low, high] with some room, ticks at 1, 2 and 5 or only at powers of ten.
function logAxis(title, format, range) {
  const low = range[0] / 1.35, high = range[1] * 1.35;
  const ticksOf = steps => {
    const ticks = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); ++power) {
      for (const step of steps) {
        const value = step * Math.pow(10, power);
        if (value >= low && value <= high) ticks.push({value});
      }
    }
    return ticks;
  };
  const result = axis(title, format, {type: 'logarithmic', min: low, max: high});
  result.afterBuildTicks = scale => {
    const fine = ticksOf([1, 2, 5]);
    scale.ticks = fine.length <= 9 ? fine : ticksOf([1]);
  };
  result.ticks.autoSkip = false;
  return result;
}

function contextAxis(contexts) {
  const result = axis('context in tokens', context,
    {type: 'logarithmic', min: contexts[0] / 1.25, max: contexts[contexts.length - 1] * 1.25});
  result.afterBuildTicks = scale => { scale.ticks = contexts.map(value => ({value})); };
  return result;
}

function draw(id, type, datasets, scales, tooltip) {
  const figure = document.getElementById(id);
  datasets = datasets.filter(dataset => dataset.data.length > 0);
  figure.hidden = datasets.filter(dataset => !dataset.reference).length === 0;
  if (figure.hidden) return;
  charts.push(new Chart(figure.querySelector('canvas'), {
    type,
    data: {datasets},
    options: {
      animation: false,
      responsive: true,
      maintainAspectRatio: false,
      parsing: false,
      normalized: true,
      interaction: {mode: 'nearest', intersect: false},
      scales,
      plugins: {
        legend: {position: 'bottom', labels: {color: scheme.ink, usePointStyle: true, boxHeight: 7,
                                              padding: 14, font: {size: 12.5}}},
        tooltip: {callbacks: {title: () => '', label: item => tooltip(item.dataset.label, item.raw)}},
      },
    },
  }));
}

function drawCurves() {
  const loss = value => String(Number(value.toFixed(2)));
  const lastSecond = Math.max(0, ...architectures.flatMap(a => a.curve.map(p => p.seconds)).filter(known));
  const unit = timeUnit(lastSecond);
  const time = value => String(Number((value / unit.divisor).toFixed(2)));
  const timeAxis = last => axis('training time in ' + unit.name, time, {min: 0, max: last});
  if (unit.divisor > 1) {
    // Ticks at round numbers of the unit, not of seconds.
    const step = [1, 2, 5, 10, 15, 30, 60].find(s => lastSecond / unit.divisor / s <= 10) || 120;
    const plain = timeAxis;
    drawTime(last => {
      const result = plain(last);
      result.ticks.stepSize = step * unit.divisor;
      return result;
    });
  } else {
    drawTime(timeAxis);
  }

  const byTokens = curve('tokens', 'loss').map(thinned);
  const tokens = extent(byTokens, 'x');
  if (tokens) {
    const low = extent(byTokens, 'y')[0], high = settled(byTokens);
    draw('loss-tokens', 'line', byTokens.map((points, i) => series(i, points)),
      {x: axis('training tokens', count, {min: 0, max: tokens[1]}),
       y: axis('loss in nats a token', loss, {suggestedMin: low, max: high + 0.02 * (high - low)})},
      (name, p) => name + ': ' + p.y.toFixed(3) + ' after ' + count(p.x) + ' tokens');
  } else {
    document.getElementById('loss-tokens').hidden = true;
  }

  function drawTime(makeAxis) {
    const byTime = curve('seconds', 'loss').map(thinned);
    const seconds = extent(byTime, 'x');
    if (seconds) {
      const low = extent(byTime, 'y')[0], high = settled(byTime);
      draw('loss-time', 'line', byTime.map((points, i) => series(i, points)),
        {x: makeAxis(seconds[1]),
         y: axis('loss in nats a token', loss, {suggestedMin: low, max: high + 0.02 * (high - low)})},
        (name, p) => name + ': ' + p.y.toFixed(3) + ' after ' + time(p.x) + ' ' + unit.name);
    } else {
      document.getElementById('loss-time').hidden = true;
    }

    const heldOut = curve('seconds', 'held_out_bits_per_byte');
    const range = extent(heldOut, 'x');
    if (!range) {
      document.getElementById('held-out-time').hidden = true;
      return;
    }
    const sets = heldOut.map((points, i) => series(i, points, {pointRadius: points.length > 40 ? 0 : 3}));
    const gzip = run.data.gzip_bits_per_byte;
    let low = extent(heldOut, 'y')[0], high = settled(heldOut);
    if (known(gzip)) {
      low = Math.min(low, gzip);
      high = Math.max(high, gzip);
      sets.push({label: 'gzip -9: ' + bits(gzip), data: [{x: 0, y: gzip}, {x: range[1], y: gzip}],
                 borderColor: scheme.soft, backgroundColor: scheme.soft, borderWidth: 1.5,
                 borderDash: [5, 5], pointRadius: 0, pointHoverRadius: 0, pointStyle: 'line',
                 reference: true});
    }
    const room = 0.06 * (high - low);
    draw('held-out-time', 'line', sets,
      {x: makeAxis(range[1]),
       y: axis('bits per byte', loss, {suggestedMin: low - room, max: high + room})},
      (name, p) => name.startsWith('gzip') ? name
        : name + ': ' + bits(p.y) + ' after ' + time(p.x) + ' ' + unit.name);
  }
}

function drawContexts() {
  const chart = (id, key, title, format, unit) => {
    const points = architectures.map(a =>
      a.inference.filter(p => known(p[key]) && p[key] > 0 && p.context > 0)
        .map(p => ({x: p.context, y: p[key]})).sort((p, q) => p.x - q.x));
    const range = extent(points, 'y');
    if (!range) {
      document.getElementById(id).hidden = true;
      return;
    }
    const contexts = [...new Set(points.flat().map(p => p.x))].sort((p, q) => p - q);
    draw(id, 'line', points.map((list, i) => series(i, list, {pointRadius: 4})),
      {x: contextAxis(contexts), y: logAxis(title, format, range)},
      (name, p) => name + ' at ' + context(p.x) + ': ' + format(p.y) + unit);
  };
  chart('prompt-context', 'prompt_tokens_per_second', 'prompt tokens/s', count, ' tokens/s');
  chart('decode-context', 'decode_tokens_per_second', 'decoded tokens/s', count, ' tokens/s');
  chart('state-context', 'state_bytes', 'state bytes of a sequence', bytes, '');
}

function drawScatters() {
  const chart = (id, speed, title) => {
    const points = architectures.map(a => {
      const x = speed(a), y = a.held_out_bits_per_byte;
      return known(x) && known(y) ? [{x, y}] : [];
    });
    const xs = extent(points, 'x'), ys = extent(points, 'y');
    if (!xs) {
      document.getElementById(id).hidden = true;
      return;
    }
    const room = 0.15 * (ys[1] - ys[0]) || 0.05;
    // Speeds that differ by little read better on a linear axis.
    const far = xs[0] > 0 && xs[1] / xs[0] > 8;
    const margin = 0.12 * (xs[1] - xs[0]) || 0.1 * xs[1];
    const x = far ? logAxis(title, count, xs)
      : axis(title, count, {min: Math.max(0, xs[0] - margin), max: xs[1] + margin});
    if (!far) x.ticks.includeBounds = false;
    const y = axis('held-out bits per byte', value => String(Number(value.toFixed(3))),
                   {min: ys[0] - room, max: ys[1] + room});
    y.ticks.includeBounds = false;
    draw(id, 'scatter', points.map((list, i) => series(i, list, {pointRadius: 8, pointHoverRadius: 10})),
      {x, y}, (name, p) => name + ': ' + bits(p.y) + ' bits/byte, ' + count(p.x) + ' tokens/s');
  };
  chart('quality-training', a => a.train_tokens_per_second, 'training tokens/s');

  // Decoding at the longest context that most architectures reached.
  const reached = new Map();
  for (const a of architectures) {
    for (const p of a.inference) {
      if (known(p.decode_tokens_per_second)) reached.set(p.context, (reached.get(p.context) || 0) + 1);
    }
  }
  const most = Math.max(0, ...reached.values());
  const at = Math.max(0, ...[...reached].filter(entry => entry[1] === most).map(entry => entry[0]));
  chart('quality-decode', a => {
    const point = a.inference.find(p => p.context === at);
    return point && point.decode_tokens_per_second;
  }, 'decoded tokens/s at a context of ' + context(at));
}

function drawAll() {
  for (const chart of charts) chart.destroy();
  charts = [];
  readScheme();
  Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;
  drawCurves();
  drawContexts();
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
  const ascending = header.getAttribute('aria-sort') === 'descending' ||
    (column === 0 && header.getAttribute('aria-sort') !== 'ascending');
  for (const other of table.tHead.querySelectorAll('th')) other.removeAttribute('aria-sort');
  header.setAttribute('aria-sort', ascending ? 'ascending' : 'descending');
  const sign = ascending ? 1 : -1;
  const rows = [...body.rows].sort((a, b) => {
    if (column === 0) return sign * a.cells[0].textContent.localeCompare(b.cells[0].textContent);
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

drawAll();
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', drawAll);
// Paper is white: the page's colours follow by style sheet, the charts are drawn again.
matchMedia('print').addEventListener('change', drawAll);
})();
