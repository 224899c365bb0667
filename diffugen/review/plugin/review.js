// Keys and the panel of a review. No build step: FiftyOne puts React and its own packages on `window`.
(() => {
  "use strict";
  const operators = window.__foo__;
  const plugins = window.__fop__;
  const {createElement: h, useEffect, useState} = window.React;
  const KEYS = {1: "attention", 2: "model", 3: "empty", 4: "reject", 5: "keep", u: "undo", n: "next", p: "previous"};
  const LEGEND = [
    ["1", "attention is right"], ["2", "model is right"], ["3", "nothing here"], ["4", "reject"],
    ["5", "keep the labels you clicked"], ["u", "undo"], ["n p", "next, previous"], ["space", "what is drawn"], ["e", "edit masks and classes"],
  ];
  const VIEWS = [
    ["both", ["attention", "model", "human"]], ["image", []], ["heat map", ["heat"]],
    ["attention", ["attention"]], ["model", ["model"]],
  ];
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

  function press(name) {
    if (document.body.dataset.reviewBusy) return;
    busy(true);
    const deadline = Date.now() + 10000;
    const done = (next) => {
      if (next && openId() !== next && Date.now() < deadline) return setTimeout(done, 50, next);
      busy(false);
      return changed.dispatchEvent(new Event("change"));
    };
    call(name, {}, {callback: ({result}) => done(result && result.sample)});
  }

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
      operators.executeOperator("notify", {message: `Drawn: ${name}`, variant: "info"});
    }
  }
  operators.registerOperator(Show, "@diffugen/review");

  // FiftyOne's own tools, which offer only labels that are drawn.
  function edit() {
    call("show", {view: 0}, {callback: () => document.querySelector("#modal [data-cy=annotate]")?.click()});
  }

  function isTyping(event) {
    const target = event.composedPath()[0];
    return target instanceof Element && target.closest("input, textarea, select, [contenteditable=true], [role=textbox]");
  }

  // Where labels are drawn and changed, keys belong to FiftyOne's own tools.
  const isAnnotating = () => Boolean(document.querySelector("[data-cy=annotation-save-state]"));

  window.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || isTyping(event) || isAnnotating()) return;
    const name = KEYS[event.key];
    if (name) press(name);
    else if (event.key === " ") call("show");
    else if (event.key === "e") edit();
    else return;
    event.preventDefault();
    event.stopImmediatePropagation();
  }, true);

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
