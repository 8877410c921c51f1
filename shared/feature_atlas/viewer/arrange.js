/* The tool bar of a grid: sort, filter by a number's histogram, by state, zoom.  All of it lives in the address. */

const ZOOMS = [
  ["16", "16", "a mosaic of 16 pixels each"],
  ["64", "64", "64 pixels"],
  ["128", "128", "128 pixels"],
  ["full", "full", "the pictures themselves"],
];

/** A file that holds the pictures holds but some of their sizes. */
function zooms() {
  const masters = !embedded || Object.keys(embedded.links).some((key) => key.startsWith("images/"));
  return ZOOMS.filter(([value]) => (value === "full" ? masters : value <= 2 * SHEETS[SHEETS.length - 1]));
}

class Arrange {
  /** ``units``: all there are, for the histogram and the counts. */
  constructor(options, units, change) {
    Object.assign(this, { units, change });
    this.element = h("div", { class: "arrange" });
    this.told = h("span", { class: "note told", "aria-live": "polite" });
    this.update(options);
  }
  update(options) {
    const redraw =
      !this.options ||
      this.element.contains(document.activeElement) === false ||
      ["sort", "z", "s"].some((name) => this.options[name] !== options[name]);
    this.options = options;
    if (redraw) this.draw();
  }
  tell(shown) {
    this.told.textContent =
      shown === this.units.length
        ? plural(shown, "channel")
        : `${count(shown)} of ${plural(this.units.length, "channel")}`;
  }
  draw() {
    const sort = this.options.sort || "channel";
    const measure = sort.replace(/^-/, "");
    const known = Object.entries(MEASURES).filter(
      ([id]) => id === "channel" || id === "likeness" || this.units.some((unit) => unit.value(id) !== null),
    );
    const focus = document.activeElement && document.activeElement.getAttribute("aria-label");
    const inside = this.element.contains(document.activeElement);
    this.element.replaceChildren(
      h(
        "label",
        { class: "field" },
        h("span", { class: "note" }, "sort"),
        select(
          "sort by",
          known.map(([id, [label]]) => [id, label]),
          measure,
          (id) => this.change({ sort: id === "channel" ? "" : naturally(id), f: "" }),
        ),
      ),
      measure === "likeness"
        ? ""
        : button(
            sort.startsWith("-") ? "↓" : "↑",
            () => this.change({ sort: sort.startsWith("-") ? (measure === "channel" ? "" : measure) : `-${measure}` }),
            { class: "quiet icon", title: "turn the order round", "aria-label": "turn the order round" },
          ),
      measure === "channel" || measure === "likeness" ? "" : this.range(measure),
      this.states(),
      h("span", { class: "push" }),
      h(
        "span",
        { class: "field" },
        this.told,
        choices("zoom", zooms(), String(zoomOf(this.options, this.units.length)), (z) => this.change({ z })),
      ),
    );
    if (inside && focus)
      for (const node of this.element.querySelectorAll("[aria-label]"))
        if (node.getAttribute("aria-label") === focus) node.focus();
  }
  states() {
    const counts = {};
    for (const unit of this.units) counts[unit.state] = (counts[unit.state] || 0) + 1;
    if (Object.keys(counts).length < 2) return "";
    const options = [
      ["", "all"],
      ...["ok", "dead", "nan", "failed", "missing"]
        .filter((state) => counts[state])
        .map((state) => [state, `${state === "ok" ? "rendered" : state} ${count(counts[state])}`, WORDS[state]]),
    ];
    return choices("state", options, this.options.s || "", (s) => this.change({ s }));
  }
  /** A histogram whose two ends can be moved. */
  range(measure) {
    const told = histogram(this.units.map((unit) => valueOf(unit, measure)));
    if (told.empty || told.least === told.greatest) return "";
    const filter = parseFilter(this.options.f);
    const mine = filter && filter.measure === measure ? filter : { least: -Infinity, greatest: Infinity };
    const toSlider = (value) => Math.round(told.scale.place(clamp(value, told.least, told.greatest)) * 1000);
    const fromSlider = (n) => told.scale.value(n / 1000);
    const label = h("span", { class: "note ends" });
    const frame = h("div", { class: "bars" });
    const slider = (name, value) =>
      h("input", {
        type: "range",
        min: 0,
        max: 1000,
        value: toSlider(value),
        "aria-label": `${name} ${MEASURES[measure][0]}`,
        on: { input: () => paint(), change: () => send() },
      });
    const low = slider("least", mine.least),
      high = slider("greatest", mine.greatest);
    const ends = () => [Math.min(+low.value, +high.value), Math.max(+low.value, +high.value)];
    const paint = () => {
      const [a, b] = ends();
      frame.replaceChildren(
        histogramPicture(told, {
          width: 160,
          height: 30,
          from: a > 0 ? fromSlider(a) : null,
          to: b < 1000 ? fromSlider(b) : null,
        }),
      );
      label.textContent = `${brief(fromSlider(a))} – ${brief(fromSlider(b))}`;
    };
    const send = () => {
      const [a, b] = ends();
      const spell = (n, edge) => (n === edge ? "" : fromSlider(n).toPrecision(5));
      this.change({ f: a === 0 && b === 1000 ? "" : `${measure}:${spell(a, 0)}..${spell(b, 1000)}` });
    };
    paint();
    return h("div", { class: "range", title: MEASURES[measure][2] }, frame, low, high, label);
  }
}

const FEW = 100;

/** The zoom that the options ask for; where they leave it open, a few units are shown large. */
function zoomOf(options, units) {
  if (zooms().some(([value]) => value === options.z)) return options.z === "full" ? "full" : Number(options.z);
  return units <= FEW && wide() ? 128 : 64;
}

/** The options for the next step of zoom, in or out. */
function zoomed(page, step) {
  const all = zooms().map(([value]) => value);
  return { z: all[clamp(all.indexOf(String(page.grid.zoom)) + step, 0, all.length - 1)] };
}
