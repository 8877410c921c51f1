/* Chosen units: a list that is its own address, and a table that compares them, across atlases too. */

/** "layer:17@variant" as [layer, channel, variant]; null where it is none. */
function parseName(text) {
  const match = /^([A-Za-z0-9._-]+):(\d{1,5})(?:@([A-Za-z0-9._-]+))?$/.exec(text.trim());
  return match ? [match[1], Number(match[2]), match[3] || "channel"] : null;
}

async function unitsNamed(atlas, names) {
  const asked = (names || "").split(",").slice(0, 500).map(parseName).filter(Boolean);
  const found = await Promise.all(
    asked.map(async ([layer, channel, variant]) => {
      if (!atlas.byName.has(layer)) return null;
      const groups = await atlas.layer(layer);
      const group = groups[variant] || Object.values(groups)[0];
      return channel < group.entry.total ? group.unit(channel) : null;
    }),
  );
  return found.filter(Boolean);
}

class ListPage {
  constructor(app, options, units) {
    Object.assign(this, { app, options, units });
    this.title = `${plural(units.length, "channel")}`;
    this.grid = new Grid({ label: "chosen channels", carry: { v: options.v }, tag: (unit) => unit.name });
    this.element = h(
      "div",
      { class: "list-page" },
      h(
        "header",
        { class: "lead" },
        h("h1", {}, options.title || "A list"),
        h(
          "div",
          { class: "bar" },
          h("p", { class: "facts" }, this.title),
          h("span", { class: "push" }),
          units.length < 9 ? h("a", { class: "quiet", href: app.link("/compare", { u: options.u }) }, "Compare") : "",
          copyButton("Link", () => location.href),
          copyButton("Python", () => listProgram(app.atlas, units)),
        ),
      ),
      this.grid.element,
    );
    this.grid.show(units, units.length > 24 ? zoomOf(options, units.length) : wide() ? "full" : 128);
  }
  static async open(app, options) {
    return new ListPage(app, options, await unitsNamed(app.atlas, options.u));
  }
  leave() {
    this.grid.leave();
  }
  keys() {
    return {
      Escape: () => {
        location.hash = this.app.link("/", {});
      },
    };
  }
}

/** Which of two atlases: where it is, and what it is of where that is another network. */
function whence(app, atlas) {
  if (!atlas.base) return "this atlas";
  return atlas.about.title === app.atlas.about.title ? atlas.base : `${atlas.base}, ${atlas.about.title}`;
}

class ComparePage {
  constructor(app, options, columns) {
    this.app = app;
    this.title = "Compare";
    const measures = [
      "normalized",
      "best",
      "start",
      "robust",
      "gain",
      "rank",
      "best_step",
      "contrast",
      "high_frequency",
    ];
    const told = measures.filter((name) => columns.some(({ unit }) => unit.value(name) !== null));
    this.element = h(
      "div",
      { class: "compare-page" },
      h(
        "header",
        { class: "lead" },
        h("h1", {}, "Compare"),
        h(
          "div",
          { class: "bar" },
          h("p", { class: "facts" }, plural(columns.length, "picture")),
          h("span", { class: "push" }),
          copyButton("Link", () => location.href),
        ),
      ),
      h(
        "div",
        { class: "scroll" },
        h(
          "table",
          {},
          h(
            "thead",
            {},
            h(
              "tr",
              {},
              h("td"),
              columns.map(({ unit, atlas }) =>
                h(
                  "th",
                  { scope: "col" },
                  fill(
                    cell(unit, 200, { full: true, label: false }),
                    atlas.base ? { href: atlas.base + "index.html" + unitLink(unit, {}) } : {},
                    [],
                  ),
                  h("span", { class: "mono" }, unit.name),
                  options.b ? h("span", { class: "note" }, whence(app, atlas)) : "",
                ),
              ),
            ),
          ),
          h(
            "tbody",
            {},
            told.map((name) =>
              h(
                "tr",
                {},
                h(
                  "th",
                  { scope: "row", title: MEASURES[name] ? MEASURES[name][2] : "" },
                  MEASURES[name] ? MEASURES[name][0] : name,
                ),
                columns.map(({ unit }) => h("td", { title: lack(unit, name) }, brief(unit.value(name)))),
              ),
            ),
            h(
              "tr",
              {},
              h("th", { scope: "row" }, "recipe"),
              columns.map(({ unit }) => {
                const recipe = unit.atlas.about.variants[unit.variant];
                return h("td", {}, recipe.preset, h("span", { class: "note" }, ` ${count(recipe.fields.steps)} steps`));
              }),
            ),
          ),
        ),
      ),
    );
  }
  static async open(app, options) {
    const columns = (await unitsNamed(app.atlas, options.u)).map((unit) => ({ unit, atlas: app.atlas }));
    if (!options.b) return new ComparePage(app, options, columns);
    const atlas = await otherAtlas(options.b);
    const theirs = (await unitsNamed(atlas, options.u)).map((unit) => ({ unit, atlas }));
    const pairs = columns
      .flatMap((mine) => [mine, theirs.find(({ unit }) => unit.name === mine.unit.name)])
      .filter(Boolean);
    return new ComparePage(app, options, pairs);
  }
  keys() {
    return {
      Escape: () => {
        location.hash = this.app.link("/", {});
      },
    };
  }
}
