/* Pinned units: kept by the browser, shown in a tray, compared or listed by a link. */

const store = {
  get(name) {
    try {
      return JSON.parse(localStorage.getItem(`feature-atlas:${name}`));
    } catch {
      return null;
    }
  },
  set(name, value) {
    try {
      localStorage.setItem(`feature-atlas:${name}`, JSON.stringify(value));
    } catch {
      /* a private window keeps nothing */
    }
  },
};

class Pins {
  constructor(app) {
    this.app = app;
    this.key = `pins:${app.atlas.about.plan}`;
    this.names = new Set(store.get(this.key) || []);
    this.element = h("aside", { class: "tray", "aria-label": "pinned channels", hidden: true });
    this.draw();
  }
  has(unit) {
    return this.names.has(unit.name);
  }
  toggle(unit) {
    if (!this.names.delete(unit.name)) this.names.add(unit.name);
    this.keep();
    say(`${unit.name} ${this.has(unit) ? "pinned" : "unpinned"}`);
  }
  clear() {
    this.names.clear();
    this.keep();
  }
  keep() {
    store.set(this.key, [...this.names]);
    this.draw();
  }
  /** The unit that was pinned first. */
  async first() {
    return (await unitsNamed(this.app.atlas, [...this.names].slice(0, 1).join(",")))[0];
  }
  async draw() {
    const units = await unitsNamed(this.app.atlas, [...this.names].join(","));
    this.element.hidden = !this.names.size;
    const u = units.map((unit) => unit.name).join(",");
    this.element.replaceChildren(
      ...units.map((unit) => cell(unit, 44, { label: false })),
      h("span", { class: "push" }),
      h("a", { class: "quiet", href: this.app.link("/compare", { u }) }, `Compare ${units.length}`),
      h("a", { class: "quiet", href: this.app.link("/list", { u }) }, "List"),
      button("Clear", () => this.clear(), { class: "quiet" }),
    );
  }
}
