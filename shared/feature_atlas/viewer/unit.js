/* One unit: its picture in full, beside its variants, numbers, recipe, provenance and look-alikes. */

const BLANK = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7";
const AUTOMATIC = 6000; // up to so many units the search across the network needs no click

class UnitPage {
  constructor(app, options, unit, groups, twin) {
    Object.assign(this, { app, options, unit, groups, twin });
    this.title = unit.name;
    this.element = h("article", { class: "unit-page" });
    this.build();
  }
  static async open(app, layer, channel, options) {
    const groups = await app.atlas.layer(layer);
    const group = groups[app.variantOf(options)] || Object.values(groups)[0];
    if (!group.units.some((unit) => unit.channel === channel)) {
      throw new Error(
        `${layer} has no channel ${channel} in this atlas: it has ${count(group.units.length)}, ${group.raw.planned}`,
      );
    }
    const unit = group.unit(channel);
    return new UnitPage(app, options, unit, groups, await UnitPage.twinOf(unit, options, groups));
  }
  /** The same channel beside it, of the other atlas or variant that the address names. */
  static async twinOf(unit, { w, b }, groups) {
    if (!b) return w && groups[w] ? groups[w].unit(unit.channel) : null;
    const atlas = await otherAtlas(b);
    const theirs = atlas.byName.has(unit.layer) ? (await atlas.layer(unit.layer))[unit.variant] : null;
    return theirs ? theirs.unit(unit.channel) : null;
  }
  build() {
    const order = arranged(this.unit.group.units, this.options);
    const at = order.indexOf(this.unit);
    this.neighbours = [order[at - 1], order[at + 1]];
    this.picture = h("div", { class: "picture" });
    this.facts = h("div", { class: "facts-column" });
    this.element.append(this.head(), h("div", { class: "columns" }, this.picture, this.facts), this.alike());
    this.showPicture(null);
    this.showFacts(null);
    if (this.unit.row >= 0)
      this.app.atlas.detail(this.unit).then(
        (detail) => {
          this.detail = detail;
          this.showPicture(detail);
          this.showFacts(detail);
        },
        () => {},
      );
    this.swipe();
  }
  head() {
    const [before, after] = this.neighbours;
    const carry = this.options;
    const step = (unit, text, title) =>
      unit ? h("a", { class: "quiet", href: unitLink(unit, carry), title }, text) : "";
    return h(
      "header",
      { class: "lead" },
      h(
        "nav",
        { class: "steps", "aria-label": "channels" },
        step(before, before && `← ${before.channel}`, "the channel before (left arrow)"),
        h("span", { class: "push" }),
        step(after, after && `${after.channel} →`, "the next channel (right arrow)"),
      ),
      h(
        "h1",
        { class: "mono" },
        h("a", { href: this.app.layerLink(this.unit.layer, { ...carry, z: carry.z }) }, this.unit.layer),
        `:${this.unit.channel}`,
      ),
      h(
        "div",
        { class: "bar" },
        copyButton("Link", () => location.href),
        copyButton("Address", this.unit.name),
        copyButton("Python", () => unitProgram(this.app.atlas, this.unit)),
        copyButton("Citation", () => citation(this.app.atlas, this.unit)),
        button(
          this.app.pins.has(this.unit) ? "Unpin" : "Pin",
          (event) => {
            this.app.pins.toggle(this.unit);
            event.target.textContent = this.app.pins.has(this.unit) ? "Unpin" : "Pin";
          },
          { class: "quiet", title: "keep for comparing (c)" },
        ),
        this.unit.row >= 0 && this.unit.image()
          ? h("a", { class: "quiet", href: this.unit.image(), download: "" }, "PNG")
          : "",
        this.unit.row >= 0 && !embedded ? h("a", { class: "quiet", href: this.unit.manifest }, "JSON") : "",
      ),
    );
  }
  showPicture(detail) {
    const unit = this.unit;
    if (unit.row < 0 || unit.state === "nan") {
      this.picture.replaceChildren(
        h("div", { class: "cell big", "data-state": unit.state }),
        h("p", { class: "note" }, unit.trouble),
      );
      return;
    }
    if (!this.image) {
      this.image = h("img", {
        class: "master",
        src: unit.image() || BLANK,
        alt: describe(unit),
        width: 512,
        height: 512,
        on: {
          load: () => {
            if (this.image.naturalWidth !== this.image.naturalHeight)
              this.image.style.aspectRatio = `${this.image.naturalWidth} / ${this.image.naturalHeight}`;
          },
          click: () => this.image.classList.toggle("pixels"),
        },
        title: "click: sharp or smooth pixels",
      });
      showOn(this.image, unit, 128); // the sheet's cell stands in until the picture has come, or where there is none
    }
    const size = detail ? `${detail.width} × ${detail.height} pixels` : "";
    this.picture.replaceChildren(
      this.image,
      detail ? this.images(detail) : "",
      h("p", { class: "note" }, size, unit.state === "dead" && detail ? ` · dead: ${detail.reason}` : ""),
      this.variants(),
    );
  }
  /** All pictures of the job, and how it began where that was kept. */
  images(detail) {
    const many = detail.sha256.length;
    const all = Array.from({ length: many }, (_, n) => [this.unit.image(n), `image ${n + 1} of ${many}`]);
    if (this.app.atlas.about.variants[this.unit.variant].fields.keep_initial)
      all.push([this.unit.initial, "before the first step"]);
    const shown = all.filter(([url]) => url);
    if (shown.length < 2) return "";
    const buttons = shown.map(([url, label], n) =>
      button(
        h("img", { src: url, alt: label, title: label, width: 96, height: 96 }),
        () => {
          this.image.src = url;
          this.image.style.backgroundImage = "none";
          for (const node of buttons) node.setAttribute("aria-pressed", node === buttons[n]);
        },
        { "aria-pressed": n === 0 },
      ),
    );
    return h("div", { class: "images", role: "group", "aria-label": "diverse images of this channel" }, buttons);
  }
  variants() {
    const all = this.app.atlas.variants
      .map((name) => this.groups[name])
      .filter((group) => group && group.rows.has(this.unit.channel));
    const units = all.map((group) => group.unit(this.unit.channel));
    if (this.twin && this.twin.row >= 0 && !units.includes(this.twin)) units.push(this.twin);
    if (units.length < 2) return "";
    return h(
      "div",
      { class: "variants", role: "group", "aria-label": "variants" },
      units.map((unit) => {
        const link = cell(unit, 112, { carry: this.options, label: false });
        if (unit === this.unit) link.setAttribute("aria-current", "true");
        const { base } = unit.atlas;
        if (base) link.href = `${base}index.html${unitLink(unit, {})}`;
        return h(
          "figure",
          {},
          link,
          h("figcaption", {}, base || unit.variant, h("span", { class: "note" }, ` ${brief(unit.value("normalized"))}`)),
        );
      }),
    );
  }
  showFacts(detail) {
    const origin = h(
      "div",
      { class: "stack" },
      recipeFacts(this.unit),
      originFacts(this.app, this.unit, detail),
      this.run,
    );
    this.facts.replaceChildren(h("div", { class: "stack" }, numberFacts(this.unit, detail)), origin);
    if (detail && !this.run)
      runFacts(this.unit).then((told) => {
        if (told) {
          this.run = told;
          origin.append(told);
        }
      });
  }
  alike() {
    const frame = h("section", { class: "alike" });
    if (this.unit.state !== "ok") return frame;
    const row = (label, units, tag) =>
      h(
        "div",
        {},
        h("h2", {}, label),
        h(
          "div",
          { class: "row" },
          units.map((unit) => cell(unit, 96, { carry: { v: this.options.v }, label: tag ? unit.address : undefined })),
        ),
      );
    const near = lookAlikes(this.unit, [this.unit.group], 14);
    if (near.length) frame.append(row(`Look alike in ${this.unit.layer}`, near));
    const across = h("div", {});
    const search = async () => {
      across.replaceChildren(h("p", { class: "note" }, "looking …"));
      const network = await this.app.atlas.network();
      const groups = network
        .map((groups) => groups[this.unit.variant])
        .filter((group) => group && group.layer !== this.unit.layer);
      across.replaceChildren(row("Look alike in other layers", lookAlikes(this.unit, groups, 14), true));
    };
    if (this.app.atlas.layers.length > 1 && !(embedded && !("network" in embedded.scripts))) {
      frame.append(across);
      if (this.app.atlas.about.counts.done <= AUTOMATIC) whenNear(across, search, "0px");
      else across.append(button("Look for likenesses across the network", search));
    }
    return frame;
  }
  /** Holding F shows, in this one's place, the one beside it or else the first pinned one. */
  async flip(on) {
    const other = this.twin || (await this.app.pins.first());
    if (other && other.row >= 0 && this.image) this.image.src = on ? other.image() : this.unit.image();
  }
  swipe() {
    let from = null;
    this.picture.addEventListener(
      "touchstart",
      (event) => {
        from = event.touches.length === 1 ? event.touches[0] : null;
      },
      { passive: true },
    );
    this.picture.addEventListener(
      "touchend",
      (event) => {
        if (!from) return;
        const to = event.changedTouches[0],
          x = to.clientX - from.clientX,
          y = to.clientY - from.clientY;
        if (Math.abs(x) > 60 && Math.abs(x) > 2 * Math.abs(y)) this.go(x < 0 ? 1 : 0);
      },
      { passive: true },
    );
  }
  go(which) {
    if (this.neighbours[which]) location.hash = unitLink(this.neighbours[which], this.options);
  }
  keys() {
    return {
      ArrowLeft: () => this.go(0),
      ArrowRight: () => this.go(1),
      c: () => this.app.pins.toggle(this.unit),
      f: () => this.flip(true),
      "f up": () => this.flip(false),
      Escape: () => {
        location.hash = this.app.layerLink(this.unit.layer, this.options);
      },
    };
  }
}
