/* The search field: "layer2.0.conv3:17", "0.conv3 17", "conv1:3@negative", part of a layer's name. */

function matches(atlas, text, most = 12) {
  const match = /^\s*([^\s:@]*)\s*[:\s]?\s*(\d*)(?:@(\S*))?\s*$/.exec(text.replace(/\[(\d+)\]/g, ".$1"));
  if (!match) return [];
  const [, wanted, digits, variant] = match;
  if (variant && !atlas.variants.some((name) => name.startsWith(variant))) return [];
  const channel = digits === "" ? null : Number(digits);
  const score = (name) => {
    if (name === wanted) return 0;
    if (name.endsWith(`.${wanted}`)) return 1;
    if (name.startsWith(wanted)) return 2;
    return name.includes(wanted) ? 3 : 9;
  };
  return atlas.layers
    .map((entry) => [score(entry.name), entry])
    .filter(([rank, entry]) => rank < 9 && (channel === null || channel < entry.total))
    .sort((a, b) => a[0] - b[0])
    .slice(0, most)
    .map(([, entry]) => ({ entry, channel, variant: atlas.variants.includes(variant) ? variant : "" }));
}

function searchField(app) {
  let found = [],
    at = 0;
  const list = h("ul", { id: "found", role: "listbox", hidden: true });
  const field = h("input", {
    type: "search",
    placeholder: "layer:channel",
    "aria-label": "search for layer:channel",
    role: "combobox",
    "aria-expanded": "false",
    "aria-controls": "found",
    autocomplete: "off",
    spellcheck: "false",
    autocapitalize: "off",
    on: {
      input: () => {
        at = 0;
        draw();
      },
      focus: () => {
        if (field.value) draw();
      },
      blur: () => setTimeout(() => document.activeElement !== field && close(), 150),
      keydown: (event) => {
        if (event.key === "ArrowDown" || event.key === "ArrowUp") {
          at = clamp(at + (event.key === "ArrowDown" ? 1 : -1), 0, Math.max(0, found.length - 1));
          draw();
          event.preventDefault();
        } else if (event.key === "Enter") {
          if (found[at]) go(found[at]);
          else if (field.value) say(`nothing here is called ${field.value}`);
        } else if (event.key === "Escape") {
          field.value = "";
          close();
          field.blur();
        }
        event.stopPropagation();
      },
    },
  });
  const close = () => {
    list.hidden = true;
    field.setAttribute("aria-expanded", "false");
    field.removeAttribute("aria-activedescendant");
  };
  const go = ({ entry, channel, variant }) => {
    const carry = { v: variant === app.atlas.about.first ? "" : variant || app.options.v };
    location.hash = channel === null ? app.layerLink(entry.name, carry) : app.unitPath(entry.name, channel, carry);
    field.value = "";
    close();
    field.blur();
  };
  const draw = () => {
    found = field.value.trim() ? matches(app.atlas, field.value) : [];
    list.replaceChildren(
      ...found.map((one, n) =>
        h(
          "li",
          {
            id: `found-${n}`,
            role: "option",
            "aria-selected": n === at ? "true" : "false",
            on: {
              pointerdown: (event) => {
                event.preventDefault();
                go(one);
              },
            },
          },
          h("span", { class: "mono" }, one.channel === null ? one.entry.name : `${one.entry.name}:${one.channel}`),
          h("span", { class: "note" }, plural(one.entry.total, "channel")),
        ),
      ),
    );
    list.hidden = !found.length;
    field.setAttribute("aria-expanded", String(!!found.length));
    if (found.length) field.setAttribute("aria-activedescendant", `found-${at}`);
  };
  return { element: h("div", { class: "search" }, field, list), focus: () => field.focus() };
}
