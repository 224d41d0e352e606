"use strict";

// Tables: a click on a header sorts by it, another click turns the order round.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const value = (row, column) => row.cells[column].dataset.v ?? row.cells[column].textContent;
  const sort = (column) => {
    const head = heads[column];
    // The first click puts the best on top: of accuracies and rates the highest.
    const [first, second] = head.dataset.first === "high" ? ["descending", "ascending"] : ["ascending", "descending"];
    const up = (head.getAttribute("aria-sort") === first ? second : first) === "ascending";
    const rows = [...body.rows].map((row) => [value(row, column), row]);
    const missing = (text) => text === "nan" || text === "-" || text === "";
    const numeric = rows.every(([text]) => missing(text) || Number.isFinite(Number(text)));
    const order = new Intl.Collator("en", { numeric: true });
    rows.sort(([a], [b]) => {
      // What is not known stands last, whichever way the rest is sorted.
      if (missing(a) || missing(b)) return missing(a) - missing(b);
      const difference = numeric ? a - b : order.compare(a, b);
      return up ? difference : -difference;
    });
    body.append(...rows.map(([, row]) => row));
    for (const other of heads) {
      if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
    }
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
  };
  heads.forEach((head, column) => {
    head.querySelector("button")?.addEventListener("click", () => sort(column));
  });
}

// Curves: the nearest epoch's values; the nearest line stands out in both panels.
const source = document.getElementById("curve-data");
if (source) {
  const data = JSON.parse(source.textContent);
  const box = document.querySelector(".panels");
  const panels = [...box.querySelectorAll(".panel")];
  const legend = [...document.querySelectorAll(".legend button")];
  const coloured = box.querySelectorAll(".panel:first-child .line").length;
  const marks = data.trials.map((_, i) => box.querySelectorAll(`[data-i="${i}"]`));
  const hidden = new Set();
  // Long names would hide the curves: then only the highlighted trial is named in full.
  const long = Math.max(...data.trials.map((trial) => trial.name.length)) > 52;
  let hot = -1;

  const seen = (i) => !hidden.has(String(i)) && (i < coloured || !hidden.has("others"));
  const digits = (number) => (number == null ? "-" : number.toFixed(4));
  const share = (number, [low, high]) => (number - low) / (high - low);

  const highlight = (i) => {
    if (i === hot) return;
    if (hot >= 0) for (const mark of marks[hot]) mark.classList.remove("hot");
    if (i >= 0) {
      for (const mark of marks[i]) {
        mark.classList.add("hot");
        if (i >= coloured) mark.parentNode.append(mark);
      }
    }
    box.classList.toggle("dim", i >= 0);
    hot = i;
  };

  const cell = (row, tag, text) => {
    const made = document.createElement(tag);
    made.textContent = text;
    row.append(made);
    return made;
  };

  const fill = (tip, kind, step) => {
    const held = `validation_${kind}`;
    const table = document.createElement("table");
    const head = table.createTHead().insertRow();
    cell(head, "th", `epoch ${data.epochs[step]}`);
    cell(head, "th", data.held);
    cell(head, "th", "training");
    const shown = data.trials.map((_, i) => i).filter((i) => seen(i) && (i < coloured || i === hot));
    const sign = kind === "loss" ? 1 : -1;
    const rank = (i) => sign * (data.trials[i][held][step] ?? sign * Infinity);
    shown.sort((a, b) => rank(a) - rank(b) || a - b);
    const body = table.createTBody();
    for (const i of shown) {
      const trial = data.trials[i];
      const row = body.insertRow();
      row.className = i === hot ? "hot" : "";
      const swatch = document.createElement("i");
      swatch.style.setProperty("--hue", i < coloured ? `var(--c${trial.hue})` : "var(--thin)");
      cell(row, "td", long ? `trial ${trial.number}` : trial.name).prepend(swatch);
      cell(row, "td", digits(trial[held][step]));
      cell(row, "td", digits(trial[`train_${kind}`]?.[step]));
    }
    tip.replaceChildren(table);
    if (long && hot >= 0) {
      const name = document.createElement("b");
      name.textContent = data.trials[hot].name;
      tip.prepend(name);
    }
    tip.hidden = false;
  };

  const show = (panel, step) => {
    const across = share(data.epochs[step], data.x);
    for (const other of panels) {
      const line = other.querySelector(".cross");
      line.setAttribute("x1", 1000 * across);
      line.setAttribute("x2", 1000 * across);
      line.removeAttribute("hidden");
      if (other !== panel) other.querySelector(".tip").hidden = true;
    }
    const tip = panel.querySelector(".tip");
    fill(tip, panel.dataset.kind, step);
    // The box stands on the side where the pointer is not.
    const canvas = panel.querySelector(".canvas");
    const x = canvas.offsetLeft + across * canvas.offsetWidth;
    const left = across > 0.5 ? x - tip.offsetWidth - 16 : x + 16;
    tip.style.left = `${Math.max(0, Math.min(left, panel.offsetWidth - tip.offsetWidth))}px`;
    panel.dataset.step = step;
  };

  const clear = () => {
    highlight(-1);
    for (const panel of panels) {
      panel.querySelector(".tip").hidden = true;
      panel.querySelector(".cross").setAttribute("hidden", "");
    }
  };

  const nearest = (numbers, wanted) => {
    let found = -1;
    numbers.forEach((number, i) => {
      if (number == null) return;
      if (found < 0 || Math.abs(number - wanted) < Math.abs(numbers[found] - wanted)) found = i;
    });
    return found;
  };

  for (const panel of panels) {
    const { kind } = panel.dataset;
    const field = `validation_${kind}`;
    const canvas = panel.querySelector(".canvas");
    const point = (event) => {
      const edge = canvas.getBoundingClientRect();
      const x = (event.clientX - edge.left) / edge.width;
      const y = 1 - (event.clientY - edge.top) / edge.height;
      const step = nearest(data.epochs, data.x[0] + x * (data.x[1] - data.x[0]));
      const [low, high] = data.y[kind];
      const here = data.trials.map((trial, i) => (seen(i) ? trial[field][step] : null));
      // The trials of one epoch stand side by side.
      const places = here.map((value, i) => (value == null ? null : data.places?.[i]));
      if (data.places) highlight(nearest(places, data.x[0] + x * (data.x[1] - data.x[0])));
      else highlight(nearest(here, low + y * (high - low)));
      show(panel, step);
    };
    canvas.addEventListener("pointermove", point);
    canvas.addEventListener("pointerdown", point);
    canvas.addEventListener("pointerleave", (event) => {
      if (event.pointerType === "mouse") clear();
    });
    panel.addEventListener("blur", clear);
    panel.addEventListener("keydown", (event) => {
      const last = data.epochs.length - 1;
      const step = Number(panel.dataset.step ?? last);
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key] ?? 0;
      const turn = { ArrowUp: 1, ArrowDown: -1 }[event.key] ?? 0;
      if (event.key === "Escape") clear();
      if (!by && !turn) return;
      event.preventDefault();
      const next = Math.max(0, Math.min(last, step + by));
      if (turn || hot < 0) {
        const value = (i) => data.trials[i][field][next];
        const order = data.trials.map((_, i) => i).filter((i) => seen(i) && value(i) != null);
        order.sort((a, b) => value(a) - value(b) || a - b);
        const at = order.indexOf(hot);
        const best = kind === "loss" ? 0 : order.length - 1;
        if (order.length) {
          const to = at < 0 ? best : Math.max(0, Math.min(order.length - 1, at + turn));
          highlight(order[to]);
        }
      }
      show(panel, next);
    });
  }

  for (const button of legend) {
    const { i } = button.dataset;
    const mark = i === "others" || i === "train" ? null : Number(i);
    button.addEventListener("click", () => {
      const on = hidden.has(i);
      if (on) hidden.delete(i);
      else hidden.add(i);
      button.setAttribute("aria-pressed", String(on));
      if (mark === null) box.classList.toggle(`no-${i}`, !on);
      else for (const each of marks[mark]) each.classList.toggle("off", !on);
      clear();
    });
    if (mark !== null) {
      button.addEventListener("pointerenter", () => seen(mark) && highlight(mark));
      button.addEventListener("pointerleave", () => highlight(-1));
    }
  }
}
