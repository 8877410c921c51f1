/* What a unit's page says beside the picture: numbers, recipe and where it comes from.  Text only. */

const fact = (name, ...value) => h("div", { class: "fact" }, h("dt", {}, name), h("dd", {}, ...value));
const section = (title, ...facts) => h("section", {}, h("h2", {}, title), h("dl", {}, facts.filter(Boolean)));
const hashFact = (name, text) =>
  text &&
  fact(
    name,
    h("code", { class: "hash", title: text }, `${text.slice(0, 16)}…`),
    copyButton("copy", text, { "aria-label": `copy ${name}` }),
  );

/** "31st of 512" with a histogram of the layer and this unit's place in it. */
function standing(unit) {
  const mine = unit.value("normalized");
  if (mine === null) return null;
  const sign = signOf(unit);
  const all = unit.group.raw.normalized;
  const known = all.filter((value) => value !== null);
  const rank = 1 + known.filter((value) => value * sign > mine * sign).length;
  return h(
    "div",
    { class: "standing" },
    histogramPicture(histogram(known), { width: 320, height: 44, mark: mine }),
    h(
      "p",
      { class: "note" },
      `${rank === 1 ? "strongest" : `number ${count(rank)}`} of ${count(known.length)} in its layer`,
      known.length < all.length ? `; ${count(all.length - known.length)} have no such distance` : "",
    ),
  );
}

function numberFacts(unit, detail) {
  if (unit.row < 0) return [h("p", { class: "note" }, unit.trouble)];
  const value = (name) => unit.value(name);
  const best = value("best"),
    robust = value("robust");
  const kept = best && robust !== null ? Math.round((robust / best) * 100) : null;
  const steps = unit.atlas.about.variants[unit.variant].fields.steps;
  const answers = value("answers");
  const none = lack(unit, "normalized");
  return [
    h(
      "section",
      { class: "numbers" },
      h(
        "p",
        { class: "headline" },
        h("b", { title: none }, brief(value("normalized"))),
        h("span", { class: "note", title: none }, "standard deviations over noise"),
        none && h("span", { class: "unseen" }, none),
      ),
      standing(unit),
      detail && detail.curve
        ? h(
            "figure",
            { class: "course" },
            curvePicture(detail.curve, value("best_step")),
            h(
              "figcaption",
              { class: "note" },
              `step ${count(detail.curve[0])} to ${count(detail.curve[1])}; chosen: ${count(value("best_step"))} of ${count(steps)}`,
            ),
          )
        : "",
      h(
        "dl",
        {},
        best === null
          ? ""
          : fact(
              "activation",
              `${brief(value("start"))} → `,
              h("b", {}, brief(best)),
              detail ? `, last ${brief(detail.final)}` : "",
            ),
        robust === null
          ? ""
          : fact(
              "held out",
              h("b", {}, brief(robust)),
              detail ? ` ± ${brief(detail.robust_std)}` : "",
              kept === null
                ? ""
                : h("span", { class: "note" }, ` ${kept} % kept under transforms it was not optimised for`),
            ),
        value("rank") === null
          ? ""
          : fact(
              "selective",
              value("rank") === 1
                ? "its own channel answers most"
                : [
                    `its own channel ranks ${count(value("rank"))}; `,
                    unit.group.rows.has(answers)
                      ? h("a", { href: unitLink(unit.group.unit(answers), {}) }, `${answers}`)
                      : `${answers}`,
                    " answers most",
                  ],
            ),
        fact(
          "colour",
          value("saturation") < 0.005
            ? "grey"
            : [
                h("span", { class: "swatch", style: { background: `hsl(${Number(value("hue"))} 75% 58%)` } }),
                `hue ${Math.round(value("hue"))}°`,
              ],
        ),
        fact("sharpness", `${brief(value("high_frequency") * 100)} % above ¼ cycle per pixel`),
        fact("contrast", brief(value("contrast"))),
      ),
    ),
  ];
}

const brieflyListed = (names) =>
  names.length > 3 ? `${names.slice(0, 2).join(", ")} and ${names.length - 2} more` : names.join(", ");

function recipeFacts(unit) {
  const told = unit.atlas.about.variants[unit.variant];
  const { fields } = told;
  const spell = (value) => (Array.isArray(value) ? value.join(", ") : String(value));
  return [
    section(
      "Recipe",
      fact(
        "variant",
        h("b", {}, unit.variant),
        told.preset === unit.variant
          ? ""
          : ` (${told.preset}${told.changes.length ? ` but ${brieflyListed(told.changes)}` : ""})`,
      ),
      fact("objective", `${fields.sign < 0 ? "least" : "most"} of the ${fields.objective}`),
      fact("steps", `${count(fields.steps)} at ${fields.size.join(" × ")} pixels`),
    ),
    h(
      "details",
      { class: "every" },
      h("summary", {}, "every number of the recipe"),
      h(
        "dl",
        {},
        Object.entries(fields)
          .filter(([, value]) => value !== null)
          .map(([name, value]) => fact(name, spell(value))),
      ),
    ),
  ];
}

function originFacts(app, unit, detail) {
  const { model, license, root_sha256: root } = app.atlas.about;
  return [
    section(
      "Provenance",
      fact("model", h("b", {}, model.name), model.weights.startsWith("sha256:") ? "" : ` ${model.weights}`),
      model.weights_sha256 ? hashFact("weights", model.weights_sha256) : "",
      detail && fact("seed", h("code", {}, detail.seed), detail.attempts > 1 ? ` attempt ${detail.attempts}` : ""),
      detail && fact("job", h("code", {}, detail.job_id)),
      detail && hashFact("file", detail.sha256[0]),
      detail && hashFact("pixels", detail.pixels_sha256),
      hashFact("atlas", root),
      fact("licence", license),
    ),
    h(
      "p",
      { class: "note caveat" },
      "An optimised picture shows what drives a channel most. It is no proof of what the channel means.",
    ),
  ];
}

/** Facts of the run, from the record beside the picture; over http only. */
async function runFacts(unit) {
  if (location.protocol === "file:" || embedded) return null;
  try {
    const reply = await fetch(unit.manifest);
    if (!reply.ok) return null;
    const { run, manifest } = await reply.json();
    const made = [
      run.device,
      run.seconds ? `${brief(run.seconds)} s` : "",
      run.batch ? `batch of ${run.batch}` : "",
      run.worker,
    ]
      .filter(Boolean)
      .join(" · ");
    const software = Object.entries(manifest.software || {})
      .map(([name, version]) => `${name} ${version}`)
      .join(" · ");
    return section(
      "Run",
      made && fact("made", made),
      run.created && fact("when", String(run.created)),
      software && fact("software", software),
    );
  } catch {
    return null;
  }
}
