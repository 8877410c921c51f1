/* Words to take away: where the atlas is, how to open it in Python, how to cite it. */

/** The atlas's own address: what `feature-atlas view` was told, or the folder of this page. */
function addressOf(atlas) {
  const from = new URLSearchParams(location.search).get("from") || atlas.about.from;
  if (from) return from;
  const path = decodeURIComponent(location.pathname.replace(/[^/]*$/, "").replace(/(.)\/$/, "$1"));
  return location.protocol === "file:" ? path : location.origin + path;
}

const python = (text) => JSON.stringify(text); // a JSON string is a Python string, too

function program(atlas, ...lines) {
  return ["from feature_atlas import Atlas", "", `atlas = Atlas.open(${python(addressOf(atlas))})`, ...lines, ""].join(
    "\n",
  );
}

const inVariant = (atlas, unit) => (unit.variant === atlas.about.first ? "" : `.variant(${python(unit.variant)})`);

const atlasProgram = (atlas) => program(atlas, "atlas.rows()");
const layerProgram = (atlas, unit) =>
  program(atlas, `layer = atlas[${python(unit.layer)}]${inVariant(atlas, unit)}`, "layer.sheet()");
const unitProgram = (atlas, unit) =>
  program(atlas, `unit = atlas[${python(unit.layer)}][${unit.channel}]${inVariant(atlas, unit)}`, "unit.image");
const listProgram = (atlas, units) =>
  program(atlas, `units = [atlas[name] for name in ${python(units.map((unit) => unit.name))}]`);

/** A citation of the atlas, or of one unit of it; the root digest pins every picture. */
function citation(atlas, unit = null) {
  const { title, license, root_sha256: root } = atlas.about;
  const what = unit ? `${unit.name} in ${title}` : title;
  return `Feature visualisation of ${what}. Feature Atlas, root sha256:${root}. ${license}. ${addressOf(atlas)}`;
}
