"use strict";
(() => {
  const $ = (css, root = document) => root.querySelector(css);
  const $$ = (css, root = document) => [...root.querySelectorAll(css)];

  // Light or dark: the reader's choice, kept where the browser allows it.
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const store = (value) => { try { if (value) localStorage.setItem("striate-theme", value); return localStorage.getItem("striate-theme"); } catch { return null; } };
  const chosen = store() || new URLSearchParams(location.search).get("theme");
  if (chosen === "dark" || chosen === "light") root.dataset.theme = chosen;
  $("#theme").addEventListener("click", () => {
    const now = root.dataset.theme || (dark.matches ? "dark" : "light");
    root.dataset.theme = now === "dark" ? "light" : "dark";
    store(root.dataset.theme);
  });

  // A number finds the unit; any other text the units whose strongest images bear it in their names.
  const find = $("#find"), order = $("#order");
  const units = $$(".unit");
  const texts = new Map(units.map((unit) => [unit, $$(".name", unit).map((cell) => cell.textContent).join("\n").toLowerCase()]));
  const show = () => {
    const wanted = find.value.trim().toLowerCase();
    for (const unit of units) {
      const number = /^\d+$/.test(wanted) && unit.dataset.number === wanted;
      unit.hidden = wanted !== "" && !number && !(/\D/.test(wanted) && texts.get(unit).includes(wanted));
    }
    for (const section of $$("section.stage")) {
      $(".none", section).hidden = $$(".unit", section).some((unit) => !unit.hidden);
    }
  };
  find.addEventListener("input", show);
  order.addEventListener("change", () => {
    const key = order.value, sign = key === "number" ? 1 : -1;
    for (const box of $$(".units")) {
      const sorted = $$(".unit", box).sort((a, b) => sign * (a.dataset[key] - b.dataset[key]) || a.dataset.number - b.dataset.number);
      box.append(...sorted);
    }
  });
  show();
})();
