/* The whole network: every layer as a strip, as a mosaic, or all units in one grid. */

const MODES = [
  ["", "Strips", "a sample of every layer"],
  ["mosaic", "Mosaic", "every channel, small"],
  ["all", "All channels", "one grid to sort and filter across layers"],
];

/** "layer1.0.conv2" with what it shares with the layer before it set back. */
function layerLabel(name, previous = "") {
  const mine = name.split("."),
    theirs = previous.split(".");
  let shared = 0;
  while (shared < mine.length - 1 && mine[shared] === theirs[shared]) shared++;
  const head = mine.slice(0, shared).join(".");
  return [head && h("span", { class: "shared" }, `${head}.`), mine.slice(shared).join(".")];
}

/** How long the links of a shared page last. */
function lasting(until) {
  const end = new Date(until);
  const day = end.toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });
  return end < new Date() ? `its links ended on ${day}: ask for a new page` : `links last until ${day}`;
}

const AWAITED = 32; // cells of a strip, the grey ones of a run included

class Overview {
  constructor(app, options) {
    Object.assign(this, { app, options });
    this.element = h("div", { class: "overview" });
    this.watch = new ResizeObserver((entries) => {
      for (const { target } of entries) target.reflow();
    });
    this.title = "";
    this.build();
  }
  get variant() {
    return this.app.variantOf(this.options);
  }
  update(options) {
    const same = ["m", "v"].every((name) => (options[name] || "") === (this.options[name] || ""));
    this.options = options;
    if (!same) this.build();
    else if (this.arrange) {
      this.arrange.update(options);
      this.fillAll();
    }
    return true;
  }
  leave() {
    this.watch.disconnect();
    if (this.grid) this.grid.leave();
  }
  build() {
    this.leave();
    this.grid = this.arrange = null;
    const mode = this.options.m || "";
    this.body = h("div", { class: `body ${mode ? `of-${mode}` : "strips"}` });
    this.element.replaceChildren(this.head(mode), this.body);
    if (mode === "all") this.buildAll();
    else this.body.append(...this.app.atlas.layers.map((entry, n) => this.row(entry, n, mode)));
    if (!mode) this.body.addEventListener("keydown", (event) => this.walk(event));
  }
  /** Arrow keys go along a strip, and from strip to strip. */
  walk(event) {
    const strip = event.target.closest(".strips .pictures");
    if (!strip || !event.target.classList.contains("cell") || event.ctrlKey || event.metaKey || event.altKey) return;
    const strips = [...this.body.querySelectorAll(".pictures")].filter((one) => one.querySelector("a.cell"));
    const at = [...strip.children].indexOf(event.target);
    const along = { ArrowRight: 1, ArrowLeft: -1 }[event.key] || 0;
    const across = { ArrowDown: 1, ArrowUp: -1 }[event.key] || 0;
    const next = strips[strips.indexOf(strip) + across];
    if ((!along && !across) || !next) return;
    event.preventDefault();
    const cells = next.querySelectorAll("a.cell");
    const cell = cells[clamp(at + along, 0, cells.length - 1)];
    for (const other of cells) other.tabIndex = other === cell ? 0 : -1;
    cell.focus();
  }
  head(mode) {
    const { about, layers } = this.app.atlas;
    const { counts } = about;
    const facts = [
      [plural(counts.done, "picture"), counts.done < counts.planned ? `of ${count(counts.planned)} planned` : ""],
      [plural(layers.length, "layer"), ""],
      counts.dead ? [count(counts.dead), "dead"] : null,
      counts.failed ? [count(counts.failed), "failed"] : null,
      [about.license, ""],
      about.until ? ["", lasting(about.until)] : null,
    ].filter(Boolean);
    return h(
      "header",
      { class: "lead" },
      h("h1", {}, about.title),
      h(
        "p",
        { class: "facts" },
        facts.map(([strong, rest]) => h("span", {}, h("b", {}, strong), rest && ` ${rest}`)),
        this.app.atlas.live ? h("span", { class: "live" }, this.app.atlas.progress()) : "",
      ),
      h(
        "div",
        { class: "bar" },
        choices("view", MODES, mode, (m) => this.app.set({ m })),
        h("span", { class: "push" }),
        button("Random", () => this.app.random(), { class: "quiet", title: "a channel by chance (r)" }),
        copyButton("Python", () => atlasProgram(this.app.atlas), { title: "copy how to open this atlas in Python" }),
        copyButton("Citation", () => citation(this.app.atlas), { title: "copy how to cite this atlas" }),
        embedded ? "" : h("a", { class: "quiet", href: "contact-sheet.png" }, "Contact sheet"),
      ),
    );
  }
  row(entry, n, mode) {
    const layers = this.app.atlas.layers;
    const told = entry.variants[this.variant];
    const previous = n ? layers[n - 1].name : "";
    const first = n > 0 && entry.name.split(".")[0] !== previous.split(".")[0] && entry.name.includes(".");
    const planned = told ? channelsOf(told.planned).length : 0;
    const chosen = told && planned < entry.total ? `${count(planned)} of ` : "";
    const notes = [entry.kind];
    if (told && told.done < planned) notes.push(`${count(told.done)} of ${count(planned)} done`);
    else notes.push(chosen + plural(entry.total, "channel"));
    if (told && told.dead) notes.push(`${count(told.dead)} dead`);
    if (told && told.failed) notes.push(`${count(told.failed)} failed`);
    const pictures = h("div", { class: "pictures" });
    const row = h(
      "section",
      { class: `layer${first ? " first" : ""}${told ? "" : " absent"}` },
      h(
        "h2",
        {},
        h(
          "a",
          { href: this.app.layerLink(entry.name, { v: this.options.v }), title: entry.name },
          layerLabel(entry.name, first ? "" : previous),
        ),
      ),
      h(
        "p",
        { class: "note" },
        notes.map((note, k) => [h("span", { class: "whole" }, k + 1 < notes.length ? `${note} ·` : note), " "]),
        told && told.done < planned ? h("span", { class: "progress", style: { "--share": told.done / planned } }) : "",
      ),
      pictures,
    );
    if (told && mode === "mosaic") this.mosaic(entry, pictures, planned);
    else if (told) this.strip(entry, told, pictures, planned);
    return row;
  }
  strip(entry, told, pictures, planned) {
    const url = this.app.atlas.url(`sheets/strip/${this.variant}/${entry.name}/strip.webp`, told.strip_v);
    const carry = { v: this.options.v };
    const many = told.strip.length;
    const links = told.strip.map((channel, n) =>
      h(
        "a",
        {
          class: "cell",
          href: this.app.unitPath(entry.name, channel, carry),
          "aria-label": unitName(entry.name, channel, this.variant),
          tabindex: n ? -1 : undefined,
          style: {
            "background-size": `${many * 100}% 100%`,
            "background-position": `${many > 1 ? (n / (many - 1)) * 100 : 0}% 0`,
          },
        },
        h("span", { class: "tag", "aria-hidden": "true" }, String(channel)),
      ),
    );
    const awaited = Math.max(0, planned - told.done - told.failed);
    const empty = Array.from({ length: clamp(AWAITED - many, 0, awaited) }, () =>
      h("span", { class: "cell", "data-state": "missing", "aria-hidden": "true" }),
    );
    pictures.append(...links, ...empty);
    if (!many && !awaited)
      pictures.append(h("span", { class: "note empty" }, told.done ? "nothing alive here" : "all failed"));
    whenNear(
      pictures,
      () => {
        for (const link of links) link.style.backgroundImage = cssUrl(url);
      },
      "600px",
    );
  }
  /** Pixels of a mosaic's cell: a small network fills the page, too. */
  get small() {
    const { planned } = this.app.atlas.about.counts;
    return planned <= 1000 && wide() ? 48 : planned <= 4000 ? 32 : 16;
  }
  mosaic(entry, pictures, planned) {
    const size = this.small;
    const draw = async () => {
      const groups = await this.app.atlas.layer(entry.name);
      const group = groups[this.variant];
      if (group) pictures.replaceChildren(mosaic(group.units, pictures.columns, { v: this.options.v }, 0, size));
      pictures.drawn = true;
    };
    this.watch.observe(pictures);
    pictures.reflow = () => {
      if (!pictures.clientWidth) return;
      const columns = Math.max(4, Math.floor(pictures.clientWidth / size));
      if (columns === pictures.columns) return;
      pictures.columns = columns;
      pictures.style.minHeight = `${Math.ceil(planned / columns) * size}px`;
      if (pictures.drawn) draw();
      else if (!pictures.waits) {
        pictures.waits = true;
        whenNear(pictures, draw, "500px");
      }
    };
  }
  async buildAll() {
    this.body.append(h("p", { class: "note loading" }, "reading all layers …"));
    const network = await this.app.atlas.network();
    if (this.options.m !== "all") return;
    this.units = network.flatMap((groups) => (groups[this.variant] ? groups[this.variant].units : []));
    this.arrange = new Arrange(this.options, this.units, (changes) => this.app.set(changes));
    this.grid = new Grid({
      label: "all channels; arrow keys move",
      carry: { v: this.options.v },
      tag: (unit) => unit.address,
    });
    this.body.replaceChildren(this.arrange.element, this.grid.element);
    this.fillAll();
  }
  fillAll() {
    const shown = arranged(this.units, this.options);
    this.arrange.tell(shown.length);
    this.grid.show(shown, zoomOf(this.options, this.units.length));
  }
  keys() {
    return this.grid ? { "+": () => this.app.set(zoomed(this, 1)), "-": () => this.app.set(zoomed(this, -1)) } : {};
  }
}
