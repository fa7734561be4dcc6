// What the charts of the report and those of the server's page of training runs have in common.

const COLOURS = 8;              // of series in the style sheets
const POINTS = ['circle', 'rect', 'triangle', 'rectRot', 'crossRot', 'star', 'rectRounded', 'cross'];

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

// ---- ranges ----

// The highest value worth showing: what any curve holds after its first twelfth. Before it, all
// fall from the same chance level, and would press the rest flat.
function settled(curves) {
  let top = -Infinity;
  for (const points of curves) {
    if (points.length === 0) continue;
    const end = points[points.length - 1];
    for (const point of points) {
      if (point.x >= end.x / 12) top = Math.max(top, point.y);
    }
  }
  return top;
}

function extent(curves, key) {
  let range = null;
  for (const point of curves.flat()) {
    const value = point[key];
    range = range ? [Math.min(range[0], value), Math.max(range[1], value)] : [value, value];
  }
  return range;
}

// ---- colours and axes ----

let scheme = {};

// As the style sheet has them now: a canvas knows neither variables nor light-dark().
function readScheme() {
  const probe = document.createElement('span');
  document.body.append(probe);
  const value = name => {
    probe.style.color = `var(${name})`;
    return getComputedStyle(probe).color;
  };
  scheme = {ink: value('--ink'), soft: value('--soft'), grid: value('--grid'), card: value('--card'),
            line: value('--line'), series: []};
  for (let i = 0; i < COLOURS; ++i) scheme.series.push(value('--series-' + i));
  probe.remove();
}

// A linear axis over [low, high] with ticks at round numbers, at most eight.
function axis(title, format, low, high) {
  if (!(high > low)) high = low + (Math.abs(low) || 1);
  const rough = (high - low) / 8;
  const power = Math.pow(10, Math.floor(Math.log10(rough)));
  const step = power * ([1, 2, 5].find(s => s * power >= rough) || 10);
  return {
    type: 'linear',
    min: low,
    max: high,
    title: {display: true, text: title, color: scheme.soft, font: {size: 12}},
    ticks: {color: scheme.soft, callback: value => format(value), maxRotation: 0, autoSkipPadding: 6},
    grid: {color: scheme.grid, borderColor: scheme.line},
    afterBuildTicks: scale => {
      scale.ticks = [];
      for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; ++i) {
        scale.ticks.push({value: i * step});
      }
    },
  };
}

// A logarithmic axis over a range with some room, ticks at 1, 2 and 5 or only at powers of ten. It
// spans a factor of six at least, so that two ticks or more fall on it.
function logAxis(title, format, range) {
  const room = Math.max(1.35, Math.sqrt(6 * range[0] / range[1]));
  const low = range[0] / room, high = range[1] * room;
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
  return Object.assign(axis(title, format, low, high), {
    type: 'logarithmic',
    afterBuildTicks: scale => {
      const fine = ticksOf([1, 2, 5]);
      scale.ticks = fine.length <= 9 ? fine : ticksOf([1]);
    },
  });
}
