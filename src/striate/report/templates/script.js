"use strict";
(() => {
  const $ = (css, root = document) => root.querySelector(css);
  const $$ = (css, root = document) => [...root.querySelectorAll(css)];
  const make = (tag, name, text) => {
    const node = document.createElement(tag);
    if (name) node.className = name;
    if (text !== undefined) node.textContent = text;
    return node;
  };

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

  // The section in view, marked in the contents.
  const links = new Map($$(".contents a").map((link) => [link.hash.slice(1), link]));
  if (links.size && "IntersectionObserver" in window) {
    const seen = new Set();
    const order = [...links.keys()];
    const watch = new IntersectionObserver((entries) => {
      for (const e of entries) e.isIntersecting ? seen.add(e.target.id) : seen.delete(e.target.id);
      const current = order.find((id) => seen.has(id));
      for (const [id, link] of links) id === current ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current");
    }, { rootMargin: "-15% 0px -55% 0px" });
    for (const id of order) watch.observe(document.getElementById(id));
  }

  // Values under the pointer, or stepped through with the arrow keys.
  for (const figure of $$("figure.chart")) {
    const source = $("script[type='application/json']", figure);
    if (!source) continue;
    const data = JSON.parse(source.textContent);
    const plot = $(".plot", figure), area = $(".area", figure);
    const cross = make("i", "cross"), tip = make("div", "tip");
    tip.setAttribute("role", "status");
    const dots = data.lines.map((_, k) => make("i", "dot " + (data.lines.length > 1 && k === 0 ? "soft" : "")));
    let at = -1;
    const hide = () => { at = -1; for (const node of [cross, tip, ...dots]) node.remove(); };
    const show = (k) => {
      at = Math.max(0, Math.min(data.at.length - 1, k));
      const left = data.at[at] * 100;
      cross.style.left = left + "%";
      tip.replaceChildren(make("b", "", data.unit + " " + data.x[at]));
      data.lines.forEach((line, i) => {
        const height = line.y[at];
        if (height === null) { dots[i].remove(); return; }
        tip.append(make("br"), document.createTextNode(line.name + " " + line.text[at]));
        dots[i].style.left = left + "%";
        dots[i].style.top = height * 100 + "%";
        area.append(dots[i]);
      });
      area.append(cross, tip);
      const right = left > 55;
      tip.style.left = right ? "auto" : `calc(${left}% + 12px)`;
      tip.style.right = right ? `calc(${100 - left}% + 12px)` : "auto";
    };
    plot.addEventListener("pointermove", (event) => {
      const box = area.getBoundingClientRect();
      const x = (event.clientX - box.left) / box.width;
      let best = 0;
      data.at.forEach((v, k) => { if (Math.abs(v - x) < Math.abs(data.at[best] - x)) best = k; });
      show(best);
    });
    plot.addEventListener("pointerleave", hide);
    plot.addEventListener("blur", hide);
    plot.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1, Home: -1e9, End: 1e9 }[event.key];
      if (event.key === "Escape") hide();
      if (step === undefined) return;
      event.preventDefault();
      show(at < 0 && step === -1 ? data.at.length - 1 : at + step);
    });
  }

  // Sort the classes by any column; find one by its name.
  const scores = $("#scores");
  if (scores) {
    const heads = $$("thead th", scores), body = $("tbody", scores);
    heads.forEach((head, column) => $("button", head).addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") === "none" ? column === 0 || heads[column].classList.contains("bar") : head.getAttribute("aria-sort") === "descending";
      const value = (row) => { const cell = row.cells[column]; return "v" in cell.dataset && !head.classList.contains("text") ? Number(cell.dataset.v) : cell.textContent; };
      const rows = $$("tr", body).sort((a, b) => {
        const x = value(a), y = value(b);
        const order = typeof x === "number" ? x - y : x.localeCompare(y, undefined, { numeric: true });
        return up ? order : -order;
      });
      body.append(...rows);
      for (const other of heads) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
    }));
    const find = $("#find");
    if (find) find.addEventListener("input", () => {
      const wanted = find.value.trim().toLowerCase();
      for (const row of $$("tr", body)) row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
    });
  }

  // The images behind a cell.
  const island = $("#cells");
  const dialog = $("#cell");
  if (island && dialog.showModal) {
    const { classes, cells } = JSON.parse(island.textContent);
    const open = (button) => {
      const key = button.dataset.cell, [row, column] = key.split(",").map(Number);
      const images = cells[key] || [], count = Number(button.dataset.count);
      $("#cell-title").textContent = row === column ? classes[row] + ", recognised" : classes[row] + " taken for " + classes[column];
      const shown = images.length < count ? `${images.length} of ${count.toLocaleString("en")} images` : count === 1 ? "1 image" : `${count} images`;
      $("#cell-note").textContent = shown + ", most confident first";
      $("#cell-images").replaceChildren(...images.map(([uri, name, sure, pixelated]) => {
        const figure = make("figure"), image = make("img", pixelated ? "px" : ""), text = make("figcaption");
        image.src = uri;
        image.alt = `${name || "image"}: ${classes[row]}, predicted ${classes[column]}`;
        if (sure) text.append(make("b", "", sure), " ");
        text.append(name);
        figure.append(image, text);
        return figure;
      }));
      dialog.showModal();
    };
    document.addEventListener("click", (event) => {
      const button = event.target.closest("button[data-cell]");
      if (button) open(button);
    });
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
    $(".close", dialog).addEventListener("click", () => dialog.close());
  }

  // One tab stop for the whole matrix; the arrow keys go to the next cell with images.
  const matrix = $("#matrix");
  if (matrix) {
    const rows = $$("tbody tr", matrix).map((row) => $$("td", row).map((cell) => $("button", cell)));
    const first = rows.flat().find(Boolean);
    if (first) first.tabIndex = 0;
    matrix.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
      const here = event.target;
      if (!step || here.tagName !== "BUTTON") return;
      event.preventDefault();
      let r = rows.findIndex((row) => row.includes(here)), c = rows[r].indexOf(here);
      do { r += step[0]; c += step[1]; } while (rows[r] && c >= 0 && c < rows[r].length && !rows[r][c]);
      const next = rows[r] && rows[r][c];
      if (!next) return;
      here.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    });
  }

  for (const button of $$(".copy")) button.addEventListener("click", async () => {
    try { await navigator.clipboard.writeText($("code", button.parentNode).textContent); button.textContent = "Copied"; } catch { button.textContent = "Select it"; }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });

  // On paper nothing can be unfolded.
  let folded = [];
  addEventListener("beforeprint", () => { folded = $$("details.fold:not([open])"); for (const fold of folded) fold.open = true; });
  addEventListener("afterprint", () => { for (const fold of folded) fold.open = false; });
})();
