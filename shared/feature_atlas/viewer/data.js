/* The atlas as data: loaded by classic scripts (all that file:// allows), from beside the page or from inside it. */

const embedded = (() => {
  const node = document.getElementById("embedded");
  return node ? JSON.parse(node.textContent) : null;
})();

const waiting = new Map();
window.FEATURE_ATLAS = {
  put(name, value) {
    const take = waiting.get(document.currentScript);
    if (take) take(value);
  },
};

function loadScript(url) {
  return new Promise((resolve, reject) => {
    const tag = h("script", { src: url, async: true });
    const end = (settle) => () => {
      waiting.delete(tag);
      tag.remove();
      settle(new Error(`${url} could not be read`));
    };
    waiting.set(tag, resolve);
    tag.addEventListener("load", end(reject)); // of no effect once resolved
    tag.addEventListener("error", end(reject));
    document.head.append(tag);
  });
}

/** "0:64,100,200:300:8" as an array of numbers. */
function channelsOf(text) {
  const numbers = [];
  for (const part of text ? text.split(",") : []) {
    const [start, stop, step] = part.split(":").map(Number);
    if (stop === undefined) numbers.push(start);
    else for (let c = start; c < stop; c += step || 1) numbers.push(c);
  }
  return numbers;
}

/** A unit as people write it: "conv1:3", "conv1:3@negative". */
const unitName = (layer, channel, variant) => `${layer}:${channel}${variant === "channel" ? "" : `@${variant}`}`;

const pad5 = (channel) => String(channel).padStart(5, "0");
const STATES = { o: "ok", d: "dead", n: "nan" };

/** One variant of one layer: numbers in columns, one entry per finished unit. */
class Group {
  constructor(atlas, entry, variant, raw) {
    Object.assign(this, { atlas, entry, layer: entry.name, variant, raw });
    this.channels = channelsOf(raw.channels);
    this.rows = new Map(this.channels.map((channel, row) => [channel, row]));
    this.failed = new Set(channelsOf(raw.failed));
    this.made = new Map();
  }
  /** The unit of a channel, finished or not. */
  unit(channel) {
    if (!this.made.has(channel)) this.made.set(channel, new Unit(this, channel));
    return this.made.get(channel);
  }
  /** Every planned unit, channels ascending. */
  get units() {
    this.all = this.all || channelsOf(this.raw.planned).map((channel) => this.unit(channel));
    return this.all;
  }
  get likeness() {
    if (!this.bytes) this.bytes = Uint8Array.from(atob(this.raw.likeness), (c) => c.charCodeAt(0));
    return this.bytes;
  }
}

class Unit {
  constructor(group, channel) {
    this.group = group;
    this.channel = channel;
    this.row = group.rows.has(channel) ? group.rows.get(channel) : -1;
  }
  get atlas() {
    return this.group.atlas;
  }
  get layer() {
    return this.group.layer;
  }
  get variant() {
    return this.group.variant;
  }
  get state() {
    if (this.row >= 0) return STATES[this.group.raw.status[this.row]];
    return this.group.failed.has(this.channel) ? "failed" : "missing";
  }
  /** Why there is no picture, in words. */
  get trouble() {
    const told = (this.group.raw.errors || {})[this.channel];
    return told ? `failed: ${told}` : WORDS[this.state];
  }
  get address() {
    return `${this.layer}:${this.channel}`;
  }
  get name() {
    return unitName(this.layer, this.channel, this.variant);
  }
  value(column) {
    const values = this.group.raw[column];
    return this.row >= 0 && values ? values[this.row] : null;
  }
  image(n = 0) {
    return this.atlas.url(`images/${this.variant}/${this.layer}/${pad5(this.channel)}${n ? `-${n}` : ""}.png`);
  }
  get initial() {
    return this.atlas.url(`initial/${this.variant}/${this.layer}/${pad5(this.channel)}.png`);
  }
  get manifest() {
    return this.atlas.url(`manifests/${this.variant}/${this.layer}/${pad5(this.channel)}.json`);
  }
}

const POLL = 10000; // milliseconds between two looks
const QUIET = 15 * 60000; // a run that gave no sign of life for so long was ended by force

class Atlas {
  constructor(base) {
    this.base = base;
    this.cache = new Map();
    this.stamp = "";
  }
  url(key, version) {
    if (embedded && !this.base) return embedded.links[key] || "";
    return this.base + key + (version ? `?v=${version}` : "");
  }
  script(key, name, version) {
    if (embedded && !this.base) {
      return name in embedded.scripts
        ? Promise.resolve(embedded.scripts[name])
        : Promise.reject(new Error(`${name} is not part of this file`));
    }
    return loadScript(this.base + key + (version ? `?v=${version}` : ""));
  }
  once(key, make) {
    if (!this.cache.has(key)) {
      const promise = make();
      promise.catch(() => this.cache.delete(key)); // asked again, it is tried again
      this.cache.set(key, promise);
    }
    return this.cache.get(key);
  }
  async open() {
    this.about = await this.script("atlas.js", "atlas", this.stamp);
    this.layers = this.about.layers;
    this.byName = new Map(this.layers.map((entry) => [entry.name, entry]));
    this.variants = Object.keys(this.about.variants);
    this.began = this.began || { done: this.about.counts.done, at: Date.now() };
    return this;
  }
  /** How a run goes on, in words: its share and, once this page has seen progress, the time left. */
  progress() {
    const { done, planned, failed } = this.about.counts;
    const rate = (done - this.began.done) / (Date.now() - this.began.at);
    const minutes = Math.ceil((planned - done - failed) / rate / 60000);
    const left = minutes < 90 ? `${minutes} min` : `${Math.round(minutes / 60)} h`;
    const share = Math.floor((100 * done) / (planned || 1));
    return `rendering now, ${share} %${rate > 0 ? `, about ${left} left` : ""}`;
  }
  /** All variants of a layer: name -> Group. */
  layer(name) {
    const entry = this.byName.get(name);
    if (!entry) return Promise.reject(new Error(`this atlas has no layer ${name}`));
    return this.once(`layer ${name} ${entry.v}`, async () =>
      this.groups(entry, await this.script(`layers/${name}/layer.js`, name, entry.v)),
    );
  }
  groups(entry, raw) {
    return Object.fromEntries(Object.entries(raw.variants).map(([v, data]) => [v, new Group(this, entry, v, data)]));
  }
  async unit(layer, channel, variant) {
    const groups = await this.layer(layer);
    const group = groups[variant] || Object.values(groups)[0];
    return group.unit(channel);
  }
  /** What only a unit's page needs. */
  async detail(unit) {
    const raw = await this.once(`detail ${unit.layer} ${unit.group.entry.v}`, () =>
      this.script(`layers/${unit.layer}/detail.js`, `${unit.layer}/detail`, unit.group.entry.v),
    );
    const columns = raw.variants[unit.variant];
    const row = columns ? channelsOf(columns.channels).indexOf(unit.channel) : -1;
    if (row < 0) return null;
    const told = { packs: columns.packs };
    for (const [name, values] of Object.entries(columns)) if (Array.isArray(values)) told[name] = values[row];
    return told;
  }
  /** Every layer's numbers: [{variant: Group}, ...] in the network's order. */
  network() {
    return this.once(`network ${this.stamp}`, async () => {
      const raw = await this.script("network.js", "network", this.stamp);
      return raw.filter((one) => this.byName.has(one.layer)).map((one) => this.groups(this.byName.get(one.layer), one));
    });
  }
  /** Whether a run goes on, and which state of the atlas is the newest. */
  async look() {
    if (embedded) return "";
    try {
      const status = await this.script("run/status.js", "status", Date.now());
      this.going = !!status.live;
      this.live = this.going && !(Date.now() - Date.parse(status.updated) > QUIET);
      return status.v;
    } catch {
      // a page without a status, or a moment without a network: the next look may find one
      return "";
    }
  }
  /** While a run goes on: calls back whenever there is news. */
  follow(onNews) {
    if (!this.going) return; // one that fell silent may still be taken up again
    setTimeout(async () => {
      const before = this.live;
      const newest = await this.look();
      try {
        if (newest && newest !== this.stamp) {
          this.cache.clear();
          const stamp = this.stamp;
          this.stamp = newest;
          await this.open().catch((error) => {
            this.stamp = stamp; // the next look tries again
            throw error;
          });
          onNews();
        } else if (this.live !== before) onNews();
      } catch {
        // a moment without a network
      }
      this.follow(onNews);
    }, POLL);
  }
}

/** The second atlas of a comparison.  Only a place beside this one: an address must not bring in foreign scripts. */
const others = new Map();
function otherAtlas(base) {
  if (!/^(\.\.\/|[A-Za-z0-9_-][A-Za-z0-9._-]*\/)+$/.test(base)) {
    return Promise.reject(new Error("b= takes a folder beside this atlas, such as ../other/"));
  }
  if (!others.has(base)) others.set(base, new Atlas(base).open());
  return others.get(base);
}
