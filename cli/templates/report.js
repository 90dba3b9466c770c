"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const NS = "http://www.w3.org/2000/svg";
  const make = (name, attributes, text) => {
    const node = document.createElementNS(NS, name);
    for (const key in attributes) node.setAttribute(key, attributes[key]);
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const time = (micros) => {
    if (micros === 0) return "0";
    if (micros >= 3600e6) return (micros / 3600e6).toPrecision(3) + " h";
    if (micros >= 60e6) return (micros / 60e6).toPrecision(3) + " min";
    if (micros >= 1e6) return (micros / 1e6).toPrecision(3) + " s";
    if (micros >= 1e3) return (micros / 1e3).toPrecision(3) + " ms";
    return micros.toPrecision(3) + " µs";
  };
  const bytes = (count) => {
    const units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let at = 0;
    while (count >= 1024 && at + 1 < units.length) { count /= 1024; at += 1; }
    return count.toPrecision(count < 10 ? 2 : 3) + " " + units[at];
  };
  // A round step of an axis.
  const step = (span, count) => {
    const raw = Math.max(span / count, 1e-9);
    const power = Math.pow(10, Math.floor(Math.log10(raw)));
    return [1, 2, 5, 10].map((it) => it * power).find((it) => it >= raw);
  };
  const jobs = data.start.length;
  const wall = Math.max(data.wall, 1);

  // The slices of each worker, in the order of their starts: job, start, duration, class, error.
  const lanes = data.lanes.map(() => []);
  for (let job = 0; job < jobs; job++) {
    lanes[data.lane[job]].push({ job, start: data.start[job], micros: data.micros[job], kind: data.state[job] });
  }
  for (const [job, start, micros, error] of data.earlier) {
    lanes[data.lane[job]].push({ job, start, micros, kind: 3, error });
  }
  lanes.forEach((lane) => lane.sort((a, b) => a.start - b.start));
  const order = data.lanes.map((_, lane) => lane).sort((a, b) =>
    data.lanes[a].localeCompare(data.lanes[b], undefined, { numeric: true }));

  const LEFT = 56, TOP = 18;
  const svg = byId("timeline"), detail = byId("detail"), range = byId("range");
  const rowHeight = Math.max(3, Math.min(18, Math.floor(420 / Math.max(order.length, 1))));
  const height = TOP + rowHeight * order.length + 6;
  let from = 0, to = wall, chosen = null;
  const width = () => Math.max(svg.clientWidth, 320);
  const xOf = (at) => LEFT + (at - from) / (to - from) * (width() - LEFT - 6);

  const draw = () => {
    const w = width();
    svg.setAttribute("viewBox", "0 0 " + w + " " + height);
    svg.style.height = height + "px";
    svg.replaceChildren();
    const tick = step(to - from, w / 110);
    for (let at = Math.ceil(from / tick) * tick; at <= to; at += tick) {
      const x = xOf(at);
      svg.append(make("line", { class: "grid", x1: x, x2: x, y1: TOP - 4, y2: height }));
      svg.append(make("text", { x, y: 11, "text-anchor": "middle" }, time(at)));
    }
    order.forEach((lane, row) => {
      const y = TOP + row * rowHeight;
      if (rowHeight >= 10 || row % Math.ceil(12 / rowHeight) === 0) {
        svg.append(make("text", { x: LEFT - 6, y: y + Math.min(rowHeight, 12) - 2, "text-anchor": "end" }, data.lanes[lane]));
      }
      // One path for each class. Slices that fall on the same pixels become one: there may be a
      // hundred thousand.
      const paths = ["", "", "", ""], last = [-1, -1, -1, -1];
      for (const slice of lanes[lane]) {
        if (slice.start > to || slice.start + slice.micros < from) continue;
        const left = Math.max(xOf(slice.start), LEFT);
        const right = Math.min(Math.max(xOf(slice.start + slice.micros), left + 1), w - 5);
        if (right - last[slice.kind] < 0.5) continue;
        const begin = Math.max(left, last[slice.kind]);
        paths[slice.kind] += "M" + begin.toFixed(1) + " " + (y + 1) + "H" + right.toFixed(1) + "V" + (y + rowHeight - 1) + "H" + begin.toFixed(1) + "Z";
        last[slice.kind] = right + (right - left > 3 ? 0.5 : 0);
      }
      paths.forEach((d, kind) => { if (d) svg.append(make("path", { class: "s" + kind, d })); });
    });
    if (chosen) {
      const x = xOf(chosen.slice.start);
      svg.append(make("rect", {
        class: "mark", x, y: TOP + chosen.row * rowHeight,
        width: Math.max(xOf(chosen.slice.start + chosen.slice.micros) - x, 2), height: rowHeight,
      }));
    }
    range.textContent = time(from) + " to " + time(to);
  };

  const describe = (slice) => {
    const job = slice.job, states = ["done", "failed", "killed", "earlier attempt"];
    const parts = [
      "job " + data.number[job], states[slice.kind], time(slice.micros),
      "started at " + time(slice.start), "worker " + data.lanes[data.lane[job]], "PID " + data.pid[job],
    ];
    if (slice.kind !== 3 && data.attempt[job] > 1) parts.push("attempt " + data.attempt[job]);
    if (data.memory[job]) parts.push(bytes(data.memory[job]));
    if (slice.error) parts.push(slice.error);
    return parts.join(", ") + ": " + data.input[job];
  };
  const choose = (row, index) => {
    const slice = lanes[order[row]] && lanes[order[row]][index];
    if (!slice) return;
    chosen = { row, index, slice };
    detail.textContent = describe(slice);
    if (slice.start < from || slice.start + slice.micros > to) {
      const half = Math.max((to - from) / 2, slice.micros);
      view(slice.start + slice.micros / 2 - half, slice.start + slice.micros / 2 + half);
    } else {
      draw();
    }
  };
  // The last slice of a lane that starts no later.
  const find = (lane, at) => {
    let low = 0, high = lane.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (lane[middle].start <= at) low = middle + 1; else high = middle;
    }
    return low - 1;
  };
  const view = (start, end) => {
    const span = Math.min(Math.max(end - start, 10), wall);
    from = Math.min(Math.max(start, 0), wall - span);
    to = from + span;
    draw();
  };
  const zoom = (factor, at) => view(at - (at - from) * factor, at + (to - at) * factor);
  const point = (event) => {
    const box = svg.getBoundingClientRect();
    const at = from + (event.clientX - box.left - LEFT) / (box.width - LEFT - 6) * (to - from);
    return { at, row: Math.floor((event.clientY - box.top - TOP) / rowHeight) };
  };
  let drag = null;
  svg.addEventListener("pointerdown", (event) => { drag = { x: event.clientX, from, to }; });
  addEventListener("pointerup", () => { drag = null; });
  svg.addEventListener("pointermove", (event) => {
    if (drag) {
      const moved = (drag.x - event.clientX) / (width() - LEFT) * (drag.to - drag.from);
      view(drag.from + moved, drag.to + moved);
      return;
    }
    const { at, row } = point(event);
    const lane = lanes[order[row]];
    if (!lane) return;
    // Within two pixels.
    const near = 2 * (to - from) / width();
    const index = find(lane, at + near);
    if (index >= 0 && lane[index].start + lane[index].micros + near >= at) choose(row, index);
  });
  svg.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.shiftKey) return;
    event.preventDefault();
    zoom(event.deltaY > 0 ? 1.25 : 0.8, point(event).at);
  }, { passive: false });
  svg.addEventListener("dblclick", (event) => zoom(0.5, point(event).at));
  const middle = () => chosen ? chosen.slice.start + chosen.slice.micros / 2 : (from + to) / 2;
  const near = (row) => Math.max(find(lanes[order[row]], (from + to) / 2), 0);
  const keys = {
    ArrowLeft: () => view(from - (to - from) / 4, to - (to - from) / 4),
    ArrowRight: () => view(from + (to - from) / 4, to + (to - from) / 4),
    ArrowUp: () => { const row = Math.max((chosen ? chosen.row : 1) - 1, 0); choose(row, near(row)); },
    ArrowDown: () => { const row = Math.min((chosen ? chosen.row : -1) + 1, order.length - 1); choose(row, near(row)); },
    "+": () => zoom(0.5, middle()), "=": () => zoom(0.5, middle()), "-": () => zoom(2, middle()),
    "0": () => view(0, wall),
    n: () => chosen ? choose(chosen.row, chosen.index + 1) : choose(0, 0),
    p: () => chosen && choose(chosen.row, chosen.index - 1),
  };
  svg.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });
  byId("zoom-in").addEventListener("click", () => zoom(0.5, middle()));
  byId("zoom-out").addEventListener("click", () => zoom(2, middle()));
  byId("zoom-all").addEventListener("click", () => view(0, wall));

  const running = () => {
    const svg = byId("running"), w = Math.max(svg.clientWidth, 320), h = 120;
    const changes = [];
    for (let job = 0; job < jobs; job++) {
      changes.push([data.start[job], 1], [data.start[job] + data.micros[job], -1]);
    }
    for (const [, start, micros] of data.earlier) changes.push([start, 1], [start + micros, -1]);
    changes.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
    // For each column of pixels, the most that ran at once.
    const columns = new Array(Math.max(Math.floor(w - LEFT - 6), 1)).fill(0);
    let count = 0, most = 0, at = 0;
    const columnOf = (micros) => Math.min(Math.floor(micros / wall * columns.length), columns.length - 1);
    for (const [when, change] of changes) {
      for (let column = columnOf(at); column <= columnOf(when); column++) columns[column] = Math.max(columns[column], count);
      count += change; at = when;
      most = Math.max(most, count);
      columns[columnOf(when)] = Math.max(columns[columnOf(when)], count);
    }
    svg.setAttribute("viewBox", "0 0 " + w + " " + h);
    svg.style.height = h + "px";
    svg.replaceChildren();
    const top = Math.max(most, 1), yOf = (value) => h - 16 - value / top * (h - 30);
    for (const value of [0, top]) {
      svg.append(make("line", { class: "grid", x1: LEFT, x2: w - 6, y1: yOf(value), y2: yOf(value) }));
      svg.append(make("text", { x: LEFT - 6, y: yOf(value) + 4, "text-anchor": "end" }, value));
    }
    let d = "M" + LEFT + " " + yOf(0);
    columns.forEach((value, column) => { d += "L" + (LEFT + column) + " " + yOf(value).toFixed(1); });
    svg.append(make("path", { class: "area", d: d + "L" + (LEFT + columns.length) + " " + yOf(0) + "Z" }));
    svg.append(make("text", { x: LEFT, y: h - 3 }, "0"));
    svg.append(make("text", { x: w - 6, y: h - 3, "text-anchor": "end" }, time(wall)));
    byId("running-text").textContent = "At most " + most + " ran at once.";
  };

  const durations = () => {
    const svg = byId("durations"), w = Math.max(svg.clientWidth, 320), h = 140;
    svg.setAttribute("viewBox", "0 0 " + w + " " + h);
    svg.style.height = h + "px";
    svg.replaceChildren();
    if (jobs === 0) { byId("durations-text").textContent = "No job ran."; return; }
    const sorted = data.micros.slice().sort((a, b) => a - b);
    const low = Math.log10(Math.max(sorted[0], 1)), high = Math.log10(Math.max(sorted[jobs - 1], 1));
    const count = Math.max(1, Math.min(40, Math.floor(w / 24))), span = Math.max(high - low, 1e-9);
    const bins = new Array(count).fill(0);
    for (const micros of sorted) bins[Math.min(Math.floor((Math.log10(Math.max(micros, 1)) - low) / span * count), count - 1)] += 1;
    const most = Math.max(...bins), each = (w - LEFT - 6) / count;
    bins.forEach((value, bin) => {
      const tall = value / most * (h - 34);
      const bar = make("rect", { class: "s0", x: LEFT + bin * each + 1, y: h - 18 - tall, width: Math.max(each - 2, 1), height: tall });
      bar.append(make("title", {}, value + " jobs from " + time(Math.pow(10, low + bin / count * span))));
      svg.append(bar);
    });
    svg.append(make("text", { x: LEFT - 6, y: 20, "text-anchor": "end" }, most));
    svg.append(make("text", { x: LEFT, y: h - 4 }, time(sorted[0])));
    svg.append(make("text", { x: w - 6, y: h - 4, "text-anchor": "end" }, time(sorted[jobs - 1])));
    const at = (share) => time(sorted[Math.min(Math.floor(share * jobs), jobs - 1)]);
    byId("durations-text").textContent = "Median " + at(0.5) + ", nine of ten within " + at(0.9) + ", 99 of 100 within " + at(0.99) + ". The axis is logarithmic.";
  };

  const table = byId("failures");
  if (table) {
    const body = table.tBodies[0], rows = Array.from(body.rows);
    const search = byId("search"), found = byId("found");
    const filter = () => {
      const wanted = search.value.toLowerCase();
      let count = 0;
      for (const row of rows) {
        row.hidden = !row.textContent.toLowerCase().includes(wanted);
        count += row.hidden ? 0 : 1;
      }
      found.textContent = wanted ? count + " of " + rows.length : "";
    };
    search.addEventListener("input", filter);
    table.tHead.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button) return;
      const head = button.parentElement, column = head.cellIndex;
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of head.parentElement.cells) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const value = (row) => row.cells[column].dataset.value;
      const compare = (a, b) => value(a) !== undefined
        ? value(a) - value(b)
        : row(a).localeCompare(row(b), undefined, { numeric: true });
      const row = (it) => it.cells[column].textContent;
      rows.sort((a, b) => up ? compare(a, b) : compare(b, a));
      body.append(...rows);
    });
  }

  const all = () => { draw(); running(); durations(); };
  all();
  let resized = 0;
  addEventListener("resize", () => { cancelAnimationFrame(resized); resized = requestAnimationFrame(all); });
})();
