/* What looks alike: distances between the 24 bytes that describe each picture. */

/** Squared distance of two descriptions of 24 bytes. */
function distance(a, i, b, j) {
  let sum = 0;
  for (let k = 0; k < 24; k++) {
    const d = a[i * 24 + k] - b[j * 24 + k];
    sum += d * d;
  }
  return sum;
}

/** The living units of the groups that look most like one, nearest first. */
function lookAlikes(unit, groups, most) {
  const found = [];
  if (unit.row < 0) return found;
  for (const group of groups) {
    for (let row = 0; row < group.channels.length; row++) {
      if (group.raw.status[row] !== "o" || (group.layer === unit.layer && group.channels[row] === unit.channel))
        continue;
      const far = distance(unit.group.likeness, unit.row, group.likeness, row);
      if (found.length < most || far < found[found.length - 1].far) {
        let at = found.findIndex((one) => one.far > far);
        found.splice(at < 0 ? found.length : at, 0, { far, group, channel: group.channels[row] });
        found.length = Math.min(found.length, most);
      }
    }
  }
  return found.map((one) => one.group.unit(one.channel));
}

/** Orders units so that neighbours look alike: always on to the nearest one that is left. */
function chain(units) {
  const left = units.filter((unit) => unit.row >= 0);
  const bytes = new Uint8Array(left.length * 24);
  left.forEach((unit, n) => bytes.set(unit.group.likeness.subarray(unit.row * 24, unit.row * 24 + 24), n * 24));
  const open = left.map((_, n) => n);
  const order = [];
  let here = 0;
  while (open.length) {
    let best = 0,
      far = Infinity;
    for (let k = 0; k < open.length; k++) {
      const d = distance(bytes, here, bytes, open[k]);
      if (d < far) {
        far = d;
        best = k;
      }
    }
    here = open[best];
    open[best] = open[open.length - 1];
    open.pop();
    order.push(left[here]);
  }
  return [...order, ...units.filter((unit) => unit.row < 0)];
}
