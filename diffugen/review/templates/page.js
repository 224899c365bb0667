// The state of a review, its keys and buttons, and where decisions go: into a file, or to the server.

const KEYS = {a: "attention", m: "model", e: "empty", r: "reject"};
const NAMES = {
  attention: content.names.attention, model: "model", edited: "corrected", empty: "empty", reject: "rejected",
  open: "half decided",
};
const MOST_HISTORY = 200;
let history = [];  // a list of [image id, answer before] for each step, newest last
let answers = {};  // from an image id to what its reviewer said here
let unsent = {};  // image ids whose answers are in no file yet, or not on the server
let saved = {};  // image ids that a saved file tells about
let keeps = true;  // whether this browser stores anything for this page
let current = 0, objects = [], selected = null, brush = null, stroke = null, all = false;
let sending = null, ended = false, typed = "", typing = 0;

// -------------------------------------------------------------------- memory

function remember() {
  if (!keeps) return;
  try {
    const kept = {answers, unsent, saved, history: history.slice(-MOST_HISTORY), reviewer: byId("reviewer").value};
    localStorage.setItem(content.key, JSON.stringify(kept));
  } catch (error) {
    keeps = false;
    say("This browser cannot store more decisions: save them before you close the page.");
  }
}

function recall() {
  let kept = {};
  try {
    kept = JSON.parse(localStorage.getItem(content.key)) || {};
  } catch (error) {
    keeps = false;
  }
  byId("reviewer").value = kept.reviewer || "";
  unsent = kept.unsent || {};
  saved = kept.saved || {};
  history = kept.history || [];
  for (const card of cards) {
    const one = (kept.answers || {})[card.id];
    // The run knows what was sent; others may have decided since.
    if (one && isShown(card, one) && (!content.served || unsent[card.id])) answers[card.id] = one;
    else delete unsent[card.id];
  }
  const ids = new Set(cards.map((card) => card.id));
  history = history.filter((step) => step.every(([id]) => ids.has(id)));
}

// Whether an answer is about the labels of this page, not about those of an older one.
function isShown(card, answer) {
  const isOf = (source, method) => !method || (card[source] && card[source].method === method);
  return isOf(answer.verdict, answer.method)
    && (answer.objects || []).every((item) => item.source === "human" || isOf(item.source, item.method));
}

function reviewer() {
  return byId("reviewer").value.trim() || content.reviewer;
}

// -------------------------------------------------------------------- answers

// What the run knows of the reviewer's own, as it stands in a decisions file.
function voteOf(card) {
  const own = card.votes.filter((vote) => vote.reviewer === reviewer()).pop();
  if (!own) return null;
  const withObjects = own.objects && ["edited", "open"].includes(own.verdict);
  return {verdict: own.verdict, ...(withObjects ? {objects: own.objects} : {}), at: own.at};
}

function shownAnswer(card) {
  return answers[card.id] || voteOf(card) || card.votes[card.votes.length - 1] || card.decided;
}

function isDone(card) {
  const own = answers[card.id];
  if (own) return own.verdict !== "open";
  const vote = voteOf(card);
  return Boolean(card.decided) || (content.consensus > 1 && vote !== null && vote.verdict !== "open");
}

function isOpen(card) {
  const shown = shownAnswer(card);
  return Boolean(shown) && shown.verdict === "open" && !isDone(card);
}

function setAnswer(card, answer) {
  if (answer) answers[card.id] = answer; else delete answers[card.id];
  if (answer) unsent[card.id] = true; else delete unsent[card.id];
}

function step(changes) {
  history.push(changes.map(([card]) => [card.id, answers[card.id] || null]));
  for (const [card, answer] of changes) setAnswer(card, answer);
  remember();
}

function undo() {
  const last = history.pop();
  if (!last) return say("There is nothing to undo.");
  for (const [id, before] of last) {
    const card = cards.find((one) => one.id === id);
    const told = content.served ? !unsent[id] : saved[id];
    setAnswer(card, before || (told ? takenBack(card) : null));
  }
  remember();
  open(cards.findIndex((card) => card.id === last[0][0]));
  flush(true);
  say(last.length > 1 ? `Took back ${last.length} verdicts.` : "Took back the last step.");
}

function takenBack(card) {
  return {...(voteOf(card) || {verdict: "open"}), at: new Date().toISOString()};
}

// -------------------------------------------------------------------- verdicts

function canSay(card, verdict) {
  return !SIDES.includes(verdict) || Boolean(card[verdict]);
}

function isVisible(card) {
  return !byId("filter").value || card.kinds.includes(byId("filter").value);
}

// The images that wait for a verdict and are in the queue for the same reasons; touched ones speak for themselves.
function alike() {
  const kinds = (card) => [...new Set(card.kinds)].sort().join();
  const own = cards[current];
  return cards.filter((card) => card === own || (
    isVisible(card) && !isDone(card) && !answers[card.id] && kinds(card) === kinds(own)));
}

function decide(verdict, many = all) {
  const chosen = (many ? alike() : [cards[current]]).filter((card) => canSay(card, verdict));
  if (!chosen.includes(cards[current])) return say(`This image has no ${NAMES[verdict]} labels.`);
  step(chosen.map((card) => [card, wholeAnswer(card, verdict)]));
  const what = NAMES[verdict];
  say(chosen.length > 1 ? `${what}: ${chosen.length} images. Undo takes all back.` : `Image ${cards[current].rank}: ${what}.`);
  advance();
}

function accept() {
  const card = cards[current], pair = doubled(card, objects);
  if (pair) {
    const [first, second] = pair.map((one) => objects.indexOf(one) + 1);
    return say(`${first} and ${second} overlap by more than half: drop one of them, or redraw it.`);
  }
  const verdict = verdictOf(card, objects);
  step([[card, answerOf(card, objects, verdict)]]);
  say(`Image ${card.rank}: ${NAMES[verdict]}.`);
  advance();
}

function touched() {
  step([[cards[current], answerOf(cards[current], objects, "open")]]);
  show();
}

function advance() {
  const waits = (card) => !isDone(card) && isVisible(card);
  let next = cards.findIndex((card, index) => index > current && waits(card));
  if (next < 0) next = cards.findIndex(waits);
  if (next < 0) finish(); else open(next);
  flush();
}

// -------------------------------------------------------------------- labels

function pressLabel(index, onlySelect) {
  const one = objects[index];
  if (!one) return;
  selected = one;
  if (onlySelect) return show();
  setKept(cards[current], objects, one, !one.kept);
  touched();
  say(`${index + 1}, ${classOf(cards[current], objects, one)}: ${one.kept ? "kept" : "dropped"}.`);
}

// Two labels in about the same place that are two objects all the same.
function keepBoth() {
  const card = cards[current], rival = selected && rivalOf(card, objects, selected);
  if (!rival) return say("Choose one of two labels of the same object: press its number.");
  selected.kept = rival.kept = true;
  touched();
  say(`${objects.indexOf(selected) + 1} and ${objects.indexOf(rival) + 1}: two objects, both kept.`);
}

// With ten or more labels, 1 may be the first digit of 12.
function pressDigit(digit) {
  clearTimeout(typing);
  typed += digit;
  const isLonger = objects.some((_, index) => String(index + 1).startsWith(typed) && index + 1 > Number(typed));
  if (isLonger) typing = setTimeout(endDigits, 700); else endDigits();
}

function endDigits() {
  clearTimeout(typing);
  if (typed) pressLabel(Number(typed) - 1, false);
  typed = "";
}

function changeClass() {
  if (!selected) return;
  selected.className = byId("class").value;
  setKept(cards[current], objects, selected, true);
  touched();
}

function changeUse() {
  if (!selected || !isAgreed(selected)) return;
  selected.use = byId("use").value;
  selected.counts = null;
  setKept(cards[current], objects, selected, true);
  touched();
}

// -------------------------------------------------------------------- brush

function setBrush(kind) {
  if (kind && !selected) selected = objects.find((one) => one.kept) || null;
  if (kind === "erase" && !selected) return say("Choose a label to erase from: press its number.");
  brush = brush === kind ? null : kind;
  if (brush && !selected) return drawNew();
  show();
}

function drawNew() {
  selected = null;
  brush = "paint";
  show();
  say(`Paint a new object of class ${byId("class").value}.`);
}

function startStroke(point) {
  const card = cards[current];
  if (!selected && brush === "erase") return false;
  const mask = selected ? maskOf(ownCounts(card, objects, selected), card.size)
    : new Uint8Array(card.size[0] * card.size[1]);
  stroke = {mask, last: point, waits: false};
  stroke.target = selected || {labels: {attention: null, model: null}, use: "human", kept: true,
    className: byId("class").value, counts: countsOf(mask)};
  if (!selected) objects.push(stroke.target);
  moveStroke(point);
  return true;
}

function moveStroke(point) {
  const size = cards[current].size;
  stampLine(stroke.mask, size, stroke.last, point, brushSize() / 2, brush === "paint" ? 1 : 0);
  stroke.last = point;
  if (stroke.waits) return;
  stroke.waits = true;
  const {target} = stroke;
  requestAnimationFrame(() => {
    if (!stroke || stroke.target !== target) return;
    stroke.waits = false;
    if (target.use === null && isAgreed(target)) target.use = sourceOf(objects, target);
    target.counts = countsOf(stroke.mask);
    drawLabels(cards[current], objects, target);
  });
}

function endStroke() {
  const {target, mask} = stroke, isEmpty = !mask.includes(1);
  stroke = null;
  if (target.use === null && isAgreed(target)) target.use = sourceOf(objects, target);
  target.counts = isEmpty ? null : countsOf(mask);
  selected = target;
  if (isEmpty && target.use === "human") {
    objects.splice(objects.indexOf(target), 1);
    selected = null;
  }
  if (!isEmpty) setKept(cards[current], objects, target, true); else target.kept = false;
  touched();
}

// A second finger means pinching: forget the stroke that the first one began.
function cancelStroke() {
  stroke = null;
  open(current);
}

function brushSize() {
  return Number(byId("size").value);
}

function changeSize(factor) {
  const size = brushSize();
  byId("size").value = factor > 1 ? Math.max(size + 1, Math.round(size * factor)) : Math.min(size - 1, Math.round(size * factor));
  showSize();
}

function showSize() {
  byId("pixels").textContent = `${byId("size").value} px`;
}

// -------------------------------------------------------------------- what is shown

function say(text) {
  byId("state").textContent = text;
  byId("finish-state").textContent = text;
}

function open(index) {
  endDigits();
  if (brush) brush = null;
  current = index;
  selected = null;
  setAll(false);
  byId("finish").hidden = true;
  byId("card").hidden = false;
  const card = cards[current];
  objects = objectsOf(card, shownAnswer(card));
  drawPictures(card);
  showAbout(card);
  resetView();
  show();
}

function go(by) {
  endDigits();
  for (let index = current + by; index >= 0 && index < cards.length; index += by) {
    if (isVisible(cards[index])) {
      open(index);
      say("");
      return flush();
    }
  }
  if (by > 0) finish();
  flush();
}

function showAbout(card) {
  byId("rank").textContent = `#${card.rank}`;
  byId("prompt").textContent = card.prompt;
  byId("prompt").title = `image ${card.id}`;
  byId("known").textContent = card.votes.map((vote) => `${vote.reviewer}: ${NAMES[vote.verdict]}`).join(", ");
  byId("points").replaceChildren(...card.points.map((point) => {
    const item = document.createElement("li"), kind = document.createElement("b");
    kind.textContent = point.kind.replace("_", " ");
    item.append(kind, ` ${point.text}`);
    return item;
  }));
  SIDES.forEach((side, number) => {
    const count = labelsOf(card, side).length, name = content.names[side];
    const text = !card[side] ? `no ${name} labels` : `${name}: ${count === 1 ? "1 label" : `${count || "no"} labels`}`;
    figures[number].querySelector("figcaption").textContent = text;
  });
  const [width, height] = card.size;
  byId("size").max = Math.ceil(Math.max(width, height) / 4);
  byId("stages").style.setProperty("--ratio", width / height);
  showSize();
}

function show() {
  const card = cards[current];
  drawLabels(card, objects, selected);
  showObjects(card);
  showTools(card);
  const answer = shownAnswer(card), verdict = answer && answer.verdict;
  for (const button of document.querySelectorAll("#verdicts [data-verdict]")) {
    button.disabled = !canSay(card, button.dataset.verdict);
    button.setAttribute("aria-pressed", String(button.dataset.verdict === verdict));
  }
  byId("accept").setAttribute("aria-pressed", String(verdict === "edited"));
  byId("card").dataset.verdict = verdict || "";
  showProgress();
}

function showObjects(card) {
  const focused = document.activeElement && document.activeElement.dataset.object;
  byId("objects").replaceChildren(...objects.map((one, index) => {
    const button = document.createElement("button"), source = sourceOf(objects, one);
    const number = document.createElement("b"), name = document.createElement("span");
    button.type = "button";
    button.dataset.object = index;
    button.setAttribute("aria-pressed", String(one.kept));
    button.classList.toggle("selected", one === selected);
    button.style.setProperty("--colour", colourOf(classOf(card, objects, one)));
    number.textContent = index + 1;
    name.textContent = classOf(card, objects, one);
    const origin = document.createElement("small");
    origin.textContent = isAgreed(one) ? `both, ${content.names[source]}'s mask` : source === "human" ? "drawn"
      : `${content.names[source]} ${card[source].labels[one.labels[source]].score.toFixed(2)}`;
    if (one.counts !== null && source !== "human") origin.textContent += ", redrawn";
    button.append(number, name, origin);
    button.addEventListener("click", (event) => pressLabel(index, event.shiftKey));
    return button;
  }));
  if (focused !== undefined) {
    const again = byId("objects").querySelector(`[data-object="${focused}"]`);
    if (again) again.focus();
  }
}

function showTools(card) {
  const number = objects.indexOf(selected) + 1;
  byId("selected").textContent = number ? `Label ${number}` : brush ? "New object" : "No label chosen";
  const name = selected ? classOf(card, objects, selected) : byId("class").value || content.classes[0] || "";
  const names = [...new Set([...content.classes, ...(name ? [name] : [])])];
  byId("class").replaceChildren(...names.map((one) => new Option(one, one)));
  byId("class").value = name;
  byId("use").disabled = !selected || !isAgreed(selected);
  if (!byId("use").disabled) byId("use").value = sourceOf(objects, selected);
  byId("paint").setAttribute("aria-pressed", String(brush === "paint"));
  byId("erase").setAttribute("aria-pressed", String(brush === "erase"));
  byId("new").disabled = !names.length;
  byId("both").disabled = !selected || !rivalOf(card, objects, selected);
  byId("stages").classList.toggle("brushing", brush !== null);
  byId("heat").disabled = !card.heat;
  const count = alike().length;
  byId("rest").disabled = count < 2;
  byId("rest").textContent = count < 2 ? "No other image like this" : `Verdict for all ${count} like this`;
  byId("rest").title = "Also: shift and the key of a verdict";
}

function setAll(value) {
  all = value;
  byId("rest").setAttribute("aria-pressed", String(all));
}

function toggle(name) {
  const on = byId("stages").classList.toggle(name);
  byId(name).setAttribute("aria-pressed", String(on));
}

function showProgress() {
  const shown = cards.filter(isVisible), done = shown.filter(isDone).length;
  byId("progress").max = Math.max(1, shown.length);
  byId("progress").value = done;
  byId("count").textContent = `${done} of ${shown.length} decided`;
  byId("undo").disabled = history.length === 0;
  for (const option of byId("filter").options) {
    const of = option.value ? cards.filter((card) => card.kinds.includes(option.value)) : cards;
    option.textContent = `${option.value.replace("_", " ") || "all images"}: ${of.filter((card) => !isDone(card)).length} of ${of.length} left`;
  }
}

function fillFilter() {
  const kinds = [...new Set(cards.flatMap((card) => card.kinds))];
  byId("filter").replaceChildren(...["", ...kinds].map((kind) => new Option(kind, kind)));
}

function applyFilter() {
  const first = cards.findIndex((card) => isVisible(card) && !isDone(card));
  const any = first < 0 ? cards.findIndex(isVisible) : first;
  if (any >= 0) open(any);
  byId("filter").blur();
}

// -------------------------------------------------------------------- the end

function finish() {
  if (!byId("card").hidden) flush();
  byId("card").hidden = true;
  byId("finish").hidden = false;
  showProgress();
  const left = cards.filter((card) => !isDone(card)), filtered = Boolean(byId("filter").value);
  byId("finish-title").textContent = !cards.length ? "The queue is empty"
    : !left.length ? "All images on this page are decided"
      : filtered && left.every((card) => !isVisible(card)) ? "All images of this kind are decided" : "Not finished yet";
  byId("totals").replaceChildren(...totals().map((text) => listItem(text)));
  byId("advice").textContent = advice(left.length);
  byId("finish-save").textContent = content.served ? "Finish and end the server" : `Save ${content.file}`;
  byId("finish-save").hidden = content.served ? ended : !cards.length;
  byId("finish-save").disabled = !content.served && !Object.keys(answers).length;
  byId("back").hidden = !cards.length;
  showSteps();
  byId("finish").focus();
}

function totals() {
  const done = cards.filter(isDone), count = (list) => list.length === 1 ? "1 image" : `${list.length} images`;
  const by = Object.keys(NAMES).filter((one) => one !== "open").map((verdict) => (
    [verdict, done.filter((card) => (answers[card.id] || card.decided || voteOf(card)).verdict === verdict).length]));
  const parts = by.filter(([, number]) => number).map(([verdict, number]) => `${number} ${NAMES[verdict]}`);
  const half = cards.filter(isOpen), left = cards.filter((card) => !isDone(card) && !isOpen(card));
  return [
    `${count(done)} decided${parts.length ? `: ${parts.join(", ")}` : ""}`,
    ...(half.length ? [`${count(half)} half decided; not trained on until you accept them`] : []),
    `${count(left)} left on this page`,
  ];
}

function advice(left) {
  if (!cards.length) return `${content.names.attention} labels and model labels do not contradict each other on any image.`;
  const beyond = content.queue - cards.length;
  if (beyond) return `The queue has ${beyond} more images. Import these decisions, then review again for the rest.`;
  return left ? "You can save now and go on later: this browser keeps your place." : "";
}

function listItem(text, command) {
  const item = document.createElement("li");
  item.append(text);
  if (command) {
    const code = document.createElement("code");
    code.textContent = command;
    item.append(code);
  }
  return item;
}

function showSteps() {
  const save = cards.length && !content.served;
  byId("steps").replaceChildren(
    ...(save ? [listItem(`Save ${content.file}.`), listItem("Import it, where it was saved: ", content.command)] : []),
    listItem(cards.length ? "Then let the run learn from it: " : "Go on with: ", content.next),
  );
}

function itemsFor(ids) {
  const name = byId("reviewer").value.trim();
  return ids.map((id) => ({image_id: id, ...answers[id], ...(name ? {reviewer: name} : {})}));
}

function save() {
  const decisions = itemsFor(cards.map((card) => card.id).filter((id) => answers[id]));
  if (!decisions.length) return say("There is nothing to save yet.");
  const text = JSON.stringify({run: content.run, decisions});
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type: "application/json"}));
  link.download = content.file;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  for (const one of decisions) saved[one.image_id] = true;
  unsent = {};
  remember();
  say(`Saved as ${content.file}.`);
}

async function post(path, body) {
  const text = JSON.stringify(body), headers = {"Content-Type": "application/json"};
  // A short message still arrives if the page is closed meanwhile; browsers refuse that to long ones.
  const answer = await fetch(path, {method: "POST", headers, body: text, keepalive: text.length < 50000});
  const told = await answer.json();
  if (!answer.ok) throw new Error(told.error);
  return told;
}

// Send what the server does not know yet; the image on screen only once it is decided. True if all arrived.
async function flush(withCurrent = false) {
  if (!content.served) return true;
  while (sending) await sending.catch(() => null);
  const isIn = (id) => withCurrent || byId("card").hidden || id !== cards[current].id || answers[id].verdict !== "open";
  const ids = Object.keys(unsent).filter(isIn);
  if (!ids.length) return true;
  const before = ids.map((id) => answers[id]);
  sending = post("decisions", {run: content.run, decisions: itemsFor(ids)});
  try {
    await sending;
    ids.forEach((id, index) => { if (answers[id] === before[index]) delete unsent[id]; });
    byId("count").dataset.stored = String(Object.keys(unsent).length === 0);
    remember();
    return true;
  } catch (error) {
    say(`NOT stored in the run, only in this browser: ${error.message}. It is sent again with the next verdict.`);
    return false;
  } finally {
    sending = null;
  }
}

async function endServer() {
  if (!await flush(true)) return;
  try {
    const told = await post("finish", {decisions: []});
    ended = true;
    byId("finish-save").hidden = byId("back").hidden = true;
    say(`The review has ended; ${told.decisions} decisions were stored. You can close this page.`);
  } catch (error) {
    say(`The server does not answer: ${error.message}.`);
  }
}

// -------------------------------------------------------------------- keys and buttons

function onKey(event) {
  const tag = event.target.tagName, isField = tag === "INPUT" || tag === "SELECT";
  if (event.ctrlKey || event.metaKey || event.altKey || !cards.length || ended) return;
  if (isField && event.key === "Escape") event.target.blur();
  if (isField || (tag === "BUTTON" && (event.key === "Enter" || event.key === " "))) return;
  if (/^[0-9]$/.test(event.key) && !byId("card").hidden && (event.key !== "0" || typed)) {
    event.preventDefault();
    return pressDigit(event.key);
  }
  endDigits();
  const action = actionOf(event);
  if (!action) return;
  event.preventDefault();
  action();
}

function actionOf(event) {
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (key === "u") return undo;
  if (byId("card").hidden) return key === "ArrowLeft" || key === "ArrowUp" ? () => open(current) : null;
  if (KEYS[key]) return () => decide(KEYS[key], all || event.shiftKey);
  return {
    Enter: accept, ArrowRight: () => go(1), ArrowDown: () => go(1), ArrowLeft: () => go(-1), ArrowUp: () => go(-1),
    " ": () => toggle("bare"), h: () => cards[current].heat && toggle("heat"), n: drawNew, k: keepBoth,
    "+": () => setBrush("paint"), "=": () => setBrush("paint"), b: () => setBrush("paint"), "-": () => setBrush("erase"),
    "[": () => changeSize(0.8), "]": () => changeSize(1.25), 0: resetView, Escape: leaveBrush,
  }[key];
}

function leaveBrush() {
  brush = selected = null;
  show();
}

function showSide(side) {
  byId("stages").dataset.side = side;
  for (const button of document.querySelectorAll("#sides button")) {
    button.setAttribute("aria-pressed", String(button.dataset.side === side));
  }
  placeNumbers();
}

function wire() {
  const clicks = {
    undo, accept, previous: () => go(-1), next: () => go(1), paint: () => setBrush("paint"),
    erase: () => setBrush("erase"), new: drawNew, both: keepBoth, bare: () => toggle("bare"), heat: () => toggle("heat"),
    rest: () => setAll(!all), back: () => open(current), save: content.served ? finish : saveAndFinish,
    "finish-save": content.served ? endServer : save,
  };
  for (const [id, action] of Object.entries(clicks)) byId(id).addEventListener("click", action);
  for (const button of document.querySelectorAll("#verdicts [data-verdict]")) {
    button.addEventListener("click", () => decide(button.dataset.verdict));
  }
  for (const button of document.querySelectorAll("#sides button")) {
    button.addEventListener("click", () => showSide(button.dataset.side));
  }
  // A button that was clicked would take the space key for itself.
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button && event.detail > 0) button.blur();
  });
  document.addEventListener("keydown", onKey);
  byId("class").addEventListener("change", changeClass);
  byId("use").addEventListener("change", changeUse);
  byId("size").addEventListener("input", showSize);
  byId("filter").addEventListener("change", applyFilter);
  byId("reviewer").addEventListener("change", () => { remember(); showProgress(); });
  window.addEventListener("beforeunload", (event) => {
    if (!keeps && Object.keys(unsent).length) event.preventDefault();
  });
  document.addEventListener("visibilitychange", () => { if (document.hidden && !ended) flush(true); });
}

// Browsers take a tap right after a swipe for the end of its momentum, and make no click of it. So the finger that
// leaves a button presses it, and the click that mostly follows is not heard.
function wireTaps() {
  let tapped = null, isPressed = false;
  document.addEventListener("pointerdown", (event) => {
    tapped = event.pointerType === "touch" && event.isPrimary ? event.target.closest("button") : null;
    isPressed = false;
  });
  document.addEventListener("pointerup", (event) => {
    const under = document.elementFromPoint(event.clientX, event.clientY);
    if (!tapped || !under || under.closest("button") !== tapped) return;
    isPressed = true;
    tapped.click();
  });
  document.addEventListener("click", (event) => {
    if (!isPressed || !event.isTrusted || event.detail === 0) return;
    event.preventDefault();
    event.stopImmediatePropagation();
  }, true);
}

function saveAndFinish() {
  finish();
  if (Object.keys(answers).length) save();
}

recall();
fillFilter();
wire();
wireTaps();
showSide("attention");
const firstWaiting = cards.findIndex((card) => !isDone(card));
if (firstWaiting < 0) finish(); else open(firstWaiting);
if (!keeps) say("This browser cannot store decisions: save them before you close the page.");
flush();
