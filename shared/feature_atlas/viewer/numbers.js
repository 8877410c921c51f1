/* What the numbers are called, how they are spelled, and sorting and filtering by them. */

/** id -> [label, whether the greatest comes first, what it says]. */
const MEASURES = {
  channel: ["channel", false, "the layer's own order"],
  normalized: ["activation", true, "activation, in standard deviations over noise"],
  best: ["raw activation", true, "the objective's value"],
  gain: ["gain", true, "from the first step to the best, in standard deviations of noise"],
  robust: ["held-out activation", true, "mean activation over transforms that the optimisation did not see"],
  rank: ["selectivity", false, "where its own channel ranks among those that answer to the picture"],
  best_step: ["best step", true, "the step of the optimisation that was chosen"],
  hue: ["colour", false, "mean hue in degrees"],
  saturation: ["colourfulness", true, "strength of the mean colour"],
  contrast: ["contrast", true, "standard deviation of the luminance"],
  high_frequency: ["sharpness", true, "share of spectral energy above a quarter cycle per pixel"],
  likeness: ["likeness", false, "neighbours look alike"],
};

/** A number in at most four characters or so. */
function brief(value) {
  if (value === null || value === undefined) return "–";
  if (value < 0) return `−${brief(-value)}`;
  const size = Math.abs(value);
  if (size !== 0 && (size >= 1e5 || size < 1e-3)) return value.toExponential(1).replace("e+", "e");
  if (size >= 100 || Number.isInteger(value)) return count(Math.round(value));
  return String(Number(value.toPrecision(3)));
}

const SPREADLESS =
  "noise gives this channel one and the same activation: without a spread there is no distance in standard deviations";

/** Why a finished unit lacks a number; nothing where it has it. */
function lack(unit, measure) {
  if (unit.row < 0 || unit.value(measure) !== null) return undefined;
  if (unit.value("best") === null) return "the activation is not finite";
  return measure === "normalized" || measure === "gain" ? SPREADLESS : undefined;
}

function valueOf(unit, measure) {
  if (measure === "channel" || measure === "likeness") return unit.channel;
  return unit.value(measure);
}

/** Whether a smaller number means "more" under this variant: a minimised channel's strongest is the least. */
const signOf = (unit) => unit.atlas.about.variants[unit.variant].fields.sign;

/**
 * Sorted copy of units; "key" ascending, "-key" descending; those without the number come last, and after the greatest
 * activation the living ones without a number before the dead.
 */
function sorted(units, sort) {
  const down = sort.startsWith("-");
  const measure = sort.replace(/^-/, "");
  if (!(measure in MEASURES)) return units;
  if (measure === "likeness") return chain(units);
  if (measure === "channel") return down ? [...units].reverse() : units;
  const signed = ["normalized", "best", "robust"].includes(measure);
  const keyed = units.map((unit) => {
    const value = valueOf(unit, measure);
    const last = signed && down && unit.state !== "ok" ? 2 : value === null ? 1 : 0;
    return [unit, last, value === null ? 0 : value * (signed ? signOf(unit) : 1)];
  });
  const way = down ? -1 : 1;
  keyed.sort((a, b) => a[1] - b[1] || way * (a[2] - b[2]));
  return keyed.map(([unit]) => unit);
}

/** The natural way round: strongest first, or ascending. */
const naturally = (measure) => (MEASURES[measure][1] ? `-${measure}` : measure);

/** Filters are spelled "measure:least..greatest"; a state filter is a word. */
function parseFilter(text) {
  const match = /^([a-z_]+):(-?[\d.e+-]*)\.\.(-?[\d.e+-]*)$/.exec(text || "");
  if (!match || !(match[1] in MEASURES)) return null;
  return {
    measure: match[1],
    least: match[2] === "" ? -Infinity : Number(match[2]),
    greatest: match[3] === "" ? Infinity : Number(match[3]),
  };
}

function filtered(units, filter, state) {
  let kept = units;
  if (state) kept = kept.filter((unit) => unit.state === state);
  if (filter) {
    kept = kept.filter((unit) => {
      const value = valueOf(unit, filter.measure);
      return value !== null && value >= filter.least && value <= filter.greatest;
    });
  }
  return kept;
}

/** The order and choice of units that a page's options ask for. */
const arranged = (units, options) =>
  sorted(filtered(units, parseFilter(options.f), options.s), options.sort || "channel");

/**
 * Where a value stands between the least (0) and the greatest (1), and back.  Where a few values dwarf all others it
 * goes by logarithm: one bar would otherwise hold nearly everything.
 */
function scaleOf(numbers) {
  const ordered = Float64Array.from(numbers).sort();
  const least = ordered[0],
    span = ordered[ordered.length - 1] - least || 1;
  const middle = ordered[ordered.length >> 1] - least;
  if (middle > 0.08 * span) {
    return { place: (value) => (value - least) / span, value: (place) => least + place * span };
  }
  const unit = middle || span / 1000;
  const whole = Math.log1p(span / unit);
  return {
    place: (value) => Math.log1p((value - least) / unit) / whole,
    value: (place) => least + unit * Math.expm1(place * whole),
  };
}

/** Bar heights of a histogram: {least, greatest, scale, bars}. */
function histogram(values, bars = 48) {
  const numbers = values.filter((value) => value !== null);
  const scale = scaleOf(numbers);
  const heights = new Array(bars).fill(0);
  let least = Infinity,
    greatest = -Infinity;
  for (const value of numbers) {
    least = Math.min(least, value);
    greatest = Math.max(greatest, value);
    heights[clamp(Math.floor(scale.place(value) * bars), 0, bars - 1)]++;
  }
  return { least, greatest, scale, bars: heights, empty: !numbers.length };
}

/** A histogram as a picture; ``mark`` is drawn as a line. */
function histogramPicture(told, { width = 200, height = 36, mark = null, from = null, to = null } = {}) {
  const top = Math.max(...told.bars, 1);
  const step = width / told.bars.length;
  const place = (value) => told.scale.place(value) * width;
  return svg(
    "svg",
    { class: "histogram", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" },
    told.bars.map((bar, n) => {
      const middle = told.scale.value((n + 0.5) / told.bars.length);
      const out = (from !== null && middle < from) || (to !== null && middle > to);
      const tall = bar ? Math.max(1.5, (bar / top) * (height - 2)) : 0;
      return svg("rect", {
        x: n * step,
        y: height - tall,
        width: Math.max(0.5, step - 1),
        height: tall,
        class: out ? "out" : "in",
      });
    }),
    mark === null ? null : svg("line", { x1: place(mark), x2: place(mark), y1: 0, y2: height, class: "mark" }),
  );
}

/** The course of an optimisation: mean as a line, from least to greatest as a band, the chosen step as a dot. */
function curvePicture(curve, bestStep, { width = 320, height = 90 } = {}) {
  if (!curve) return null;
  const [first, last, , , text] = curve;
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const points = bytes.length / 3;
  const x = (n) => 3 + (n / Math.max(1, points - 1)) * (width - 6);
  const y = (value) => height - 3 - (value / 255) * (height - 6);
  const line = (from) =>
    Array.from({ length: points }, (_, n) => `${x(n).toFixed(1)},${y(bytes[from + n]).toFixed(1)}`);
  const at = clamp(Math.round(((bestStep - first) / (last - first || 1)) * (points - 1)), 0, points - 1);
  return svg(
    "svg",
    {
      class: "curve",
      viewBox: `0 0 ${width} ${height}`,
      role: "img",
      "aria-label": `activation over steps ${first} to ${last}`,
    },
    svg("polygon", { class: "band", points: [...line(points), ...line(2 * points).reverse()].join(" ") }),
    svg("polyline", { class: "mean", points: line(0).join(" ") }),
    svg("circle", { class: "best", cx: x(at), cy: y(bytes[at]), r: 3.2 }),
  );
}
