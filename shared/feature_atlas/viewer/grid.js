/* One layer: all its channels, sorted, filtered and zoomed; optionally beside another variant or another atlas. */

const OTHER = "/", // no variant is called so
  ASK = "/?";

class LayerPage {
  constructor(app, options, groups, other) {
    Object.assign(this, { app, options, groups, other });
    this.group = groups[app.variantOf(options)] || Object.values(groups)[0];
    this.name = this.group.layer;
    this.title = this.name;
    this.element = h("div", { class: "layer-page" });
    this.build();
  }
  static async open(app, name, options) {
    const groups = await app.atlas.layer(name);
    let other = null;
    if (options.b) {
      const atlas = await otherAtlas(options.b);
      other = atlas.byName.has(name) ? await atlas.layer(name) : {};
    }
    return new LayerPage(app, options, groups, other);
  }
  update(options) {
    if (["v", "w", "b"].some((name) => (options[name] || "") !== (this.options[name] || ""))) return false;
    this.options = options;
    this.arrange.update(options);
    this.show();
    return true;
  }
  leave() {
    this.grid.leave();
  }
  build() {
    const units = this.group.units;
    const { v, sort, f, s, w, b } = this.options;
    const beside = this.options.w || this.other ? (unit, px) => this.twin(unit, px) : null;
    this.arrange = new Arrange(this.options, units, (changes) => this.app.set(changes));
    this.grid = new Grid({
      label: `${plural(units.length, "channel")} of ${this.name}; arrow keys move, Enter opens`,
      carry: { v, sort, f, s, w, b },
      beside,
    });
    this.element.append(this.head(units), this.arrange.element, this.grid.element);
    this.show();
  }
  show() {
    const shown = arranged(this.group.units, this.options);
    this.arrange.tell(shown.length);
    this.grid.show(shown, zoomOf(this.options, this.group.units.length));
    this.element.classList.toggle("nothing", !shown.length);
    if (shown.length && this.grid.zoom !== 128 && this.grid.zoom !== "full") this.warm();
  }
  /** Reads the layer's other sheets once the first screen stands: scrolling then meets no gaps. */
  warm() {
    const later = window.requestIdleCallback || ((action) => setTimeout(action, 300));
    later(() => {
      const size = sheetFor(this.grid.px);
      const urls = new Set(
        this.group.channels
          .filter((channel, n, all) => !n || Math.floor(channel / BLOCK) !== Math.floor(all[n - 1] / BLOCK))
          .map((channel) => place(this.group.unit(channel), size).url),
      );
      if (size < 128) for (const url of urls) new Image().src = url;
    });
  }
  /** The same channel of the other variant or atlas. */
  twin(unit, px) {
    const groups = this.other || this.groups;
    const group = groups[this.options.w || this.group.variant];
    const node = h("span");
    return group
      ? showOn(node, group.unit(unit.channel), px, this.options.z === "full")
      : fill(node, { "data-state": "missing" }, []);
  }
  neighbour(step) {
    const layers = this.app.atlas.layers;
    return layers[layers.findIndex((entry) => entry.name === this.name) + step];
  }
  go(step) {
    const next = this.neighbour(step);
    if (next) location.hash = this.app.layerLink(next.name, this.options);
  }
  head(units) {
    const { entry } = this.group;
    const states = {};
    for (const unit of units) states[unit.state] = (states[unit.state] || 0) + 1;
    const facts = [entry.kind, plural(entry.total, "channel")];
    if (units.length < entry.total) facts.push(`${count(units.length)} planned`);
    for (const state of ["dead", "nan", "failed", "missing"])
      if (states[state]) facts.push(`${count(states[state])} ${state}`);
    const step = (by, glyph) => {
      const next = this.neighbour(by);
      return next
        ? h(
            "a",
            {
              class: "quiet",
              href: this.app.layerLink(next.name, this.options),
              title: `${next.name} (${by < 0 ? "[" : "]"})`,
            },
            by < 0 ? `${glyph} ${next.name}` : `${next.name} ${glyph}`,
          )
        : "";
    };
    return h(
      "header",
      { class: "lead" },
      h("nav", { class: "steps", "aria-label": "layers" }, step(-1, "←"), h("span", { class: "push" }), step(1, "→")),
      h("h1", { class: "mono" }, this.name),
      h(
        "div",
        { class: "bar" },
        h("p", { class: "facts" }, h("span", {}, facts.join(" · "))),
        h("span", { class: "push" }),
        this.compareWith(),
        copyButton("Python", () => layerProgram(this.app.atlas, units[0])),
        this.downloads(units),
      ),
    );
  }
  compareWith() {
    const names = Object.keys(this.groups).filter((name) => name !== this.group.variant);
    const beside = [["", "beside …"], ...names.map((name) => [name, `beside ${name}`])];
    if (this.other) beside.push([OTHER, `beside ${this.options.b}`]);
    if (!embedded) beside.push([ASK, "beside another atlas …"]);
    if (beside.length < 2) return "";
    return select("beside", beside, this.other ? OTHER : this.options.w || "", (w) => {
      if (w !== ASK) this.app.set({ w: w === OTHER ? "" : w, b: w === OTHER ? this.options.b : "" });
      else {
        const place = window.prompt("Its folder, as seen from this one:", this.options.b || "../");
        if (place) this.app.set({ w: "", b: place.replace(/\/*$/, "/") });
        else this.app.show(true);
      }
    });
  }
  downloads(units) {
    if (embedded) return "";
    const blocks = [...new Set(units.map((unit) => Math.floor(unit.channel / BLOCK)))];
    return h(
      "details",
      { class: "menu" },
      h("summary", {}, "Download"),
      h(
        "div",
        {},
        h("p", { class: "note" }, "All masters, 256 channels a file:"),
        blocks.map((block) => {
          const last = Math.min(this.group.entry.total, (block + 1) * BLOCK) - 1;
          return h(
            "a",
            {
              href: this.app.atlas.url(
                `packs/${this.group.variant}/${this.name}/${String(block).padStart(3, "0")}.tar`,
              ),
              download: "",
            },
            `channels ${block * BLOCK} to ${last} (.tar)`,
          );
        }),
        h("a", { href: this.app.atlas.url(`layers/${this.name}/layer.json`) }, "numbers and hashes (.json)"),
      ),
    );
  }
  keys() {
    const set = (changes) => this.app.set(changes);
    const order = ["channel", "normalized", "gain", "robust", "hue", "high_frequency", "likeness"];
    return {
      "[": () => this.go(-1),
      "]": () => this.go(1),
      "+": () => set(zoomed(this, 1)),
      "=": () => set(zoomed(this, 1)),
      "-": () => set(zoomed(this, -1)),
      s: () => {
        const measure = (this.options.sort || "channel").replace(/^-/, "");
        const next = order[(order.indexOf(measure) + 1) % order.length];
        set({ sort: next === "channel" ? "" : naturally(next), f: "" });
        say(`sorted by ${MEASURES[next][0]}`);
      },
      Escape: () => {
        location.hash = this.app.link("/", { v: this.options.v });
      },
    };
  }
}
