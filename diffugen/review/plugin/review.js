// Keys and the panel of a review. No build step: FiftyOne puts React and its own packages on `window`.
(() => {
  "use strict";
  const operators = window.__foo__;
  const plugins = window.__fop__;
  const {createElement: h, useEffect, useState} = window.React;
  // Operators: key, name, what they do (an operator in Python), icon (none: no button), label, description.
  const ACTIONS = [
    ["1", "accept_attention", "attention", "attention", "Attention is right", "Attention's labels are right"],
    ["2", "accept_model", "model", "model", "Model is right", "The model's labels are right"],
    ["3", "mark_empty", "empty", "empty", "Nothing here", "There is nothing to label"],
    ["4", "reject_image", "reject", "reject", "Reject the image", "The image is useless"],
    ["5", "accept_label", "keep", "keep", "The labels you clicked are right", "Exactly the selected labels are right; without any, those drawn by hand"],
    ["u", "take_back", "undo", "undo", "Undo", "Take back your last verdict"],
    ["n", "next_image", "next", "next", "Next undecided image", "Open the next undecided image"],
    ["p", "previous_image", "previous", "", "Previous undecided image", "Open the previous undecided image"],
    ["", "finish_review", "finish", "finish", "Finish the review", "End the session; the command in the terminal goes on"],
  ];
  const LEGEND = [
    ...ACTIONS.filter(([key]) => key).map(([key, , , , label]) => [key, label.toLowerCase()]),
    ["space", "what is drawn"], ["e", "change a mask or class"],
  ];
  const VIEWS = [
    ["both", ["attention", "model", "human"]], ["image", []], ["heat map", ["heat"]],
    ["attention", ["attention"]], ["model", ["model"]],
  ];
  const PATIENCE = 10000;  // how long to wait for FiftyOne, in milliseconds
  const REVIEWER = "diffugen-reviewer";

  // FiftyOne's advertisement for another product.
  localStorage.setItem("fiftyone-enterprise-tooltip-seen", "true");
  const style = document.createElement("style");
  style.textContent = "a:has(> #fo-cta-enterprise-button), #fo-cta-enterprise-button { display: none !important; }";
  document.head.append(style);
  const changed = new EventTarget();
  let view = 0;

  const reviewer = () => localStorage.getItem(REVIEWER) || "";
  const call = (name, params, options) =>
    operators.executeOperator(`@diffugen/review/${name}`, {reviewer: reviewer(), ...params}, options);

  // A key that is pressed before the next image is there is ignored: nobody has seen that image yet.
  const busy = (is) => { document.body.dataset.reviewBusy = is ? "yes" : ""; };
  busy(false);
  const openId = () => new URLSearchParams(location.search).get("id");

  const find = (name) => document.querySelector(`#modal [data-cy="${name}"]`);
  const notify = (message, variant) => operators.executeOperator("notify", {message, variant});

  // What an operator in Python returns; nothing if there is no answer, as when the server is gone.
  async function answer(name) {
    let found = null;
    call(name, {}, {callback: (said) => { found = said?.result || {}; }});
    if (!await until(() => found, 6 * PATIENCE)) notify("There was no answer. Load the page again (F5)", "error");
    return found || {};
  }

  // Ask again and again until the answer is true, and return it, or what it is in the end.
  async function until(look, patience = PATIENCE) {
    for (const end = Date.now() + patience; !look() && Date.now() < end;) await new Promise((go) => setTimeout(go, 20));
    return look();
  }

  async function press(name) {
    if (document.body.dataset.reviewBusy) return;
    busy(true);
    try {
      if (!await isSaved()) {
        return notify("FiftyOne has not stored your change. Load the page again (F5), look at the label, and decide", "error");
      }
      const {sample} = await answer(name);
      if (sample) await until(() => openId() === sample);
    } finally {
      busy(false);
      changed.dispatchEvent(new Event("change"));
    }
  }

  // What a key does, as an operator with a button in the bar of the open image, or above the grid.
  class Action extends operators.Operator {
    get config() {
      const [key, name, , icon, label, description] = this.action;
      const shown = icon ? {icon: `/icons/${icon}.svg`} : {};
      return new operators.OperatorConfig({name, label: key ? `${label} (${key})` : label, description, ...shown});
    }

    async resolvePlacement(context) {
      const {icon, label} = this.config, {Button, Placement, Places} = operators.types;
      if (!icon || (this.action === EDIT && !context.currentSample)) return null;
      const place = context.currentSample ? Places.SAMPLES_VIEWER_ACTIONS : Places.SAMPLES_GRID_SECONDARY_ACTIONS;
      return new Placement(place, new Button({label, icon, prompt: false}));
    }

    async execute() {
      await press(this.action[2]);
    }
  }

  // ------------------------------------------------------------------ changed masks

  // FiftyOne stores changed labels by itself, after a while, or when somebody leaves the tab Annotate. A verdict
  // must not overtake that: it is about the masks in the database.
  let paintedAt = 0;  // when the last stroke ended that FiftyOne has not noticed as a change
  let isUnsaved = false;  // whether the tab was left with changes that are not stored yet
  let saving = 0;  // requests on their way
  const fetched = window.fetch;

  window.fetch = (...given) => {
    const response = fetched.apply(window, given);
    if (given[1]?.method !== "PATCH") return response;
    saving += 1;
    response.then(({ok}) => { if (ok) isUnsaved = false; }, () => null).finally(() => { saving -= 1; });
    return response;
  };

  const saveState = () => document.querySelector("[data-cy=annotation-save-state]");
  const isAnnotating = () => Boolean(saveState());
  const isSettled = () => saveState()?.dataset.settled !== "false";
  new MutationObserver(() => { if (!isSettled()) paintedAt = 0; })
    .observe(document.body, {subtree: true, attributeFilter: ["data-settled"]});

  window.addEventListener("pointerup", ({target}) => {
    const isActive = (name) => find(name)?.dataset.cyActive === "true";
    if (target.dataset?.cy !== "lighter-sample-renderer-canvas") return;
    if (isActive("brush") || isActive("pen")) paintedAt = Date.now();
  }, true);

  // A stroke becomes a change a fraction of a second later. Nothing tells so if it changes nothing, or if an
  // earlier one is not stored yet either.
  const isNoticed = () => Date.now() - paintedAt > (isSettled() ? PATIENCE / 2 : 1500);

  window.addEventListener("click", (event) => {
    if (!event.target.closest?.("[data-cy=explore]") || !isAnnotating()) return;
    if (isNoticed() && !saving) {
      isUnsaved = !isSettled();
      return;
    }
    event.preventDefault();
    event.stopImmediatePropagation();
    until(() => isNoticed() && !saving).then(() => {
      paintedAt = 0;
      find("explore")?.click();
    });
  }, true);

  async function isSaved() {
    if (isAnnotating()) find("explore").click();
    await until(() => !isAnnotating(), 2 * PATIENCE);
    return until(() => !isAnnotating() && !isUnsaved && !saving);
  }

  // Open FiftyOne's own tools, with the brush for the label that is meant, or for the one that is chosen there.
  const EDIT = ["e", "edit", "", "edit", "Change a mask or class",
    "Open FiftyOne's tools, with the brush for the selected, the only, or the only disputed label"];
  class Edit extends Action {
    async execute() {
      if (document.body.dataset.reviewBusy || isAnnotating() || !find("annotate")) return;
      busy(true);
      try {
        await new Promise((go) => call("show", {view: 0}, {callback: go}));  // only labels that are drawn are offered
        const {label} = await answer("label_to_edit");
        find("annotate")?.click();
        const row = label && await until(() => find(`annotate-label-${label}`));
        if (row) row.click();
        await until(row ? () => find("brush") : isAnnotating);
        startBrush();
      } finally {
        busy(false);
      }
    }
  }

  async function startBrush() {
    const brush = await until(() => find("brush") || !isAnnotating(), Infinity);
    if (brush?.dataset?.cyActive === "false") brush.click();
  }

  for (const [action, Class] of [...ACTIONS.map((one) => [one, Action]), [EDIT, Edit]]) {
    operators.registerOperator(class extends Class { action = action; }, "@diffugen/review");
  }

  // ------------------------------------------------------------------ what is drawn

  // What is drawn is part of FiftyOne's state, which only its own components and operators can reach.
  class Show extends operators.Operator {
    get config() {
      return new operators.OperatorConfig({name: "show", label: "Review: change what is drawn (space)"});
    }

    useHooks() {
      const {activeFields} = window.__fos__;
      return {
        grid: window.recoil.useSetRecoilState(activeFields({modal: false})),
        modal: window.recoil.useSetRecoilState(activeFields({modal: true})),
      };
    }

    async execute({hooks, params}) {
      view = params.view ?? (view + 1) % VIEWS.length;
      const [name, fields] = VIEWS[view];
      hooks.grid(["decision", ...fields]);
      hooks.modal(fields);
      notify(`Drawn: ${name}`, "info");
    }
  }
  operators.registerOperator(Show, "@diffugen/review");

  // ------------------------------------------------------------------ keys

  function isTyping(event) {
    const target = event.composedPath()[0];
    return target instanceof Element && target.closest("input:not([type=radio]), textarea, select, [contenteditable=true], [role=textbox]");
  }

  // In the tab Annotate, keys other than digits belong to FiftyOne's own tools.
  window.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || isTyping(event)) return;
    if (isAnnotating() && !/^[1-5]$/.test(event.key)) return;
    const action = ACTIONS.find(([key]) => key === event.key);
    if (action) press(action[2]);
    else if (event.key === " ") call("show");
    else if (event.key === "e") call("edit");
    else return;
    event.preventDefault();
    event.stopImmediatePropagation();
  }, true);

  // ------------------------------------------------------------------ the panel

  function minutes(seconds) {
    return seconds < 90 ? `${Math.round(seconds)} s` : `${Math.round(seconds / 60)} min`;
  }

  // The pace since the page was loaded; a pause makes it look slower than it is.
  let first = null;
  function timeLeft(about) {
    const now = Date.now() / 1000;
    if (!first || about.decided < first.decided) first = {decided: about.decided, now};
    const made = about.decided - first.decided;
    if (made < 2) return "";
    return `, about ${minutes((now - first.now) / made * (about.total - about.decided))} left`;
  }

  function labelled(name, labels) {
    const said = labels.map(([label, score]) => score === null ? label : `${label} ${score.toFixed(2)}`);
    return h("p", {key: name}, h("b", null, `${name}: `), said.join(", ") || "no labels");
  }

  function Panel() {
    const [about, setAbout] = useState(null);
    const [name, setName] = useState(reviewer());
    useEffect(() => {
      const ask = () => call("about", {}, {callback: ({result}) => { if (result) setAbout(result); }});
      ask();
      const timer = setInterval(ask, 1500);
      changed.addEventListener("change", ask);
      return () => { clearInterval(timer); changed.removeEventListener("change", ask); };
    }, []);
    if (!about) return h("div", {style: {padding: 16}}, "Loading");
    const rename = (event) => { setName(event.target.value); localStorage.setItem(REVIEWER, event.target.value); };
    return h("div", {style: {padding: 16, overflow: "auto", height: "100%", lineHeight: 1.5}, id: "diffugen-review"},
      h("p", null, `${about.decided} of ${about.total} decided${timeLeft(about)} `),
      h("progress", {value: about.decided, max: Math.max(1, about.total), style: {width: "100%"}}),
      about.prompt && h("div", null,
        h("p", null, h("b", null, `#${about.rank} `), about.prompt),
        h("ul", {style: {paddingLeft: 18}}, about.why.map((one, index) => h("li", {key: index}, one))),
        ["attention", "model"].map((source) => labelled(source, about.labels[source])),
        about.labels.human.length ? labelled("by hand", about.labels.human) : null,
        about.decision && h("p", null, `Decided: ${about.decision} (${about.reviewer || "-"})`),
        about.strip && h("img", {
          src: `/media?filepath=${encodeURIComponent(about.strip)}`, style: {width: "100%"},
          alt: "image, heat map, attention labels, model labels",
        })),
      !about.prompt && h("p", null, "Open an image, or press n."),
      h("table", null, h("tbody", null, LEGEND.map(([key, what]) => h("tr", {key},
        h("td", {style: {paddingRight: 12}}, h("kbd", null, key)), h("td", null, what))))),
      h("label", null, "Your name ", h("input", {value: name, onChange: rename, placeholder: "reviewer"})));
  }

  plugins.registerComponent({
    name: "diffugen-review",
    label: "Review",
    component: Panel,
    type: plugins.PluginComponentType.Panel,
    activator: () => true,
    panelOptions: {surfaces: "grid modal", priority: 1},
  });
})();
