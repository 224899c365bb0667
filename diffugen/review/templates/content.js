"use strict";
const content = JSON.parse(document.getElementById("content").textContent);
const cards = content.cards;
const byId = (id) => document.getElementById(id);

