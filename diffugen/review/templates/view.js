// The two views of the image: pictures, outlines and numbers as SVG, zoom and pan in both at once, the brush.

const SVG = "http://www.w3.org/2000/svg";
const COLOURS = ["#ff5c7c", "#4db2ff", "#48e08c", "#ffb938", "#cf8dff", "#2fe0e0"];
const TAP_PIXELS = 6, SWIPE_PIXELS = 60, MOST_ZOOM = 40;
const figures = SIDES.map((side) => document.querySelector(`figure[data-side="${side}"]`));
const svgs = figures.map((figure) => figure.querySelector("svg"));
let view = {x: 0, y: 0, width: 1, height: 1};  // the part of the image that is shown, in its pixels

function svgElement(name, attributes, parent) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  parent.append(made);
  return made;
}

function drawPictures(card) {
  const [width, height] = card.size;
  for (const svg of svgs) {
    const group = svg.querySelector(".pictures");
    group.replaceChildren();
    svgElement("image", {href: card.image, width, height, preserveAspectRatio: "none"}, group);
    if (card.heat) {
      svgElement("image", {href: card.heat, width, height, preserveAspectRatio: "none", class: "heat"}, group);
    }
  }
}

const outlines = new Map();  // outlines take a moment for large images
function outlineFor(card, counts) {
  const key = typeof counts === "string" ? counts : counts.join(" ");
  if (!outlines.has(key)) {
    if (outlines.size > 500) outlines.clear();
    outlines.set(key, outlineOf(maskOf(counts, card.size), card.size));
  }
  return outlines.get(key);
}

// What a side shows of an object: its own label, unless that was redrawn; drawn objects are on both sides.
function countsOn(card, objects, one, side) {
  if (one.use === "human") return one.counts;
  if (one.labels[side] === null) return null;
  const redrawn = one.counts !== null && sourceOf(objects, one) === side;
  return redrawn ? one.counts : card[side].labels[one.labels[side]].counts;
}

function classOn(card, objects, one, side) {
  return one.className || (one.use === "human" ? "" : card[side].labels[one.labels[side]].class);
}

function colourOf(className) {
  return COLOURS[Math.max(0, content.classes.indexOf(className)) % COLOURS.length];
}

function drawLabels(card, objects, selected) {
  SIDES.forEach((side, number) => {
    const group = svgs[number].querySelector(".labels");
    group.replaceChildren();
    const shown = objects
      .map((one, index) => ({one, index, counts: countsOn(card, objects, one, side)}))
      .filter((item) => item.counts !== null)
      .map((item) => ({...item, outline: outlineFor(card, item.counts)}))
      .sort((first, second) => second.outline.area - first.outline.area);
    for (const item of shown) drawLabel(group, item, classOn(card, objects, item.one, side), selected);
    for (const item of shown) drawNumber(group, item, classOn(card, objects, item.one, side));
  });
  placeNumbers();
}

function drawLabel(group, {one, index, outline}, className, selected) {
  const state = (one.kept ? "kept" : "dropped") + (one === selected ? " selected" : "");
  const part = svgElement("g", {class: `label ${state}`, "data-object": index}, group);
  svgElement("path", {class: "halo", d: outline.path}, part);
  const line = svgElement("path", {class: "line", d: outline.path}, part);
  line.style.stroke = colourOf(className);
}

function drawNumber(group, {one, index, outline}, className) {
  const badge = svgElement("g", {class: `badge ${one.kept ? "kept" : "dropped"}`, "data-object": index}, group);
  badge.dataset.x = outline.left;
  badge.dataset.y = outline.top;
  const box = svgElement("rect", {x: 0, y: 0, width: index > 8 ? 26 : 20, height: 20, rx: 4}, badge);
  box.style.stroke = colourOf(className);
  if (one.kept) box.style.fill = colourOf(className);
  svgElement("text", {x: index > 8 ? 13 : 10, y: 15}, badge).textContent = index + 1;
}

// Numbers keep their size and stay in sight, whatever the zoom.
function placeNumbers() {
  for (const svg of svgs) {
    const matrix = svg.getScreenCTM();
    if (!matrix || !matrix.a) continue;
    const scale = 1 / matrix.a, edge = 26 * scale, taken = [];
    for (const badge of svg.querySelectorAll(".badge")) {
      const x = Math.min(Math.max(Number(badge.dataset.x), view.x), view.x + view.width - edge);
      let y = Math.min(Math.max(Number(badge.dataset.y), view.y), view.y + view.height - edge);
      while (taken.some((other) => Math.abs(other.x - x) < edge && Math.abs(other.y - y) < 21 * scale)) {
        y += 22 * scale;
      }
      taken.push({x, y});
      badge.setAttribute("transform", `translate(${x} ${y}) scale(${scale})`);
    }
  }
}

// -------------------------------------------------------------------- zoom

function setView(x, y, width) {
  const [fullWidth, fullHeight] = cards[current].size;
  const shown = Math.min(fullWidth, Math.max(fullWidth / MOST_ZOOM, width));
  const height = shown * fullHeight / fullWidth;
  view = {
    x: Math.min(Math.max(0, x), fullWidth - shown), y: Math.min(Math.max(0, y), fullHeight - height),
    width: shown, height,
  };
  for (const svg of svgs) svg.setAttribute("viewBox", `${view.x} ${view.y} ${view.width} ${view.height}`);
  byId("stages").classList.toggle("zoomed", isZoomed());
  placeNumbers();
}

function isZoomed() {
  return view.width < cards[current].size[0] * 0.999;
}

function resetView() {
  setView(0, 0, cards[current].size[0]);
}

function zoomAt(point, factor) {
  const width = Math.min(cards[current].size[0], view.width / factor), part = width / view.width;
  setView(point.x - (point.x - view.x) * part, point.y - (point.y - view.y) * part, width);
}

function imagePoint(svg, event) {
  const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
  return {x: point.x, y: point.y};
}

// -------------------------------------------------------------------- pointers

const pointers = new Map();  // the fingers or the mouse on a view: where they were last
let gesture = null;  // {svg, start, target, moved, fingers, stroke}

function onDown(event) {
  const svg = event.currentTarget;
  if (event.button > 1) return;
  svg.setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, event);
  if (gesture && pointers.size > 1) {
    if (gesture.stroke) cancelStroke();
    Object.assign(gesture, {fingers: pointers.size, moved: true, stroke: false});
    return;
  }
  gesture = {svg, start: event, target: event.target, moved: false, fingers: 1, stroke: false};
  if (brush && event.button === 0) gesture.stroke = startStroke(imagePoint(svg, event));
}

function onMove(event) {
  if (!gesture || !pointers.has(event.pointerId)) return;
  const before = pointers.get(event.pointerId), {svg, start} = gesture;
  if (Math.hypot(event.clientX - start.clientX, event.clientY - start.clientY) > TAP_PIXELS) gesture.moved = true;
  if (gesture.stroke) moveStroke(imagePoint(svg, event));
  else if (pointers.size === 2) pinch(svg, event, before);
  else if (gesture.moved && isZoomed()) pan(svg, event, before);
  pointers.set(event.pointerId, event);
}

function pan(svg, event, before) {
  const from = imagePoint(svg, before), to = imagePoint(svg, event);
  setView(view.x + from.x - to.x, view.y + from.y - to.y, view.width);
}

function pinch(svg, event, before) {
  const other = [...pointers.entries()].find(([id]) => id !== event.pointerId)[1];
  const distance = (one) => Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY);
  const middle = {clientX: (event.clientX + other.clientX) / 2, clientY: (event.clientY + other.clientY) / 2};
  zoomAt(imagePoint(svg, middle), distance(event) / Math.max(1, distance(before)));
}

function onUp(event) {
  pointers.delete(event.pointerId);
  if (!gesture || pointers.size) return;
  const {start, target, moved, fingers, stroke} = gesture;
  gesture = null;
  if (stroke) return endStroke();
  if (event.type === "pointercancel" || fingers > 1) return;
  const across = event.clientX - start.clientX, down = event.clientY - start.clientY;
  const wasSwipe = Math.abs(across) > SWIPE_PIXELS && Math.abs(across) > 2 * Math.abs(down);
  if (event.pointerType === "touch" && wasSwipe && !isZoomed()) return go(across < 0 ? 1 : -1);
  const label = !moved && target.closest("[data-object]");
  if (label) pressLabel(Number(label.dataset.object), event.shiftKey);
}

function onWheel(event) {
  event.preventDefault();
  zoomAt(imagePoint(event.currentTarget, event), Math.exp(-event.deltaY / (event.ctrlKey ? 100 : 400)));
}

for (const svg of svgs) {
  svg.addEventListener("pointerdown", onDown);
  svg.addEventListener("pointermove", onMove);
  svg.addEventListener("pointerup", onUp);
  svg.addEventListener("pointercancel", onUp);
  svg.addEventListener("wheel", onWheel, {passive: false});
  svg.addEventListener("dblclick", (event) => event.preventDefault());
}
new ResizeObserver(placeNumbers).observe(byId("stages"));
