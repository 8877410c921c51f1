/* Pointer and touch: cards that follow a mouse, and pinching to zoom. */

function hoverCards(app) {
  const card = h("div", { class: "card", "aria-hidden": "true", hidden: true });
  document.body.append(card);
  let timer = 0,
    over = null;
  const hide = () => {
    clearTimeout(timer);
    over = null;
    card.hidden = true;
  };
  const show = async (unit, box) => {
    const figure = showOn(h("div", { class: "cell" }), unit, 144);
    const course = h("div", { class: "course" });
    const kept =
      unit.value("robust") !== null && unit.value("best")
        ? ` · ${Math.round((unit.value("robust") / unit.value("best")) * 100)} % held out`
        : "";
    card.replaceChildren(
      figure,
      h(
        "div",
        {},
        h("p", { class: "mono" }, unit.name),
        unit.row < 0
          ? h("p", { class: "note" }, unit.trouble)
          : [
              h("p", {}, h("b", {}, brief(unit.value("normalized"))), h("span", { class: "note" }, " σ over noise")),
              h("p", { class: "note" }, `${brief(unit.value("start"))} → ${brief(unit.value("best"))}${kept}`),
              course,
            ],
      ),
    );
    card.hidden = false;
    const x = box.right + card.offsetWidth + 12 < innerWidth ? box.right + 8 : box.left - card.offsetWidth - 8;
    const y = clamp(box.top + box.height / 2 - card.offsetHeight / 2, 60, innerHeight - card.offsetHeight - 8);
    Object.assign(card.style, { left: `${Math.max(4, x)}px`, top: `${y}px` });
    if (unit.row >= 0) {
      const detail = await app.atlas.detail(unit).catch(() => null);
      if (over === unit && detail && detail.curve)
        course.replaceChildren(curvePicture(detail.curve, unit.value("best_step"), { width: 150, height: 34 }));
    }
  };
  document.addEventListener("pointerover", (event) => {
    const link =
      event.pointerType === "mouse" &&
      event.target.closest &&
      event.target.closest(".grid .cell, .grid .mosaic, .overview .mosaic, .alike .cell");
    if (!link) {
      hide();
      return;
    }
    arm(link);
  });
  document.addEventListener("pointermove", (event) => {
    const frame = event.pointerType === "mouse" && event.target.closest && event.target.closest(".mosaic");
    if (frame) arm(frame.querySelector(".spot"));
  });
  const arm = (link) => {
    const target = link.classList.contains("mosaic") ? link.querySelector(".spot") : link;
    if (!target.unit || target.unit === over) return;
    hide();
    over = target.unit;
    timer = setTimeout(() => show(target.unit, target.getBoundingClientRect()), 260);
  };
  addEventListener("scroll", hide, { passive: true });
  addEventListener("hashchange", hide);
  document.addEventListener("pointerdown", hide);
}

/** Two fingers on a grid: one step of zoom per pinch. */
function pinch(app) {
  let start = 0;
  const apart = (touches) =>
    Math.hypot(touches[0].clientX - touches[1].clientX, touches[0].clientY - touches[1].clientY);
  addEventListener(
    "touchstart",
    (event) => {
      start = event.touches.length === 2 ? apart(event.touches) : 0;
    },
    { passive: true },
  );
  addEventListener(
    "touchmove",
    (event) => {
      if (!start || event.touches.length !== 2 || !app.page || !app.page.grid) return;
      const ratio = apart(event.touches) / start;
      if (ratio > 1.35 || ratio < 0.74) {
        start = 0;
        app.set(zoomed(app.page, ratio > 1 ? 1 : -1));
      }
    },
    { passive: true },
  );
}
