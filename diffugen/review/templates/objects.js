// The objects of an image, and how a decision about them is written. An object is
// {labels: {attention, model}, use, kept, className, counts}: the places of its labels, null where a side has
// none; whose label it takes (null: whichever side the others come from; "human": it was drawn); whether it
// is kept; its correct class and mask, null for the label's own.

const SIDES = ["attention", "model"];

function labelsOf(card, side) {
  return card[side] ? card[side].labels : [];
}

function newObject(attention, model, kept) {
  return {labels: {attention, model}, use: null, kept, className: null, counts: null};
}

function firstObjects(card) {
  const partner = new Map(card.agreed), taken = new Set(partner.values());
  const own = labelsOf(card, "attention").map((_, index) => {
    const agreed = partner.has(index);
    return newObject(index, agreed ? partner.get(index) : null, agreed);
  });
  const others = labelsOf(card, "model").map((_, index) => newObject(null, index, false));
  return [...own, ...others.filter((one) => !taken.has(one.labels.model))];
}

function isAgreed(one) {
  return one.use !== "human" && one.labels.attention !== null && one.labels.model !== null;
}

// Agreed objects take the labels of the side that the mix is, or else that the other kept objects come from.
function mainSide(objects) {
  const whole = SIDES.find((side) => objects.every((one) => one.kept === (one.labels[side] !== null)));
  if (whole) return whole;
  const others = objects.filter((one) => one.kept && one.use !== "human" && !isAgreed(one));
  return others.length && others.every((one) => one.labels.attention === null) ? "model" : "attention";
}

function sourceOf(objects, one) {
  if (one.use !== null) return one.use;
  if (isAgreed(one)) return mainSide(objects);
  return one.labels.attention === null ? "model" : "attention";
}

function classOf(card, objects, one) {
  if (one.className !== null) return one.className;
  const source = sourceOf(objects, one);
  return card[source].labels[one.labels[source]].class;
}

function ownCounts(card, objects, one) {
  if (one.counts !== null) return one.counts;
  const source = sourceOf(objects, one);
  return card[source].labels[one.labels[source]].counts;
}

// Labels that are the same object cannot both be kept.
function areRivals(card, one, other) {
  if (isAgreed(one) && isAgreed(other)) return false;
  const meet = (first, second) => card.rivals.some(
    ([attention, model]) => first.labels.attention === attention && second.labels.model === model);
  return meet(one, other) || meet(other, one);
}

function rivalOf(card, objects, one) {
  return objects.find((other) => other !== one && areRivals(card, one, other));
}

function setKept(card, objects, one, kept) {
  if (one.kept === kept) return;
  one.kept = kept;
  if (!kept) return;
  for (const other of objects) if (other !== one && areRivals(card, one, other)) other.kept = false;
}

// Two kept objects of different origin that overlap by more than half, which no decisions file may hold.
function doubled(card, objects) {
  const kept = objects.filter((one) => one.kept);
  const masks = kept.map((one) => maskOf(ownCounts(card, objects, one), card.size));
  for (let first = 0; first < kept.length; first++) {
    for (let second = first + 1; second < kept.length; second++) {
      const apart = sourceOf(objects, kept[first]) !== sourceOf(objects, kept[second]);
      if (apart && iouOf(masks[first], masks[second]) > 0.5) return [kept[first], kept[second]];
    }
  }
  return null;
}

function verdictOf(card, objects) {
  const kept = objects.filter((one) => one.kept);
  if (!kept.length) return "empty";
  const changed = kept.some((one) => one.counts !== null || one.className !== null);
  const whole = (side) => card[side] && kept.length === card[side].labels.length
    && kept.every((one) => sourceOf(objects, one) === side);
  return (!changed && SIDES.find(whole)) || "edited";
}

function itemOf(card, objects, one) {
  const source = sourceOf(objects, one);
  const item = {source, keep: one.kept};
  if (source !== "human") Object.assign(item, {index: one.labels[source], method: card[source].method});
  else item.index = objects.filter((other) => other.use === "human").indexOf(one);
  if (one.className !== null) item.class = one.className;
  if (one.counts !== null) item.mask = {size: [card.size[1], card.size[0]], counts: one.counts};
  return item;
}

// What stands in the decisions file about an image, but for its id and the reviewer.
function wholeAnswer(card, verdict) {
  const method = card[verdict] ? {method: card[verdict].method} : {};
  return {verdict, ...method, at: new Date().toISOString()};
}

function answerOf(card, objects, verdict) {
  if (verdict !== "edited" && verdict !== "open") return wholeAnswer(card, verdict);
  const items = objects.map((one) => itemOf(card, objects, one));
  return {verdict, objects: items, at: new Date().toISOString()};
}

// The objects as an answer leaves them.
function objectsOf(card, answer) {
  const objects = firstObjects(card);
  if (!answer) return objects;
  const side = SIDES.includes(answer.verdict) && card[answer.verdict] ? answer.verdict : null;
  for (const one of objects) {
    if (side) one.kept = one.labels[side] !== null;
    if (side === "model" && isAgreed(one)) one.use = side;
    if (!side && (answer.verdict === "empty" || answer.verdict === "edited")) one.kept = false;
  }
  const read = (answer.objects || []).map((item) => [item, readItem(card, objects, item)]);
  for (const [item, one] of read) {
    if (one && isAgreed(one) && sourceOf(objects, one) !== item.source) one.use = item.source;
  }
  return objects;
}

function readItem(card, objects, item) {
  const own = {className: item.class || null, counts: item.mask ? item.mask.counts : null};
  if (item.source === "human") {
    const kept = item.keep !== false;
    objects.push({labels: {attention: null, model: null}, use: "human", kept, ...own});
    return null;
  }
  const shown = card[item.source];
  if (!shown || (item.method && item.method !== shown.method)) return null;
  const one = objects.find((other) => other.use !== "human" && other.labels[item.source] === item.index);
  if (one) Object.assign(one, own, {kept: item.keep !== false});
  return one;
}
