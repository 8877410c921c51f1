/* Small tools to build the page out of elements and text.  Nothing here, or anywhere in the viewer, parses HTML. */

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "text") node.textContent = value;
    else if (name === "on") for (const [event, handler] of Object.entries(value)) node.addEventListener(event, handler);
    else if (name === "style")
      for (const [property, text] of Object.entries(value)) node.style.setProperty(property, text);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat(3))
    if (child !== null && child !== undefined && child !== false) node.append(child);
  return node;
}

/** An element: h("a", {class: "cell", href: "#/", on: {click}}, "text", child). */
const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

const wide = () => window.innerWidth > 640;
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const count = (number) => number.toLocaleString("en-US");
const plural = (number, word) => `${count(number)} ${word}${number === 1 ? "" : "s"}`;

/** Runs the function at most once per frame, whatever calls it. */
function eachFrame(action) {
  let waiting = 0;
  return () => {
    if (!waiting)
      waiting = requestAnimationFrame(() => {
        waiting = 0;
        action();
      });
  };
}

/** Calls back once when the element first comes near the screen. */
function whenNear(element, action, margin = "300px") {
  const watch = new IntersectionObserver(
    (entries) => {
      if (entries.some((entry) => entry.isIntersecting)) {
        watch.disconnect();
        action();
      }
    },
    { rootMargin: margin },
  );
  watch.observe(element);
}

const speaker = h("div", { class: "unseen", role: "status", "aria-live": "polite" });
const toast = h("div", { class: "toast", "aria-hidden": "true" });

/** Tells everybody, on the screen and through a screen reader. */
function say(text) {
  speaker.textContent = text;
  toast.textContent = text;
  toast.classList.add("shown");
  clearTimeout(say.timer);
  say.timer = setTimeout(() => toast.classList.remove("shown"), 1600);
}

/** Copies text; without the clipboard's leave (file:// in some browsers) through a selected field. */
async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const field = h("textarea", { class: "unseen", readonly: true });
    field.value = text;
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }
  say(`${what} copied`);
}

const button = (label, action, more) => h("button", { type: "button", on: { click: action }, ...more }, label);
const copyButton = (label, text, more) =>
  button(label, () => copy(typeof text === "function" ? text() : text, label), { class: "quiet", ...more });

/** A row of exclusive choices: [[value, label, title], ...]. */
function choices(label, options, current, choose) {
  return h(
    "div",
    { class: "choices", role: "group", "aria-label": label },
    options.map(([value, text, title]) =>
      button(text, () => choose(value), { "aria-pressed": value === current ? "true" : "false", title }),
    ),
  );
}

function select(label, options, current, choose) {
  const field = h(
    "select",
    { "aria-label": label, on: { change: () => choose(field.value) } },
    options.map(([value, text]) => h("option", { value, selected: value === current }, text)),
  );
  return field;
}
