/* The frame around the pages: addresses, keys, pins, theme, and news while a run goes on. */

const HELP = [
  ["arrows", "move; on a channel's page: the one before, the next"],
  ["Enter", "open"],
  ["Esc", "up"],
  ["[  ]", "the layer before, the next"],
  ["+  -", "zoom"],
  ["s", "sort by the next measure"],
  ["v", "next variant"],
  ["c", "pin, for comparing"],
  ["f", "hold: flip to the one beside it, or the first pinned"],
  ["/", "search"],
  ["r", "random channel"],
  ["t", "light, dark"],
  ["?", "this help"],
];

const spellOptions = (options) => {
  const text = Object.entries(options)
    .filter(([, value]) => value !== undefined && value !== null && value !== "")
    .map(
      ([name, value]) =>
        `${encodeURIComponent(name)}=${encodeURIComponent(value).replace(/%2C/g, ",").replace(/%3A/g, ":").replace(/%2F/g, "/").replace(/%40/g, "@")}`,
    )
    .join("&");
  return text ? `?${text}` : "";
};
const unitLink = (unit, carry) =>
  app.unitPath(unit.layer, unit.channel, { ...carry, v: unit.variant === app.atlas.about.first ? "" : unit.variant });

class App {
  constructor(root, atlas) {
    Object.assign(this, { root, atlas, options: {}, turn: 0 });
    this.main = h("main", { id: "main", tabindex: -1 });
  }
  // -- addresses
  link(path, options) {
    return `#${path}${spellOptions({ ...this.kept(), ...options })}`;
  }
  layerLink(name, options) {
    const { v, sort, z, f, s, w, b } = options || {};
    return this.link(`/${name}`, { v, sort, z, f, s, w, b });
  }
  unitPath(layer, channel, options) {
    const { v, sort, f, s, z, w, b } = options || {};
    return this.link(`/${layer}/${channel}`, { v, sort, f, s, z, w, b });
  }
  kept() {
    return this.options.embed ? { embed: this.options.embed } : {};
  }
  parse() {
    const [path, query] = location.hash.replace(/^#/, "").split("?");
    const options = Object.fromEntries(new URLSearchParams(query || ""));
    if (new URLSearchParams(location.search).get("embed")) options.embed = "1";
    return { parts: path.split("/").filter(Boolean).map(decodeURIComponent), options };
  }
  /** Changes options of this page; those it does not know stay as they are. */
  set(changes) {
    const path = location.hash.replace(/^#/, "").split("?")[0] || "/";
    location.replace(`#${path}${spellOptions({ ...this.options, ...changes })}`);
  }
  variantOf(options) {
    return options.v && this.atlas.variants.includes(options.v) ? options.v : this.atlas.about.first;
  }
  // -- pages
  async start() {
    const [, stamp] = await Promise.all([this.atlas.open(), this.atlas.look()]);
    this.atlas.stamp = stamp;
    this.theme(store.get("theme"));
    this.pins = new Pins(this);
    this.frame();
    addEventListener("hashchange", () => this.show());
    addEventListener("keydown", (event) => this.key(event));
    addEventListener("keyup", (event) => this.press(`${event.key} up`));
    hoverCards(this);
    pinch(this);
    await this.show();
    this.atlas.follow(() => this.news());
  }
  open({ parts, options }) {
    if (parts[0] === "list" && options.u) return ListPage.open(this, options);
    if (parts[0] === "compare" && options.u) return ComparePage.open(this, options);
    if (!parts.length) return new Overview(this, options);
    if (parts.length === 1 && /:\d+$/.test(parts[0])) parts = parts[0].split(":");
    if (parts.length === 1) return LayerPage.open(this, parts[0], options);
    return UnitPage.open(this, parts[0], Number(parts[1]), options);
  }
  async show(fresh = false) {
    const where = this.parse();
    const path = where.parts.join("/");
    document.documentElement.classList.toggle("embedded", !!where.options.embed);
    const stays = !fresh && this.page && this.path === path;
    this.options = where.options;
    this.choosers();
    if (stays && this.page.update && this.page.update(where.options)) return;
    const turn = ++this.turn;
    let page;
    try {
      page = await this.open(where);
    } catch (error) {
      page = {
        element: h(
          "div",
          { class: "lead" },
          h("h1", {}, "Not here"),
          h("p", { class: "note" }, error.message),
          h("p", {}, h("a", { href: "#/" }, "to the overview")),
        ),
        title: "Not here",
      };
    }
    if (turn !== this.turn) {
      if (page.leave) page.leave();
      return;
    } // the reader has gone on meanwhile
    if (this.page && this.page.leave) this.page.leave();
    const back = this.places && this.places.get(location.hash);
    this.page = page;
    this.path = path;
    this.main.replaceChildren(page.element);
    this.root.classList.toggle("at-home", !where.parts.length);
    document.title = page.title ? `${page.title} · ${this.atlas.about.title}` : this.atlas.about.title;
    if (!fresh) scrollTo(0, back || 0);
    if (page.grid && page.grid.layout) page.grid.layout();
  }
  /** Shows the page as it is now; whoever was on a cell, by keyboard, stays there. */
  async news() {
    const here = document.activeElement && document.activeElement.index;
    const top = scrollY;
    await this.show(true);
    scrollTo(0, top);
    if (here !== undefined && this.page.grid) this.page.grid.focus(here);
  }
  frame() {
    this.search = searchField(this);
    this.variants = h("div", { class: "chooser" });
    const bar = h(
      "header",
      { class: "top" },
      h(
        "a",
        { class: "home", href: "#/", "aria-label": `${this.atlas.about.title}: overview` },
        h("span", { class: "mark", "aria-hidden": "true" }, h("i"), h("i"), h("i"), h("i")),
        h("span", { class: "title" }, this.atlas.about.title),
      ),
      this.search.element,
      h("span", { class: "push" }),
      this.variants,
      button("◐", () => this.theme(this.dark() ? "light" : "dark"), {
        class: "quiet icon",
        title: "light or dark (t)",
        "aria-label": "light or dark",
      }),
      button("?", () => this.help.showModal(), { class: "quiet icon", title: "keys (?)", "aria-label": "help" }),
    );
    this.help = h(
      "dialog",
      {
        "aria-label": "keys",
        on: {
          click: (event) => {
            if (event.target === this.help) this.help.close();
          },
        },
      },
      h("h2", {}, "Keys"),
      h(
        "dl",
        { class: "keys" },
        HELP.map(([key, told]) => h("div", {}, h("dt", {}, h("kbd", {}, key)), h("dd", {}, told))),
      ),
      h("p", { class: "note" }, "Every page is its address: copy it to share the view."),
      button("Close", () => this.help.close()),
    );
    this.root.replaceChildren(
      h(
        "a",
        {
          class: "skip",
          href: "#main",
          on: {
            click: (event) => {
              event.preventDefault();
              this.main.focus();
            },
          },
        },
        "to the pictures",
      ),
      bar,
      this.main,
      this.pins.element,
      this.help,
      speaker,
      toast,
    );
    this.root.hidden = false;
    plain.remove();
    this.places = new Map();
    addEventListener(
      "scroll",
      eachFrame(() => this.places.set(location.hash, scrollY)),
      { passive: true },
    );
  }
  choosers() {
    const all = this.atlas.variants;
    this.variants.replaceChildren(
      all.length < 2
        ? ""
        : select(
            "variant",
            all.map((name) => [name, name]),
            this.variantOf(this.options),
            (v) => this.set({ v: v === this.atlas.about.first ? "" : v }),
          ),
    );
  }
  // -- by hand
  async random() {
    const { layers } = this.atlas;
    const variant = this.variantOf(this.options);
    let pick = Math.floor(
      Math.random() * layers.reduce((sum, entry) => sum + ((entry.variants[variant] || {}).done || 0), 0),
    );
    const entry = layers.find((one) => (pick -= (one.variants[variant] || {}).done || 0) < 0);
    if (!entry) return;
    const group = (await this.atlas.layer(entry.name))[variant];
    const alive = group.channels.filter((_, row) => group.raw.status[row] === "o");
    location.hash = this.unitPath(entry.name, alive[Math.floor(Math.random() * alive.length)] ?? group.channels[0], {
      v: this.options.v,
    });
  }
  dark() {
    const set = document.documentElement.dataset.theme;
    return set ? set === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  }
  theme(name) {
    if (name !== "light" && name !== "dark") return;
    document.documentElement.dataset.theme = name;
    store.set("theme", name);
  }
  press(key) {
    const action = this.page && this.page.keys && this.page.keys()[key];
    if (action) action();
    return !!action;
  }
  key(event) {
    if (
      event.ctrlKey ||
      event.metaKey ||
      event.altKey ||
      /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName) ||
      this.help.open ||
      (event.repeat && event.key === "f")
    )
      return;
    const focused = document.activeElement && document.activeElement.unit;
    const own = {
      "/": () => this.search.focus(),
      r: () => this.random(),
      t: () => this.theme(this.dark() ? "light" : "dark"),
      "?": () => this.help.showModal(),
      v: () => {
        const all = this.atlas.variants;
        const next = all[(all.indexOf(this.variantOf(this.options)) + 1) % all.length];
        this.set({ v: next === this.atlas.about.first ? "" : next });
        if (all.length > 1) say(next);
      },
      c: focused ? () => this.pins.toggle(focused) : null,
    }[event.key];
    if (focused && event.key === "c" ? (own(), true) : this.press(event.key) || (own && (own(), true)))
      event.preventDefault();
  }
}

const plain = document.getElementById("plain");
const app = new App(document.getElementById("app"), new Atlas(""));
app.start().catch((error) => {
  document.documentElement.classList.remove("scripted");
  plain.prepend(h("p", { class: "note", role: "alert" }, `The interactive page could not start: ${error.message}.`));
});
