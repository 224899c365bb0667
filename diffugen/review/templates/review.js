"use strict";
const content = JSON.parse(document.getElementById("content").textContent);
const KEYS = {a: "attention", m: "model", e: "empty", r: "reject"};
const byId = (id) => document.getElementById(id);
const cards = content.cards;
const articles = [];
let current = 0;
let history = [];  // [image id, earlier verdict] of each decision, newest last
let unsaved = 0;

// Decisions survive closing the page, unless the browser stores nothing for local files.
let kept = {};
let keeps = true;
try {
  kept = JSON.parse(localStorage.getItem(content.key)) || {};
} catch (error) {
  keeps = false;
}
const verdicts = kept.verdicts || {};  // from image id to {verdict, method}
byId("reviewer").value = kept.reviewer || "";
// Drop verdicts on labels that this page no longer shows.
for (const card of cards) {
  const one = verdicts[card.id];
  const shown = one && card[one.verdict];
  if (one && one.method && (!shown || shown.method !== one.method)) delete verdicts[card.id];
}

function keep() {
  if (!keeps) return;
  try {
    localStorage.setItem(content.key, JSON.stringify({verdicts, reviewer: byId("reviewer").value}));
  } catch (error) {
    keeps = false;
  }
}

function picture(figure, source, caption, absent) {
  figure.querySelector("figcaption").textContent = caption;
  const shown = document.createElement(source ? "img" : "div");
  if (source) {
    shown.src = source;
    shown.alt = caption;
  } else {
    shown.className = "missing";
    shown.textContent = absent;
  }
  figure.prepend(shown);
}

function build(card, index) {
  const article = byId("card").content.firstElementChild.cloneNode(true);
  const find = (selector) => article.querySelector(selector);
  find(".rank").textContent = "#" + card.rank;
  const severity = card.severity === null ? "" : `severity ${card.severity.toFixed(2)}, `;
  find(".severity").textContent = `${severity}image ${card.id}`;
  find(".prompt").textContent = card.prompt;
  const known = card.decided;
  if (known) find(".known").textContent = `already decided: ${known.verdict} (${known.reviewer})`;
  for (const point of card.points) {
    const item = document.createElement("li");
    const kind = document.createElement("b");
    kind.textContent = point.kind.replace("_", " ");
    item.append(kind, ": " + point.text);
    find(".points").append(item);
  }
  picture(find(".image"), card.image, "image");
  for (const source of ["attention", "model"]) {
    const side = card[source];
    const count = side && (side.labels === 1 ? "1 label" : `${side.labels || "no"} labels`);
    const name = content.names[source];
    const caption = side ? `${name}: ${count}` : name;
    picture(find("." + source), side && side.picture, caption, `no ${name} labels`);
  }
  for (const button of article.querySelectorAll("button")) {
    button.disabled = button.dataset.verdict in card && !card[button.dataset.verdict];
    button.addEventListener("click", () => { move(index, false); decide(index, button.dataset.verdict); });
  }
  article.addEventListener("click", () => move(index, false));
  articles.push(article);
  byId("cards").append(article);
}

function show(index) {
  const card = cards[index];
  const verdict = verdicts[card.id] && verdicts[card.id].verdict;
  articles[index].dataset.verdict = verdict || "";
  articles[index].classList.toggle("done", Boolean(verdict || card.decided));
  for (const button of articles[index].querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(button.dataset.verdict === verdict));
  }
}

function count() {
  const made = cards.filter((card) => verdicts[card.id]).length;
  const done = cards.filter((card) => verdicts[card.id] || card.decided).length;
  byId("progress").max = Math.max(1, cards.length);
  byId("progress").value = done;
  const more = content.queue > cards.length ? ` (${content.queue} in the queue)` : "";
  byId("count").textContent = done + " of " + cards.length + " decided" + more;
  byId("save").disabled = made === 0;
  byId("undo").disabled = history.length === 0;
  byId("state").textContent = keeps
    ? "Decisions stay in this browser until you save them."
    : "This browser cannot store decisions: save them before you close the page.";
}

function move(index, scroll) {
  if (!cards.length) return;
  articles[current].classList.remove("current");
  current = Math.max(0, Math.min(cards.length - 1, index));
  articles[current].classList.add("current");
  if (scroll) articles[current].scrollIntoView({block: "start"});
}

function decide(index, verdict) {
  const card = cards[index];
  if (verdict in card && !card[verdict]) return;
  history.push([card.id, verdicts[card.id]]);
  verdicts[card.id] = card[verdict] ? {verdict, method: card[verdict].method} : {verdict};
  unsaved += 1;
  keep();
  show(index);
  count();
}

function decideAndAdvance(verdict) {
  if (!cards.length) return;
  const card = cards[current];
  if (verdict in card && !card[verdict]) return;
  decide(current, verdict);
  const open = (one) => !verdicts[one.id] && !one.decided;
  let next = cards.findIndex((one, index) => index > current && open(one));
  if (next < 0) next = cards.findIndex(open);
  move(next < 0 ? current + 1 : next, true);
}

function undo() {
  const last = history.pop();
  if (!last) return;
  const [id, before] = last;
  if (before) verdicts[id] = before; else delete verdicts[id];
  unsaved += 1;
  keep();
  const index = cards.findIndex((card) => card.id === id);
  show(index);
  count();
  move(index, true);
}

function save() {
  const reviewer = byId("reviewer").value.trim();
  const decisions = cards.filter((card) => verdicts[card.id]).map((card) => (
    {image_id: card.id, ...verdicts[card.id], ...(reviewer ? {reviewer} : {})}
  ));
  const text = JSON.stringify({run: content.run, decisions}, null, 1);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type: "application/json"}));
  link.download = "decisions.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  unsaved = 0;
  byId("state").textContent = "Saved as decisions.json. To import it: " + content.command;
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "INPUT") return;
  const key = event.key.toLowerCase();
  if (KEYS[key]) decideAndAdvance(KEYS[key]);
  else if (key === "u") undo();
  else if (key === "arrowdown" || key === "arrowright") move(current + 1, true);
  else if (key === "arrowup" || key === "arrowleft") move(current - 1, true);
  else return;
  event.preventDefault();
});
window.addEventListener("beforeunload", (event) => { if (unsaved && !keeps) event.preventDefault(); });
byId("save").addEventListener("click", save);
byId("undo").addEventListener("click", undo);
byId("reviewer").addEventListener("input", keep);

cards.forEach(build);
cards.forEach((card, index) => show(index));
const first = cards.findIndex((card) => !verdicts[card.id] && !card.decided);
count();
move(Math.max(0, first), first > 0);
