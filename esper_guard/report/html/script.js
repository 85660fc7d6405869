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
  /* Ties go to the even digit, as in what Python wrote; toFixed() and round() take them up. */
  const tenths = (value) => (value % 1 === 0.25 ? `${Math.floor(value)}.2` : value.toFixed(1));
  const whole = (value) => (value % 1 === 0.5 ? 2 * Math.round(value / 2) : Math.round(value));
  const size = (bytes) => {
    for (const [unit, name] of [[2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"]]) {
      if (bytes >= unit) return `${tenths(bytes / unit)} ${name}`;
    }
    return `${bytes} B`;
  };
  const counted = (number, one, several) => `${number} ${number === 1 ? one : several}`;
  const isCopy = (kind) => kind === "explicit" || kind === "hidden";
  const one = (selector, within = document) => within.querySelector(selector);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];

  class Sum {
    constructor() {
      Object.assign(this, { bytes: 0, copies: 0, losses: 0, otherCopies: 0, other: 0, internalCopies: 0, internal: 0 });
    }
    add(event) {
      const kind = event[KIND];
      if (isCopy(kind)) { this.bytes += event[BYTES]; this.copies += event[COUNT]; }
      else if (kind === "loss") this.losses += event[COUNT];
      else if (kind === "other") { this.other += event[BYTES]; this.otherCopies += event[COUNT]; }
      else { this.internal += event[BYTES]; this.internalCopies += event[COUNT]; }
    }
    get rank() { return [this.bytes, this.copies, this.losses, this.other, this.internal]; }
    get margin() {
      if (this.bytes) return size(this.bytes);
      if (this.losses) return counted(this.losses, "loss", "losses");
      if (this.copies) return size(0);
      return this.otherCopies ? `${size(this.other)} other` : `${size(this.internal)} kernel`;
    }
    get words() {
      const losses = this.losses ? `, ${counted(this.losses, "loss", "losses")}` : "";
      return `${size(this.bytes)}, ${counted(this.copies, "copy", "copies")}${losses}`;
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
  /* Whether each event is shown, and whether it would be if all modules were. */
  const kept = () => {
    const text = wanted.text.toLowerCase();
    const holds = (values) => values.map((value) => value.toLowerCase().includes(text));
    const [files, places, operators, modules, tests] = [data.files, data.places, data.operators, data.modules, data.tests].map(holds);
    const sets = data.sets.map((set) => set.some((test) => tests[test]));
    const inside = data.modules.map((name) => !wanted.module || name === wanted.module || name.startsWith(`${wanted.module}.`));
    const inPicture = data.events.map((event) => {
      const kind = event[KIND];
      if (wanted.kind && kind !== wanted.kind && !(wanted.kind === "copies" && isCopy(kind))) return false;
      if (wanted.phase && event[PHASE] !== wanted.phase) return false;
      return !text || (event[FILE] < 0 ? places[-1 - event[FILE]] : files[event[FILE]]) || operators[event[OPERATOR]]
        || modules[event[MODULE]] || sets[event[TESTS]];
    });
    return [inPicture.map((is, at) => is && inside[data.events[at][MODULE]]), inPicture];
  };

  const show = () => {
    const [keep, inPicture] = kept();
    const files = new Map(), lines = new Map(), places = new Map(), modules = new Map(), boxed = new Map();
    const total = new Sum(), copying = new Set();
    const into = (sums, key, event) => {
      if (!sums.has(key)) sums.set(key, new Sum());
      sums.get(key).add(event);
    };
    let count = 0;
    data.events.forEach((event, at) => {
      if (inPicture[at]) into(boxed, event[MODULE], event);
      if (!keep[at]) return;
      count += 1;
      total.add(event);
      into(modules, event[MODULE], event);
      if (isCopy(event[KIND])) copying.add(`${event[FILE]} ${event[LINE]}`);
      if (event[FILE] < 0) into(places, -1 - event[FILE], event);
      else {
        into(files, event[FILE], event);
        into(lines, `${event[FILE]}-${event[LINE]}`, event);
      }
    });
    root.classList.toggle("filtered", isFiltered());
    showSums(total, copying.size);
    showTable(one("#file-table"), "file", files, total.bytes);
    showTable(one("#module-table"), "module", modules, total.bytes);
    showLines(lines);
    showPicture(boxed);
    for (const hit of all(".hit")) showHit(hit, lines.get(`${hit.dataset.file}-${hit.dataset.line}`));
    for (const file of all(".file")) showPart(file, files.get(Number(file.dataset.file)), ".sum", "words");
    for (const row of all("[data-event]")) row.hidden = !keep[row.dataset.event] && !row.closest(".hit.out");
    for (const group of all(".event")) group.hidden = !one("[data-event]:not([hidden])", group);
    for (const place of all(".place")) showPart(place, places.get(Number(place.dataset.place)), ".margin", "margin");
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
  const showPart = (part, sum, selector, words) => {
    part.hidden = !sum;
    if (sum) one(selector, part).textContent = sum[words];
  };

  const showSums = (total, lines) => {
    const put = (name, number, words) => {
      const sum = one(`[data-sum="${name}"]`);
      one("strong", sum).textContent = number;
      if (words) one("span", sum).textContent = words;
    };
    put("copied", size(total.bytes));
    put("copies", total.copies, `on ${counted(lines, "line", "lines")}`);
    put("losses", total.losses);
    put("other copies", total.otherCopies, `${size(total.other)}, of strides only`);
    if (Number.isNaN(Number(one("[data-sum='in kernels'] strong").textContent))) return; // they were not traced
    put("in kernels", total.internalCopies, `${size(total.internal)}, internal`);
  };

  const showTable = (table, key, sums, total) => {
    if (!table) return;
    for (const row of table.tBodies[0].rows) {
      const sum = sums.get(Number(row.dataset[key]));
      row.hidden = !sum;
      if (!sum) continue;
      const cells = all("td[data-value]", row);
      sum.rank.forEach((value, at) => {
        cells[at].dataset.value = value;
        cells[at].textContent = at === 1 || at === 2 ? value : size(value);
      });
      const bar = one(".bar rect", row);
      if (bar) bar.setAttribute("width", total ? (100 * sum.bytes) / total : 0);
    }
    const column = sortedColumn(table);
    sort(table, column, one("thead tr", table).cells[column].getAttribute("aria-sort") === "ascending");
  };

  const showLines = (sums) => {
    const body = one("#line-table tbody");
    if (!body) return;
    const sorted = [...sums].map(([key, sum]) => [key.split("-").map(Number), sum]);
    sorted.sort(([place, one], [other, another]) => compare(one.rank, another.rank) || compare(other, place));
    body.replaceChildren(...sorted.slice(0, TOP_LINES).map(([[file, line], sum]) => {
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
      const link = document.createElement("a");
      link.href = `#f${file}-l${line}`;
      link.textContent = line ? `${data.files[file]}:${line}` : data.files[file];
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
    const rank = (row) => [...all("td[data-value]", row).slice(0, 5).map((cell) => Number(cell.dataset.value)), -row.dataset.at];
    const rows = [...table.tBodies[0].rows].map((row) => [value(row), rank(row), row]);
    rows.sort(([one, first], [other, second]) => (ascending ? order(one, other) : order(other, one)) || compare(first, second));
    table.tBodies[0].append(...rows.map(([, , row]) => row));
  };
  const sortColumns = (table) => all("thead th", table).map((head, at) => (one("button", head) ? at : -1)).filter((at) => at >= 0);
  const sortedColumn = (table) => all("thead th", table).findIndex((head) => head.hasAttribute("aria-sort"));
  const makeSortable = (table) => {
    [...table.tBodies[0].rows].forEach((row, at) => { row.dataset.at = at; });
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
    const next = columns[(columns.indexOf(sortedColumn(table)) + 1) % columns.length];
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
      const fitting = [name, label].find((text) => text && text.length <= room);
      one("text", box).textContent = fitting ?? (room > 2 ? `${label.slice(0, room - 1)}\u2026` : "");
    }
  };
  /* Make the boxes as wide as what these modules copied. */
  const showPicture = (sums) => {
    if (!boxes.length) return;
    const sizes = new Map(boxes.map((box) => [box.dataset.name, 0]));
    const add = (name, bytes) => sizes.set(name, sizes.get(name) + bytes);
    for (const [module, { bytes }] of sums) {
      const name = data.modules[module];
      add("", bytes);
      for (let end = name.indexOf("."); ; end = name.indexOf(".", end + 1)) {
        const path = end < 0 ? name : name.slice(0, end);
        if (path && !sizes.has(path)) break;
        if (path) add(path, bytes);
        if (end < 0) break;
      }
    }
    const total = sizes.get(""), starts = [0];
    for (const box of boxes) {
      const { name, label } = box.dataset;
      const depth = number(box, "depth"), wide = sizes.get(name);
      Object.assign(box.dataset, { start: starts[depth], width: wide });
      starts[depth + 1] = starts[depth];
      starts[depth] += wide;
      const title = `${name || label}: ${size(wide)}, ${total ? whole((100 * wide) / total) : 0} %`;
      one("title", box).textContent = title;
      box.setAttribute("aria-label", title);
    }
    zoom(boxes.find((box) => box.dataset.name === wanted.module) ?? boxes[0]);
  };
  const isIn = (name, outer) => !outer || name === outer || name.startsWith(`${outer}.`);
  const zoom = (target) => {
    const start = number(target, "start"), width = number(target, "width") || 1, { name } = target.dataset;
    for (const box of boxes) {
      const from = number(box, "start"), wide = number(box, "width");
      const isAround = isIn(name, box.dataset.name);
      const isInside = !isAround && wide > 0 && isIn(box.dataset.name, name);
      box.setAttribute("x", `${isInside ? (100 * (from - start)) / width : 0}%`);
      box.setAttribute("width", `${isAround ? 100 : (100 * wide) / width}%`);
      box.setAttribute("visibility", isAround || isInside ? "visible" : "hidden");
      box.setAttribute("aria-pressed", box === target && name !== "");
    }
    fit();
  };
  const choose = (box) => {
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
    const names = [];
    boxes.forEach((box, at) => {
      const { depth, label } = box.dataset;
      names[depth] = at === 0 ? "" : names[depth - 1] ? `${names[depth - 1]}.${label}` : label;
      box.dataset.name = names[depth];
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
  /* Where j and k go on from. */
  let current = null;
  const step = (by) => {
    const hits = all(".file:not([hidden]) .hit:not(.out):not(.internal)");
    if (!hits.length) return;
    const at = hits.indexOf(current);
    const isLater = (hit) => current.compareDocumentPosition(hit) & Node.DOCUMENT_POSITION_FOLLOWING;
    const after = current ? hits.findIndex(isLater) : 0;
    const passed = after < 0 ? hits.length : after;
    const next = by < 0 ? (at < 0 ? passed : at) - 1 : passed;
    current = hits[Math.min(hits.length - 1, Math.max(0, current ? next : by > 0 ? 0 : hits.length - 1))];
    open(current.parentElement);
    const summary = one("summary", current);
    summary.focus({ preventScroll: true });
    summary.scrollIntoView({ block: "center" });
  };

  const goToHash = () => {
    const target = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
    if (!target) return;
    if (target.closest("[hidden]")) showEverything();
    open(target);
    current = target;
    target.scrollIntoView({ block: target.classList.contains("hit") ? "center" : "start" });
    if (target.classList.contains("hit")) one("summary", target).focus({ preventScroll: true });
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
    one("#module").addEventListener("click", () => { wanted.module = ""; show(); });
  };
  const makeRoomForFilter = () => {
    const bar = one("#tools");
    new ResizeObserver(() => {
      const isSticky = getComputedStyle(bar).position === "sticky";
      root.style.scrollPaddingTop = `${8 + (isSticky ? bar.offsetHeight : 0)}px`;
    }).observe(bar);
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
    makeRoomForFilter();
    makePrintable();
    showTheme();
    one("#theme").addEventListener("click", switchTheme);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showTheme);
    one("#keys").addEventListener("click", () => one("#help").showModal());
    document.addEventListener("keydown", onKey);
    addEventListener("hashchange", goToHash);
    for (const kind of ["focusin", "click"]) {
      document.addEventListener(kind, (event) => { current = event.target.closest(".hit") ?? current; });
    }
    document.addEventListener("click", (event) => {
      const link = event.target.closest("a[href^='#']");
      if (link && link.hash === location.hash) goToHash(); // no change of the hash tells
    });
    goToHash();
  });
})();
