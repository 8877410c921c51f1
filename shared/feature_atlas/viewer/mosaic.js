/* Mosaics: thousands of units at 16 pixels on a canvas, each still a link. */

const sheetImages = new Map();
/** Decoded pixels that are kept: about 100 MB, which a phone can spare. */
const KEPT = 24e6;

/** The decoded sheet, from a store of those used last. */
function sheetImage(url) {
  let image = sheetImages.get(url);
  if (image)
    sheetImages.delete(url); // to the end: used last
  else {
    image = new Image();
    image.decoding = "async";
    image.src = url;
    image.ready = image.decode();
    image.ready.then(forget, () => sheetImages.delete(url));
  }
  sheetImages.set(url, image);
  return image;
}

function forget() {
  let pixels = 0;
  for (const [url, image] of [...sheetImages].reverse()) {
    pixels += image.naturalWidth * image.naturalHeight;
    if (pixels > KEPT) sheetImages.delete(url);
  }
}

function colours() {
  const style = getComputedStyle(document.documentElement);
  return { cell: style.getPropertyValue("--cell"), line: style.getPropertyValue("--hatch") };
}

function paintState(pen, state, x, y, size, paint) {
  pen.fillStyle = paint.cell;
  pen.fillRect(x, y, size, size);
  pen.strokeStyle = pen.fillStyle = paint.line;
  pen.lineWidth = 1;
  pen.beginPath();
  if (state === "failed")
    for (let k = 4; k < 2 * size; k += 4) {
      pen.moveTo(x + Math.max(0, k - size), y + Math.min(size, k));
      pen.lineTo(x + Math.min(size, k), y + Math.max(0, k - size));
    }
  else if (state !== "missing") {
    pen.arc(x + size / 2, y + size / 2, size / 6, 0, 7);
    pen.fill();
  }
  pen.stroke();
}

/** A canvas of units in lines of ``columns``; behaves like so many links. */
function mosaic(units, columns, carry, from = 0, size = 16) {
  const ratio = Math.min(2, window.devicePixelRatio || 1);
  const lines = Math.ceil(units.length / columns);
  const canvas = h("canvas", { "aria-hidden": "true" });
  canvas.width = columns * size * ratio;
  canvas.height = lines * size * ratio;
  const spot = h("a", { class: "spot", href: "#/", tabindex: from ? -1 : 0 });
  const frame = h("div", { class: "mosaic" }, canvas, spot);
  Object.assign(canvas.style, { width: `${columns * size}px`, height: `${lines * size}px` });
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  paintUnits(pen, units, columns, size);

  const put = (n) => {
    const unit = units[n];
    if (!unit) return;
    spot.unit = unit;
    spot.index = from + n;
    spot.href = unitLink(unit, carry);
    spot.setAttribute("aria-label", describe(unit));
    Object.assign(spot.style, {
      left: `${(n % columns) * size}px`,
      top: `${Math.floor(n / columns) * size}px`,
      width: `${size}px`,
      height: `${size}px`,
    });
  };
  frame.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left) / size),
      line = Math.floor((event.clientY - box.top) / size);
    if (column >= 0 && column < columns && line >= 0) put(line * columns + column);
  });
  frame.addEventListener("pointerdown", (event) => frame.dispatchEvent(new PointerEvent("pointermove", event)));
  frame.focusOn = (index) => {
    put(index - from);
    spot.tabIndex = 0;
    spot.focus({ preventScroll: true });
  };
  frame.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
    const next = spot.index - from + step;
    if (!step || frame.closest(".grid") || !units[next]) return; // a grid moves from mosaic to mosaic by itself
    event.preventDefault();
    put(next);
  });
  put(0);
  return frame;
}

function paintUnits(pen, units, columns, size) {
  const paint = colours();
  const cut = sheetFor(size);
  const bySheet = new Map();
  units.forEach((unit, n) => {
    const x = (n % columns) * size,
      y = Math.floor(n / columns) * size;
    if (unit.state !== "ok") {
      paintState(pen, unit.state, x, y, size, paint);
      return;
    }
    pen.fillStyle = paint.cell;
    pen.fillRect(x, y, size, size);
    const { url, column, row } = place(unit, cut);
    if (!bySheet.has(url)) bySheet.set(url, []);
    bySheet.get(url).push([column, row, x, y]);
  });
  for (const [url, parts] of bySheet) {
    const image = sheetImage(url);
    image.ready.then(
      () => {
        for (const [column, row, x, y] of parts)
          pen.drawImage(image, column * cut, row * cut, cut, cut, x, y, size, size);
      },
      () => {},
    );
  }
}
