"use strict";
(() => {
  const root = document.documentElement;
  const KEY = "esper-guard-theme";
  const remembered = () => {
    try { return localStorage.getItem(KEY); } catch { return null; }
  };
  const remember = (theme) => {
    try { localStorage.setItem(KEY, theme); } catch { /* kept for this page only */ }
  };
  const systemTheme = () => (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  const theme = () => root.dataset.theme || systemTheme();
  if (["dark", "light"].includes(remembered())) root.dataset.theme = remembered();
  root.classList.add("scripted");

  const FILE = 0, LINE = 1, KIND = 2, PHASE = 3, OPERATOR = 4, MODULE = 5, TESTS = 6, BYTES = 7, COUNT = 8;
  const TOP_LINES = 50;
  const size = (bytes) => {
    for (const [unit, name] of [[2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"]]) {
      if (bytes >= unit) return `${(bytes / unit).toFixed(1)} ${name}`;
    }
    return `${bytes} B`;
  };
  const isCopy = (kind) => kind === "explicit" || kind === "hidden";
  const one = (selector, within = document) => within.querySelector(selector);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];

  class Sum {
    constructor() {
      Object.assign(this, { bytes: 0, copies: 0, losses: 0, otherCopies: 0, other: 0, internal: 0 });
    }
    add(event) {
      const kind = event[KIND];
      if (isCopy(kind)) { this.bytes += event[BYTES]; this.copies += event[COUNT]; }
      else if (kind === "loss") this.losses += event[COUNT];
      else if (kind === "other") { this.other += event[BYTES]; this.otherCopies += event[COUNT]; }
      else this.internal += event[BYTES];
    }
    get rank() { return [this.bytes, this.copies, this.losses, this.other, this.internal]; }
    get margin() {
      if (this.bytes) return size(this.bytes);
      if (this.losses) return this.losses === 1 ? "1 loss" : `${this.losses} losses`;
      return this.otherCopies ? `${size(this.other)} other` : `${size(this.internal)} kernel`;
    }
  }
  const compare = (one, other) => {
    const at = one.findIndex((part, index) => part !== other[index]);
    return at < 0 ? 0 : other[at] - one[at];
  };

  /* Which events are shown. */
  const data = {};
  const wanted = { text: "", kind: "", phase: "", module: "" };
  const isFiltered = () => Object.values(wanted).some(Boolean);
  const kept = () => {
    const text = wanted.text.toLowerCase();
    const holds = (values) => values.map((value) => value.toLowerCase().includes(text));
    const [files, places, operators, modules, tests] = [data.files, data.places, data.operators, data.modules, data.tests].map(holds);
    const sets = data.sets.map((set) => set.some((test) => tests[test]));
    const inside = data.modules.map((name) => !wanted.module || name === wanted.module || name.startsWith(`${wanted.module}.`));
    return data.events.map((event) => {
      const kind = event[KIND];
      if (wanted.kind && kind !== wanted.kind && !(wanted.kind === "copies" && isCopy(kind))) return false;
      if (wanted.phase && event[PHASE] !== wanted.phase) return false;
      if (!inside[event[MODULE]]) return false;
      return !text || (event[FILE] < 0 ? places[-1 - event[FILE]] : files[event[FILE]]) || operators[event[OPERATOR]]
        || modules[event[MODULE]] || sets[event[TESTS]];
    });
  };

  const show = () => {
    const keep = kept();
    const files = new Map(), lines = new Map(), total = new Sum();
    const into = (sums, key, event) => {
      if (!sums.has(key)) sums.set(key, new Sum());
      sums.get(key).add(event);
    };
    let count = 0;
    data.events.forEach((event, at) => {
      if (!keep[at]) return;
      count += 1;
      total.add(event);
      if (event[FILE] < 0) return;
      into(files, event[FILE], event);
      into(lines, `${event[FILE]}-${event[LINE]}`, event);
    });
    showFiles(files, total.bytes);
    showLines(lines);
    for (const hit of all(".hit")) showHit(hit, lines.get(`${hit.dataset.file}-${hit.dataset.line}`));
    for (const file of all(".file")) file.hidden = !files.has(Number(file.dataset.file));
    for (const row of all("[data-event]")) row.hidden = !keep[row.dataset.event] && !row.closest(".hit.out");
    for (const group of all(".event")) group.hidden = !one("[data-event]:not([hidden])", group);
    for (const place of all(".place")) place.hidden = !one(".event:not([hidden])", place);
    one("#status").textContent = isFiltered() ? `${count} of ${data.events.length} events, ${size(total.bytes)} copied` : "";
    one("#everything").hidden = !isFiltered();
    const module = one("#module");
    module.hidden = !wanted.module;
    module.textContent = `module ${wanted.module} \u00d7`;
    module.setAttribute("aria-label", `Show other modules than ${wanted.module}, too`);
  };

  const showHit = (hit, sum) => {
    const margin = one(".margin", hit);
    margin.dataset.whole ??= margin.textContent;
    margin.textContent = sum ? sum.margin : margin.dataset.whole;
    hit.classList.toggle("out", !sum);
  };

  const showFiles = (sums, total) => {
    for (const row of all("#file-table tbody tr")) {
      const sum = sums.get(Number(row.dataset.file));
      row.hidden = !sum;
      if (!sum) continue;
      const cells = all("td[data-value]", row);
      [sum.bytes, sum.copies, sum.losses, sum.other, sum.internal].forEach((value, at) => {
        cells[at].dataset.value = value;
        cells[at].textContent = at === 1 || at === 2 ? value : size(value);
      });
      one(".bar rect", row).setAttribute("width", total ? (100 * sum.bytes) / total : 0);
    }
  };

  const showLines = (sums) => {
    const body = one("#line-table tbody");
    if (!body) return;
    const sorted = [...sums].sort(([, one], [, other]) => compare(one.rank, other.rank));
    body.replaceChildren(...sorted.slice(0, TOP_LINES).map(([key, sum]) => {
      const row = document.createElement("tr");
      const cell = (text, label = "") => {
        const made = row.insertCell();
        made.className = "n";
        if (label) made.dataset.label = label;
        made.textContent = text;
        return made;
      };
      cell(sum.bytes || !sum.losses ? sum.margin : "");
      cell(sum.copies || "", "copies");
      cell(sum.losses || "", "losses");
      const [file, line] = key.split("-");
      const link = document.createElement("a");
      link.href = `#f${file}-l${line}`;
      link.textContent = `${data.files[file]}:${line}`;
      const code = document.createElement("code");
      code.textContent = one(`#f${file}-l${line} > summary > code`).textContent.trim();
      const where = row.insertCell();
      where.className = "where";
      where.append(link, " ", code);
      return row;
    }));
    const more = sorted.length - TOP_LINES;
    one("#more-lines").textContent = more > 0 ? `and ${more} more, in the sources below` : "";
  };

  /* Sorting. */
  const sort = (table, column, ascending) => {
    const heads = all("thead th", table);
    heads.forEach((head, at) => {
      if (at === column) head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      else head.removeAttribute("aria-sort");
    });
    const isText = heads[column].dataset.key === "text";
    const value = (row) => (isText ? row.cells[column].textContent : Number(row.cells[column].dataset.value));
    const order = isText ? new Intl.Collator("en", { numeric: true }).compare : (one, other) => one - other;
    const rows = [...table.tBodies[0].rows].map((row) => [value(row), row]);
    rows.sort(([one], [other]) => (ascending ? order(one, other) : order(other, one)));
    table.tBodies[0].append(...rows.map(([, row]) => row));
  };
  const sortColumns = (table) => all("thead th", table).map((head, at) => (one("button", head) ? at : -1)).filter((at) => at >= 0);
  const makeSortable = (table) => {
    all("thead th", table).forEach((head, at) => {
      if (head.dataset.key !== "text" && !head.classList.contains("n")) return;
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const now = head.getAttribute("aria-sort");
        sort(table, at, now ? now === "descending" : head.dataset.key === "text");
      });
    });
  };
  const sortByNext = () => {
    const table = one("#file-table");
    if (!table) return;
    const columns = sortColumns(table);
    const now = all("thead th", table).findIndex((head) => head.hasAttribute("aria-sort"));
    const next = columns[(columns.indexOf(now) + 1) % columns.length];
    sort(table, next, all("thead th", table)[next].dataset.key === "text");
  };

  /* The picture of the modules. */
  let boxes = [];
  const number = (box, name) => Number(box.dataset[name]);
  const fit = () => {
    const picture = one("#icicle");
    if (!picture) return;
    const width = picture.clientWidth || picture.getBoundingClientRect().width;
    for (const box of boxes) {
      const room = Math.floor((width * parseFloat(box.getAttribute("width")) / 100 - 8) / 7.2);
      const { name, label } = box.dataset;
      const whole = [name, label].find((text) => text && text.length <= room);
      one("text", box).textContent = whole ?? (room > 2 ? `${label.slice(0, room - 1)}\u2026` : "");
    }
  };
  const zoom = (target) => {
    const start = number(target, "start"), width = number(target, "width"), depth = number(target, "depth");
    for (const box of boxes) {
      const from = number(box, "start"), wide = number(box, "width");
      const isAround = number(box, "depth") <= depth && from <= start && from + wide >= start + width;
      const isInside = number(box, "depth") > depth && from >= start && from + wide <= start + width;
      box.setAttribute("x", `${isInside ? (100 * (from - start)) / width : 0}%`);
      box.setAttribute("width", `${isAround ? 100 : (100 * wide) / width}%`);
      box.setAttribute("visibility", isAround || isInside ? "visible" : "hidden");
      box.setAttribute("aria-pressed", box === target && target.dataset.name !== "");
    }
    fit();
  };
  const choose = (box) => {
    zoom(box);
    focusBox(box);
    wanted.module = box.dataset.name;
    show();
  };
  const focusBox = (box) => {
    for (const other of boxes) other.setAttribute("tabindex", other === box ? "0" : "-1");
    box.focus({ preventScroll: true });
  };
  const neighbour = (box, key) => {
    const depth = number(box, "depth"), start = number(box, "start"), end = start + number(box, "width");
    const shown = boxes.filter((other) => other.getAttribute("visibility") !== "hidden");
    const level = shown.filter((other) => number(other, "depth") === depth);
    if (key === "ArrowRight") return level[level.indexOf(box) + 1];
    if (key === "ArrowLeft") return level[level.indexOf(box) - 1];
    if (key === "ArrowDown") return shown.find((other) => number(other, "depth") === depth + 1 && number(other, "start") >= start && number(other, "start") < end);
    return shown.find((other) => number(other, "depth") === depth - 1 && number(other, "start") <= start && number(other, "start") + number(other, "width") >= end);
  };
  const makePicture = () => {
    boxes = all("#icicle .box");
    boxes.forEach((box, at) => {
      box.setAttribute("role", "button");
      box.setAttribute("tabindex", at ? "-1" : "0");
      box.setAttribute("aria-label", one("title", box).textContent);
      box.addEventListener("click", () => choose(box));
      box.addEventListener("keydown", (event) => {
        if (event.key === "Enter" || event.key === " ") choose(box);
        else if (event.key.startsWith("Arrow")) {
          const next = neighbour(box, event.key);
          if (next) focusBox(next);
        } else return;
        event.preventDefault();
      });
    });
    fit();
    addEventListener("resize", fit);
  };

  /* Going to a line. */
  const open = (element) => {
    for (let around = element; around; around = around.parentElement) {
      if (around.tagName === "DETAILS") around.open = true;
    }
  };
  const goToHash = () => {
    const target = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
    if (!target) return;
    if (target.closest("[hidden]")) showEverything();
    open(target);
    target.scrollIntoView({ block: target.classList.contains("hit") ? "center" : "start" });
    if (target.classList.contains("hit")) one("summary", target).focus({ preventScroll: true });
  };
  let current = null;
  const step = (by) => {
    const hits = all(".file:not([hidden]) .hit:not(.out):not(.internal)");
    if (!hits.length) return;
    const focused = document.activeElement && document.activeElement.closest(".hit");
    const at = hits.indexOf(focused || current);
    current = hits[at < 0 ? (by > 0 ? 0 : hits.length - 1) : Math.min(hits.length - 1, Math.max(0, at + by))];
    open(current.parentElement);
    const summary = one("summary", current);
    summary.focus({ preventScroll: true });
    summary.scrollIntoView({ block: "center" });
  };

  const showTheme = () => one("#theme").setAttribute("aria-pressed", theme() === "dark");
  const switchTheme = () => {
    root.dataset.theme = theme() === "dark" ? "light" : "dark";
    remember(root.dataset.theme);
    showTheme();
  };
  const showEverything = () => {
    one("#tools").reset();
    Object.assign(wanted, { text: "", kind: "", phase: "", module: "" });
    if (boxes.length) zoom(boxes[0]);
    show();
  };
  const escape = (target) => {
    const hit = target.closest && target.closest(".hit[open]");
    if (hit) {
      hit.open = false;
      one("summary", hit).focus({ preventScroll: true });
    } else if (isFiltered()) showEverything();
    else if (target.blur) target.blur();
  };
  const keys = {
    j: () => step(1),
    k: () => step(-1),
    s: sortByNext,
    d: switchTheme,
    "/": () => one("#filter").focus(),
    "?": () => one("#help").showModal(),
  };
  const onKey = (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || one("#help").open) return;
    if (event.key === "Escape") escape(event.target);
    else if (keys[event.key] && !["INPUT", "SELECT"].includes(event.target.tagName)) {
      event.preventDefault();
      keys[event.key]();
    }
  };
  const makeFilter = () => {
    let waiting = 0;
    const changed = () => {
      Object.assign(wanted, { text: one("#filter").value.trim(), kind: one("#kind").value, phase: one("#phase").value });
      show();
    };
    one("#filter").addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = setTimeout(changed, 80);
    });
    for (const select of ["#kind", "#phase"]) one(select).addEventListener("change", changed);
    one("#tools").addEventListener("submit", (event) => event.preventDefault());
    one("#everything").addEventListener("click", (event) => { event.preventDefault(); showEverything(); });
    one("#module").addEventListener("click", () => { wanted.module = ""; zoom(boxes[0]); show(); });
  };
  const makePrintable = () => {
    let closed = [];
    addEventListener("beforeprint", () => {
      closed = all("details:not([open])");
      for (const details of closed) details.open = true;
    });
    addEventListener("afterprint", () => {
      for (const details of closed) details.open = false;
    });
  };

  document.addEventListener("DOMContentLoaded", () => {
    Object.assign(data, JSON.parse(one("#data").textContent));
    all("table.sortable").forEach(makeSortable);
    makePicture();
    makeFilter();
    makePrintable();
    showTheme();
    one("#theme").addEventListener("click", switchTheme);
    one("#keys").addEventListener("click", () => one("#help").showModal());
    document.addEventListener("keydown", onKey);
    addEventListener("hashchange", goToHash);
    document.addEventListener("click", (event) => {
      const link = event.target.closest("a[href^='#']");
      if (link && link.hash === location.hash) goToHash(); // no change of the hash tells
    });
    goToHash();
  });
})();
