/* Cells: one unit as a square cut out of a sheet, and grids of many of them that only build what is on the screen. */

const SHEETS = (embedded && embedded.sizes) || [16, 64, 128];
const BLOCK = 256,
  SIDE = 16;

/** The sheet size for a cell of so many CSS pixels. */
function sheetFor(px) {
  const needed = px * (window.devicePixelRatio || 1);
  return SHEETS.find((size) => needed <= size * 1.5) || SHEETS[SHEETS.length - 1];
}

/** Where a unit lies: its sheet's address, the sheet's shape in cells, its column and row. */
function place(unit, size) {
  const block = Math.floor(unit.channel / BLOCK);
  const cells = Math.min(BLOCK, unit.group.entry.total - block * BLOCK);
  const key = `sheets/${size}/${unit.variant}/${unit.layer}/${String(block).padStart(3, "0")}.webp`;
  const within = unit.channel % BLOCK;
  return {
    url: unit.atlas.url(key, unit.group.raw.versions[block]),
    columns: Math.min(SIDE, cells),
    rows: Math.ceil(cells / SIDE),
    column: within % SIDE,
    row: Math.floor(within / SIDE),
  };
}

const cssUrl = (url) => `url("${url.replace(/["\\\n]/g, encodeURIComponent)}")`;

/** Shows the unit on an element of ``px`` CSS pixels. */
function showOn(node, unit, px, full = false) {
  node.dataset.state = unit.state;
  if (unit.row < 0 || unit.state !== "ok") return node;
  if (full && unit.image()) {
    node.style.backgroundImage = cssUrl(unit.image());
    node.style.backgroundSize = "cover";
    return node;
  }
  const { url, columns, rows, column, row } = place(unit, sheetFor(px));
  node.style.backgroundImage = cssUrl(url);
  node.style.backgroundSize = `${columns * 100}% ${rows * 100}%`;
  const share = (n, of) => (of > 1 ? `${(n / (of - 1)) * 100}%` : "0");
  node.style.backgroundPosition = `${share(column, columns)} ${share(row, rows)}`;
  return node;
}

const WORDS = { dead: "dead: nothing excites it", nan: "not finite", failed: "failed", missing: "not rendered yet" };

/** For screen readers and titles; begins as the unit is called on the screen, so that it can be spoken to. */
function describe(unit) {
  if (unit.state !== "ok") return `${unit.name}, ${unit.trouble}`;
  const distance = unit.value("normalized");
  return `${unit.name}, ${distance === null ? `raw activation ${brief(unit.value("best"))}` : `activation ${brief(distance)}`}`;
}

/** A unit as a link. */
function cell(unit, px, options = {}) {
  const link = h("a", {
    class: "cell",
    href: unitLink(unit, options.carry),
    "aria-label": describe(unit),
    tabindex: options.tabindex,
  });
  link.unit = unit;
  if (options.beside) {
    link.classList.add("pair");
    link.append(showOn(h("span"), unit, px, options.full), options.beside(unit, px));
  } else showOn(link, unit, px, options.full);
  if (options.label !== false)
    link.append(h("span", { class: "tag", "aria-hidden": "true" }, options.label || String(unit.channel)));
  return link;
}

/** A grid of any number of units.  Rows are built as they come near the screen and dropped as they leave it. */
class Grid {
  constructor({ label, carry, beside, tag }) {
    Object.assign(this, { carry, beside, tag, units: [], at: 0, chunks: new Map() });
    this.element = h("div", {
      class: "grid",
      role: "group",
      "aria-label": label,
      on: {
        keydown: (event) => this.key(event),
        focusin: (event) => {
          if (event.target.index !== undefined) this.at = event.target.index;
        },
      },
    });
    this.update = eachFrame(() => this.draw());
    this.relayout = eachFrame(() => this.layout());
    addEventListener("scroll", this.update, { passive: true });
    this.watch = new ResizeObserver(() => {
      if (this.width !== this.element.clientWidth) this.relayout();
    });
    this.watch.observe(this.element);
  }
  leave() {
    removeEventListener("scroll", this.update);
    this.watch.disconnect();
  }
  show(units, zoom) {
    Object.assign(this, { units, zoom, at: clamp(this.at, 0, Math.max(0, units.length - 1)) });
    this.layout();
  }
  layout() {
    this.width = this.element.clientWidth;
    if (!this.width) return;
    const sharp = this.zoom === 16; // exact pixels, on canvases; the larger ones stretch to fill the line
    const factor = this.beside ? 2 : 1;
    this.gap = sharp ? 0 : wide() ? 4 : 3;
    const least = Math.min(
      this.zoom === "full" ? 224 : this.zoom,
      (this.width - this.gap) / (this.zoom === 128 ? 2 : 1),
    );
    this.columns = Math.max(1, Math.floor((this.width + this.gap) / (least * factor + this.gap)));
    const stretched = (this.width - this.gap * (this.columns - 1)) / this.columns / factor;
    this.px = sharp ? 16 : Math.min(stretched, least * 1.4);
    this.pitch = this.px + this.gap;
    this.lines = sharp ? 32 : 1; // lines of cells per chunk
    const rows = Math.ceil(this.units.length / this.columns);
    this.element.style.height = `${Math.max(0, rows * this.pitch - this.gap)}px`;
    for (const chunk of this.chunks.values()) chunk.remove();
    this.chunks.clear();
    this.draw();
  }
  draw() {
    if (!this.columns) return;
    const top = this.element.getBoundingClientRect().top;
    const tall = this.pitch * this.lines;
    const first = Math.max(0, Math.floor((-top - innerHeight * 0.5) / tall));
    const end = Math.min(
      Math.ceil(this.units.length / (this.columns * this.lines)),
      Math.ceil((innerHeight * 1.5 - top) / tall),
    );
    for (const [n, chunk] of this.chunks) {
      if ((n < first || n >= end) && !chunk.contains(document.activeElement)) {
        chunk.remove();
        this.chunks.delete(n);
      }
    }
    // What is on the screen first; what is near it only as long as the frame has time.
    const onScreen = Math.floor(-top / tall);
    const order = Array.from({ length: Math.max(0, end - first) }, (_, k) => first + k).filter(
      (n) => !this.chunks.has(n),
    );
    order.sort((a, b) => (a < onScreen) - (b < onScreen) || a - b);
    const late = performance.now() + 12;
    for (const n of order) {
      const needed = n >= onScreen && n * tall + top < innerHeight;
      if (!needed && performance.now() > late) {
        this.update();
        break;
      }
      this.chunks.set(n, this.build(n, n * tall));
    }
  }
  build(n, top) {
    const from = n * this.columns * this.lines;
    const units = this.units.slice(from, from + this.columns * this.lines);
    const chunk =
      this.lines > 1
        ? mosaic(units, this.columns, this.carry, from)
        : h(
            "div",
            { class: "line", style: { gap: `${this.gap}px` } },
            units.map((unit, k) => {
              const link = cell(unit, this.px, {
                carry: this.carry,
                beside: this.beside,
                full: this.zoom === "full",
                tabindex: from + k === this.at ? 0 : -1,
                label: this.tag ? this.tag(unit) : undefined,
              });
              link.index = from + k;
              link.style.width = `${this.px * (this.beside ? 2 : 1)}px`;
              link.style.height = `${this.px}px`;
              return link;
            }),
          );
    chunk.style.top = `${top}px`;
    this.element.append(chunk);
    return chunk;
  }
  key(event) {
    const step = {
      ArrowRight: 1,
      ArrowLeft: -1,
      ArrowDown: this.columns,
      ArrowUp: -this.columns,
      Home: -this.at,
      End: this.units.length - 1 - this.at,
    }[event.key];
    if (step === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    const next = this.at + step;
    if (next < 0 || next >= this.units.length) return;
    event.preventDefault();
    this.focus(next);
  }
  /** Moves the keyboard's place to the unit of this number. */
  focus(index) {
    this.at = index;
    const y = Math.floor(index / this.columns) * this.pitch + this.element.getBoundingClientRect().top;
    if (y < 120) scrollBy(0, y - 120);
    else if (y + this.px > innerHeight - 20) scrollBy(0, y + this.px - innerHeight + 20);
    this.draw();
    for (const link of this.element.querySelectorAll("a")) {
      if (link.index === index) {
        link.tabIndex = 0;
        link.focus({ preventScroll: true });
      } else link.tabIndex = -1;
    }
    const chunk = this.chunks.get(Math.floor(index / (this.columns * this.lines)));
    if (chunk && chunk.focusOn) chunk.focusOn(index);
  }
}
