"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const one = (selector, root = document) => root.querySelector(selector);

  // ---- numbers
  const units = (value, names, base) => {
    let i = 0;
    while (Math.abs(value) >= base && i < names.length - 1) { value /= base; i++; }
    return (i === 0 ? value.toFixed(0) : value < 100 ? +value.toPrecision(3) : value.toFixed(0)) + " " + names[i];
  };
  const show = {
    bytes: v => units(v, ["B", "KiB", "MiB", "GiB", "TiB"], 1024),
    count: v => units(v, ["", "k", "M", "G", "T", "P"], 1000).trim(),
    plain: v => String(v),
    ratio: v => v.toFixed(3) + " ×",
  };
  const dims = {};
  const binary = {
    "+": (a, b) => a + b, "-": (a, b) => a - b, "*": (a, b) => a * b, "/": (a, b) => Math.floor(a / b),
    "%": (a, b) => a - b * Math.floor(a / b), min: Math.min, max: Math.max,
  };
  // A size is a number, null, or a postfix program: numbers, "$name" and operators.
  const value = size => {
    if (size === null || typeof size === "number") return size;
    const stack = [];
    for (const token of size) {
      if (typeof token === "number") stack.push(token);
      else if (token[0] === "$") stack.push(dims[token.slice(1)]);
      else { const b = stack.pop(); stack.push(binary[token](stack.pop(), b)); }
    }
    return Number.isFinite(stack[0]) && stack[0] >= 0 ? stack[0] : null;
  };

  // ---- arenas that are planned when the function runs, as vmcore/arena.pyx plans them
  const placeAll = (order, inTime) => {
    let placed = [], total = 0, live = 0, peak = 0;
    for (const b of order) {
      let reach = 0, best = -1, bestGap = 0;
      if (inTime) placed = placed.filter(o => o.end >= b.begin || ((live -= o.size), false));
      for (const o of placed) {
        if (!inTime && (o.begin > b.end || o.end < b.begin)) continue;
        const gap = o.offset - reach;
        if (gap >= b.size && (best < 0 || gap < bestGap)) [best, bestGap] = [reach, gap];
        reach = Math.max(reach, o.offset + o.size);
      }
      b.offset = best >= 0 ? best : reach;
      total = Math.max(total, b.offset + b.size);
      live += b.size;
      if (inTime) peak = Math.max(peak, live);
      let at = placed.length;
      while (at > 0 && placed[at - 1].offset > b.offset) at--;
      placed.splice(at, 0, b);
    }
    return [total, peak];
  };
  const arenaPlans = JSON.parse(one("#plans").textContent);
  const planArenas = () => {
    for (const [names, table, sizes] of arenaPlans) {
      const bytes = sizes.map(size => Math.ceil(Math.max(value(size) || 0, 0) / 64) * 64), buffers = [];
      for (let i = 0; i + 2 < table.length; i += 3)
        buffers.push({ begin: table[i], end: table[i + 1], size: bytes[table[i + 2]] || 0, offset: 0, index: i });
      let [total, peak] = placeAll(buffers, true), offsets = buffers.map(b => b.offset);
      const attempt = order => {
        const [found] = placeAll(order, false);
        if (found < total) { offsets = buffers.map(b => b.offset); total = found; }
      };
      if (buffers.length <= 256) {
        let order = buffers;
        const lasting = b => b.end - b.begin + 1;
        for (const rank of [b => b.size, b => b.size * lasting(b), lasting]) {
          if (total === peak) break;
          order = [...buffers].sort((a, b) => rank(b) - rank(a) || b.size - a.size || a.index - b.index);
          attempt(order);
        }
        for (let i = 0; i < 12 && total !== peak; i++) {
          const top = order.reduce((a, b) => b.offset + b.size > a.offset + a.size ? b : a);
          order = [top, ...order.filter(b => b !== top)];
          attempt(order);
        }
      }
      names.forEach((name, i) => { dims[name] = i ? offsets[i - 1] : total; });
    }
  };

  // ---- the memory plan, as memory_picture.py draws it
  const [WIDTH, LEFT, RIGHT, TOP, PLOT, STRIP, GAP] = [1160, 76, 12, 14, 330, 64, 26];
  const stack = (boxes, base) => {
    const placed = [];
    for (const box of boxes) {
      let low = base;
      const near = placed.filter(o => o.spans.some(([a, b]) => box.spans.some(([c, d]) => a <= d && c <= b))).sort((a, b) => a.low - b.low);
      for (const other of near) {
        if (other.low - low >= box.bytes) break;
        low = Math.max(low, Math.ceil((other.low + other.bytes) / 64) * 64);
      }
      box.low = low;
      placed.push(box);
    }
  };
  const mostHeld = boxes => {
    const changes = new Map();
    for (const box of boxes) for (const [begin, end] of box.spans) {
      changes.set(begin, (changes.get(begin) || 0) + box.bytes);
      changes.set(end + 1, (changes.get(end + 1) || 0) - box.bytes);
    }
    let now = 0, most = 0;
    const steps = [...changes.keys()].sort((a, b) => a - b).map(pc => {
      now += changes.get(pc);
      most = Math.max(most, now);
      return [pc, now];
    });
    return [most, steps];
  };
  const plans = new Map();
  const drawMemory = (section, zoom) => {
    const svg = one("svg.memory", section);
    if (!svg) return;
    if (!plans.has(section)) plans.set(section, { ...JSON.parse(one("script.plan", section).textContent), zoom: 1 });
    const plan = plans.get(section);
    if (zoom) plan.zoom = Math.min(64, Math.max(1, plan.zoom * zoom));
    const width = LEFT + RIGHT + (WIDTH - LEFT - RIGHT) * plan.zoom, height = TOP + PLOT + GAP + STRIP + 30;
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.style.width = plan.zoom > 1 ? width + "px" : "";
    const homes = new Map(), boxes = [], floating = new Map();
    for (const [id, kind, spans, size] of plan.storages) {
      const bytes = value(size);
      if (bytes !== null && bytes >= 0) homes.set(id, { id, kind, spans, bytes, low: 0 });
    }
    stack(homes.values(), 0);
    for (const [id, home, spans, offset, size, label] of plan.buffers) {
      const bytes = value(size), at = homes.get(home);
      if (bytes === null || bytes < 0 || !at) continue;
      const box = { id, spans, bytes, label, low: 0, home: at }, start = value(offset);
      if (start === null) floating.set(at, [...(floating.get(at) || []), box]);
      else box.low = at.low + start;
      boxes.push(box);
    }
    for (const [at, group] of floating) stack(group, at.low);
    const top = Math.max(1, ...[...homes.values(), ...boxes].map(b => b.low + b.bytes));
    const [most, steps] = mostHeld(boxes);
    const across = (width - LEFT - RIGHT) / Math.max(plan.end - plan.begin, 1), up = PLOT / top;
    const x = pc => LEFT + (pc - plan.begin) * across, y = address => TOP + PLOT - address * up;
    const set = (group, box, least) => {  // a rectangle per span; returns the middle and width of the widest
      const h = Math.max(box.bytes * up, least);
      let widest = [0, 0];
      all("rect", group).forEach((rect, i) => {
        const [begin, end] = box.spans[i], w = (end - begin + 1) * across;
        if (w > widest[1]) widest = [x(begin) + w / 2, w];
        for (const [name, v] of [["x", x(begin)], ["y", y(box.low + box.bytes)], ["width", w], ["height", h]])
          rect.setAttribute(name, v.toFixed(2));
      });
      return [...widest, h];
    };
    const retitle = (node, bytes, line, keep) => {
      const lines = (node.dataset.tip || "").split("\n");
      if (lines.length > line) lines[line] = keep(lines[line], show.bytes(bytes));
      node.dataset.tip = lines.join("\n");
    };
    const byId = list => new Map(list.map(box => [String(box.id), box]));
    const storages = byId([...homes.values()]), buffers = byId(boxes);
    all(".s", svg).forEach(group => {
      const box = storages.get(group.dataset.s);
      group.classList.toggle("hidden", !box);
      if (!box) return;
      set(group, box, 0.5);
      retitle(group, box.bytes, 0, (line, text) => line.replace(/: [^,]*,/, `: ${text},`));
    });
    all(".b", svg).forEach(group => {
      const box = buffers.get(group.dataset.pc);
      group.classList.toggle("hidden", !box);
      if (!box) return;
      const [middle, w, h] = set(group, box, 0.75);
      let text = one("text", group);
      if (!text) {
        text = document.createElementNS("http://www.w3.org/2000/svg", "text");
        text.setAttribute("text-anchor", "middle");
        text.textContent = box.label;
        group.append(text);
      }
      text.setAttribute("x", middle);
      text.setAttribute("y", y(box.low + box.bytes) + h / 2 + 4);
      text.classList.toggle("hidden", !(w > 6.4 * box.label.length + 6 && h > 13));
      retitle(group, box.bytes, 1, (line, t) => line.replace(/^[^a]*?(?= at |$)/, t));
    });
    let step = 1;
    while (top / step > 6) step *= 2;
    const grid = [];
    for (let tick = 0; tick <= top; tick += step)
      grid.push(`<line x1="${LEFT}" x2="${width - RIGHT}" y1="${y(tick)}" y2="${y(tick)}"/>` +
        `<text x="${LEFT - 8}" y="${y(tick) + 4}" text-anchor="end">${show.bytes(tick)}</text>`);
    one(".grid", svg).innerHTML = grid.join("");  // numbers only
    const base = TOP + PLOT + GAP + STRIP, level = bytes => base - STRIP * bytes / Math.max(top, most);
    let path = `M${x(plan.begin)},${base}`, before = 0;
    for (const [pc, now] of steps) { path += `L${x(pc)},${level(before)}L${x(pc)},${level(now)}`; before = now; }
    path += `L${x(plan.end)},${level(before)}L${x(plan.end)},${base}Z`;
    one(".strip path", svg).setAttribute("d", path);
    const lines = [[".bound", level(most)], [".capacity", level(top)], [".axis", base]];
    for (const [name, at] of lines) {
      const line = one(".strip " + name, svg);
      line.setAttribute("y1", at); line.setAttribute("y2", at); line.setAttribute("x2", width - RIGHT);
    }
    const count = plan.end - plan.begin;
    const choices = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 1e4, 2e4, 5e4, 1e5];
    const every = choices.find(s => count / s <= 16 * plan.zoom) || 1e5;
    all(".strip text", svg).forEach(text => { if (text.getAttribute("text-anchor") === "middle") text.remove(); });
    for (let pc = Math.ceil(plan.begin / every) * every; pc <= plan.end; pc += every) {
      const text = document.createElementNS("http://www.w3.org/2000/svg", "text");
      text.setAttribute("x", x(pc)); text.setAttribute("y", base + 16); text.setAttribute("text-anchor", "middle");
      text.textContent = pc;
      one(".strip", svg).append(text);
    }
    const arenas = [...homes.values()].filter(s => s.kind === "arena");
    const align = list => list.map(b => ({ ...b, bytes: Math.max(Math.ceil(b.bytes / 64), 1) * 64 }));
    const arena = mostHeld(arenas)[0];
    const bound = mostHeld(align(boxes.filter(b => b.home.kind === "arena")))[0];
    const figures = {
      arena: [arena, "bytes"], bound: [bound, "bytes"], ratio: [bound ? arena / bound : null, "ratio"],
      peak: [mostHeld(align([...homes.values()]))[0], "bytes"], alive: [mostHeld(align(boxes))[0], "bytes"],
      separate: [align(boxes).reduce((sum, b) => sum + b.bytes, 0), "bytes"],
    };
    all("[data-m]", section).forEach(node => {
      const [v, form] = figures[node.dataset.m];
      node.textContent = v === null ? "–" : show[form](v);
    });
  };

  // ---- everything that depends on dimensions
  const refresh = () => {
    planArenas();
    all("[data-x]").forEach(node => {
      const v = value(JSON.parse(node.dataset.x));
      node.dataset.v = v === null ? "" : v;
      if (node.dataset.f) node.textContent = v === null ? "?" : show[node.dataset.f](v);
    });
    all("table.kinds").forEach(table => {
      for (const column of ["flops", "bytes"]) {
        const meters = all(`[data-c=${column}]`, table);
        const sum = meters.reduce((total, m) => total + (+m.dataset.v || 0), 0);
        for (const m of meters) m.firstElementChild.style.width = (sum ? 100 * (+m.dataset.v || 0) / sum : 0) + "%";
      }
    });
    all("section.function").forEach(section => drawMemory(section));
  };
  all(".dims input").forEach(input => {
    dims[input.name] = +input.value;
    input.addEventListener("input", () => {
      const number = Math.floor(+input.value);
      if (input.value === "" || !(number >= 0)) return;
      dims[input.name] = number;
      refresh();
    });
  });

  // ---- hovering: one instruction in all pictures
  const tip = one("#tip");
  all("svg title").forEach(title => {
    title.parentNode.dataset.tip = title.textContent;
    title.remove();
  });
  const links = new Map(JSON.parse(one("#links").textContent).map(([pc, reads, writes]) => [pc, { reads, writes }]));
  const wroteBy = new Map(), readBy = new Map();
  const put = (map, key, item) => map.set(key, [...(map.get(key) || []), item]);
  for (const [pc, { reads, writes }] of links) {
    writes.forEach(b => put(wroteBy, b, pc));
    reads.forEach(b => put(readBy, b, pc));
  }
  let lit = [], sections = [];
  const light = (list, name) => list.forEach(node => { node.classList.add(name); lit.push([node, name]); });
  const clear = () => {
    lit.forEach(([node, name]) => node.classList.remove(name));
    sections.forEach(s => s.classList.remove("dimmed"));
    lit = []; sections = [];
  };
  const find = (pc, kind, section) => all(`${kind}[data-pc="${pc}"]`, section);
  const focus = (node, section) => {
    clear();
    const pc = +node.dataset.pc;
    if (node.classList.contains("b")) {
      light([node], "hot");
      (wroteBy.get(pc) || []).forEach(p => { light(find(p, ".n", section), "hot"); light(find(p, "tr.i", section), "hot"); });
      (readBy.get(pc) || []).forEach(p => { light(find(p, ".n", section), "warm"); light(find(p, "tr.i", section), "warm"); });
      return;
    }
    light([...find(pc, ".n", section), ...find(pc, "tr.i", section)], "hot");
    light(all(`.edges path[data-from="${pc}"],.edges path[data-to="${pc}"]`, section), "hot");
    const { reads, writes } = links.get(pc) || { reads: [], writes: [] };
    writes.forEach(b => light(find(b, ".b", section), "hot"));
    reads.filter(b => !writes.includes(b)).forEach(b => light(find(b, ".b", section), "warm"));
    if (reads.length + writes.length) {
      const svg = one("svg.memory", section);
      if (svg) { svg.classList.add("dimmed"); sections.push(svg); }
    }
  };
  document.addEventListener("mouseover", event => {
    const node = event.target.closest("[data-pc]"), section = event.target.closest("section.function");
    if (node && section) focus(node, section); else clear();
    const told = event.target.closest("[data-tip]");
    tip.hidden = !told;
    if (told) tip.textContent = told.dataset.tip;
  });
  document.addEventListener("mousemove", event => {
    if (tip.hidden) return;
    const { width, height } = tip.getBoundingClientRect();
    const left = event.clientX + 16 + width > innerWidth ? event.clientX - width - 12 : event.clientX + 16;
    const above = event.clientY + 18 + height > innerHeight;
    tip.style.left = Math.max(left, 4) + "px";
    tip.style.top = Math.max(above ? event.clientY - height - 12 : event.clientY + 18, 4) + "px";
  });

  // ---- instructions: open, filter, sort
  const open = (row, wanted) => {
    const more = row.nextElementSibling;
    const now = wanted === undefined ? more.hidden : wanted;
    more.hidden = !now;
    row.classList.toggle("open", now);
  };
  const goTo = (pc, section) => {
    const row = one(`tr.i[data-pc="${pc}"]`, section);
    if (!row) return;
    row.hidden = false;
    open(row, true);
    row.scrollIntoView({ block: "center", behavior: "smooth" });
  };
  document.addEventListener("click", event => {
    const link = event.target.closest("a.pc"), section = event.target.closest("section.function");
    if (link) { event.preventDefault(); goTo(link.dataset.go, section); return; }
    const row = event.target.closest("tr.i");
    if (row) { if (!String(getSelection())) open(row); return; }
    const buffer = event.target.closest(".b");
    if (buffer) { goTo((wroteBy.get(+buffer.dataset.pc) || [buffer.dataset.pc])[0], section); return; }
    const node = event.target.closest(".n");
    if (node && section && !dragged) goTo(node.dataset.pc, section);
  });
  all("section.function").forEach(section => {
    const table = one("table.list", section);
    if (!table) return;
    const search = one("input.search", section), work = one("input.work", section), body = table.tBodies[0];
    const rows = all("tr.i", table), said = one(".shown", section);
    const filter = () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      let count = 0;
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        const keep = (!work.checked || !row.classList.contains("quiet")) && words.every(word => text.includes(word));
        row.hidden = !keep;
        if (!keep) open(row, false);
        count += keep;
      }
      said.textContent = `${count} of ${rows.length}`;
    };
    search.addEventListener("input", filter);
    work.addEventListener("change", filter);
    all("th", table.tHead).forEach((head, column) => {
      const sort = () => {
        const down = head.getAttribute("aria-sort") === (head.classList.contains("num") ? "descending" : "ascending");
        const first = head.classList.contains("num") ? -1 : 1, sign = down ? -first : first;
        all("th", table.tHead).forEach(other => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
        const key = row => {
          const cell = row.cells[column], v = cell.dataset.v;
          return v === undefined ? cell.textContent : v === "" ? -1 : +v;
        };
        const pairs = rows.map(row => [key(row), row, row.nextElementSibling]);
        pairs.sort((a, b) => sign * (typeof a[0] === "number" ? a[0] - b[0] : String(a[0]).localeCompare(b[0])));
        body.append(...pairs.flatMap(([, row, more]) => [row, more]));
      };
      head.addEventListener("click", sort);
      head.addEventListener("keydown", event => { if (event.key === "Enter") sort(); });
    });
    filter();
  });

  // ---- the graph: zoom and pan
  let dragged = false;
  all(".canvas").forEach(canvas => {
    const svg = one("svg", canvas), w = +svg.dataset.w, h = +svg.dataset.h;
    let scale = 1;
    const zoom = (to, cx = canvas.clientWidth / 2, cy = canvas.clientHeight / 2) => {
      const before = scale;
      scale = Math.min(3, Math.max(0.03, to));
      const x = (canvas.scrollLeft + cx) / before, y = (canvas.scrollTop + cy) / before;
      svg.style.width = w * scale + "px";
      svg.style.height = h * scale + "px";
      canvas.scrollLeft = x * scale - cx;
      canvas.scrollTop = y * scale - cy;
    };
    const fit = () => zoom(Math.min(1, (canvas.clientWidth - 4) / w));
    const section = canvas.closest("section");
    all("[data-zoom]", section).forEach(button => button.addEventListener("click", () => {
      const how = button.dataset.zoom;
      if (how === "all") zoom(Math.min(1, (canvas.clientWidth - 4) / w, (canvas.clientHeight - 4) / h));
      else if (how === "fit") fit();
      else zoom(scale * +how);
    }));
    canvas.addEventListener("wheel", event => {
      if (!event.ctrlKey && !event.metaKey) return;
      event.preventDefault();
      const box = canvas.getBoundingClientRect();
      zoom(scale * Math.exp(-event.deltaY / 300), event.clientX - box.left, event.clientY - box.top);
    }, { passive: false });
    let from = null;
    canvas.addEventListener("pointerdown", event => {
      if (event.button) return;
      dragged = false;
      from = [event.clientX, event.clientY, canvas.scrollLeft, canvas.scrollTop];
    });
    addEventListener("pointermove", event => {
      if (!from) return;
      const dx = event.clientX - from[0], dy = event.clientY - from[1];
      if (Math.abs(dx) + Math.abs(dy) > 4) { dragged = true; canvas.classList.add("drag"); }
      if (dragged) { canvas.scrollLeft = from[2] - dx; canvas.scrollTop = from[3] - dy; }
    });
    addEventListener("pointerup", () => { from = null; canvas.classList.remove("drag"); });
    canvas.fit = () => {
      canvas.classList.remove("short");
      canvas.classList.toggle("short", h * Math.min(1, canvas.clientWidth / w) < canvas.clientHeight);
      fit();
    };
    canvas.fit();
  });
  all("[data-memory]").forEach(button => button.addEventListener("click", () =>
    drawMemory(button.closest("section"), +button.dataset.memory)));

  // ---- functions as tabs, colours
  const tabs = all(".tabs a");
  const choose = name => {
    if (!tabs.some(tab => tab.hash === name)) return;
    tabs.forEach(tab => tab.classList.toggle("on", tab.hash === name));
    all("section.function").forEach(section => section.classList.toggle("hidden", "#" + section.id !== name));
    all("section.function:not(.hidden) .canvas").forEach(canvas => canvas.fit());
  };
  tabs.forEach(tab => tab.addEventListener("click", event => { event.preventDefault(); choose(tab.hash); }));
  if (tabs.length > 1) choose((tabs.find(tab => tab.textContent === "@main") || tabs[0]).hash);
  one("#theme").addEventListener("click", () => {
    const root = document.documentElement, system = matchMedia("(prefers-color-scheme:dark)").matches;
    const now = root.dataset.theme || (system ? "dark" : "light");
    root.dataset.theme = now === "dark" ? "light" : "dark";
  });
  refresh();
})();
