// Masks: a byte a pixel, column by column as in COCO, so that pixel (x, y) is at x * height + y.

function runsOf(counts) {
  if (typeof counts !== "string") return counts;
  const runs = [];
  let place = 0;
  while (place < counts.length) {
    let value = 0, shift = 0, letter;
    do {
      letter = counts.charCodeAt(place++) - 48;
      value |= (letter & 31) << shift;
      shift += 5;
    } while (letter & 32);
    if (letter & 16) value |= -1 << shift;
    if (runs.length > 2) value += runs[runs.length - 2];
    runs.push(value);
  }
  return runs;
}

function maskOf(counts, [width, height]) {
  const mask = new Uint8Array(width * height);
  let place = 0;
  runsOf(counts).forEach((run, index) => {
    if (index % 2) mask.fill(1, place, place + run);
    place += run;
  });
  return mask;
}

function countsOf(mask) {
  const counts = [];
  let value = 0, run = 0;
  for (const pixel of mask) {
    if (pixel !== value) {
      counts.push(run);
      run = 0;
      value = pixel;
    }
    run += 1;
  }
  counts.push(run);
  return counts;
}

function iouOf(first, second) {
  let both = 0, any = 0;
  for (let place = 0; place < first.length; place++) {
    both += first[place] & second[place];
    any += first[place] | second[place];
  }
  return any ? both / any : 0;
}

// Set or clear the pixels whose centres lie in a disc, and the one under its centre.
function stamp(mask, [width, height], x, y, radius, value) {
  const inside = (column, row) => column >= 0 && column < width && row >= 0 && row < height;
  if (inside(Math.floor(x), Math.floor(y))) mask[Math.floor(x) * height + Math.floor(y)] = value;
  for (let column = Math.floor(x - radius); column <= x + radius; column++) {
    for (let row = Math.floor(y - radius); row <= y + radius; row++) {
      const near = (column + 0.5 - x) ** 2 + (row + 0.5 - y) ** 2 <= radius ** 2;
      if (near && inside(column, row)) mask[column * height + row] = value;
    }
  }
}

function stampLine(mask, size, from, to, radius, value) {
  const steps = Math.max(1, Math.ceil(Math.hypot(to.x - from.x, to.y - from.y) / Math.max(0.5, radius / 2)));
  for (let step = 0; step <= steps; step++) {
    const part = step / steps;
    stamp(mask, size, from.x + (to.x - from.x) * part, from.y + (to.y - from.y) * part, radius, value);
  }
}

const STEPS = [[1, 0], [0, 1], [-1, 0], [0, -1]];

// The edges of pixels between inside and outside, clockwise: from a corner to the directions that leave it.
function edgesOf(mask, width, height) {
  const edges = new Map();
  const add = (x, y, direction) => {
    const corner = y * (width + 1) + x;
    if (edges.has(corner)) edges.get(corner).push(direction); else edges.set(corner, [direction]);
  };
  for (let x = 0; x < width; x++) {
    for (let y = 0; y < height; y++) {
      const place = x * height + y;
      if (!mask[place]) continue;
      if (y === 0 || !mask[place - 1]) add(x, y, 0);
      if (x === width - 1 || !mask[place + height]) add(x + 1, y, 1);
      if (y === height - 1 || !mask[place + 1]) add(x + 1, y + 1, 2);
      if (x === 0 || !mask[place - height]) add(x, y + 1, 3);
    }
  }
  return edges;
}

// The path of a mask with its holes. It runs through the middles of the pixels' edges, so that a slope is a
// line and no staircase.
function outlineOf(mask, [width, height]) {
  const edges = edgesOf(mask, width, height);
  let path = "", left = width, top = height;  // the uppermost point
  for (const [start, directions] of edges) {
    while (directions.length) {
      const ring = [];
      let corner = start, before = -1;
      do {
        const leaving = edges.get(corner);
        // Where two pixels touch at a corner, they stay apart: turn right.
        const wanted = leaving.indexOf((before + 1) % 4);
        const direction = leaving.splice(before < 0 || wanted < 0 ? 0 : wanted, 1)[0];
        const [dx, dy] = STEPS[direction];
        const x = corner % (width + 1), y = Math.floor(corner / (width + 1));
        ring.push({x: x + dx / 2, y: y + dy / 2, direction});
        corner += dx + dy * (width + 1);
        before = direction;
      } while (corner !== start);
      const turns = ring.filter((point, index) => {
        const last = ring[(index + ring.length - 1) % ring.length], next = ring[(index + 1) % ring.length];
        return point.direction !== last.direction || point.direction !== next.direction;
      });
      path += "M" + turns.map((point) => `${point.x} ${point.y}`).join("L") + "Z";
      for (const point of turns) {
        if (point.y < top || (point.y === top && point.x < left)) [left, top] = [point.x, point.y];
      }
    }
  }
  return {path, left, top, area: mask.reduce((sum, pixel) => sum + pixel, 0)};
}
