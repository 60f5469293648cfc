"use strict";
// Draws the charts from the data in the page, in the colors of its style sheet.

const report = JSON.parse(document.getElementById("report-data").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const hidden = {runs: new Set(), roles: new Set(report.hidden_roles)};
const logarithmic = {};
for (const chart of report.charts) logarithmic[chart.key] = chart.logarithmic === true;

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
const runColor = (run) => color("run-" + (run % 8));
const element = (chart) => document.getElementById("chart-" + chart.key);
// Plotly interprets some tags in labels; names are plain text.
const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;");

// Too narrow for a hover box with the values of all lines.
const narrow = (chart) => element(chart).offsetWidth < 480;

function makeLine(line, mixed) {
  // Colors distinguish training and evaluation of a single run, or several runs.
  const single = report.runs.length === 1;
  const base = {x: line.x, y: line.y, text: line.text.map(plain), name: plain(line.name), type: "scatter"};
  const lineColor = runColor(single && line.role !== "train" ? 1 : line.run);
  if (line.role === "train") {
    return {...base, mode: line.x.length > 1 ? "lines" : "markers", opacity: mixed && !single ? 0.55 : 1,
      line: {color: lineColor, width: mixed && !single ? 1.5 : 2}, marker: {color: lineColor}};
  }
  const raw = line.role === "raw";
  return {...base, mode: "lines+markers", line: {color: lineColor, width: 2, dash: raw ? "dot" : "solid"},
    marker: {color: lineColor, size: 6, symbol: raw ? "x" : "circle"}};
}

function makeTraces(chart) {
  const shown = chart.series.filter((s) => !hidden.runs.has(s.run) && !hidden.roles.has(s.role));
  if (chart.kind === "curve") {
    const mixed = shown.some((s) => s.role !== "train");
    const value = `%{y:${chart.value_format}} at %{text}`;
    const hovertemplate = narrow(chart) ? `${value}<br>%{fullData.name}<extra></extra>` : value;
    return shown.map((s) => ({...makeLine(s, mixed), hovertemplate}));
  }
  const named = (s, more) => ({x: s.x, y: s.y, text: s.text.map(plain), name: plain(s.name), ...more});
  if (chart.kind === "reliability") {
    const diagonal = {x: [0, 1], y: [0, 1], mode: "lines", hoverinfo: "skip", showlegend: false,
      line: {color: color("muted"), width: 1, dash: "dash"}};
    return [diagonal, ...shown.map((s) => named(s, {mode: "lines+markers", cliponaxis: false,
      line: {color: runColor(s.run), width: 1.5},
      marker: {color: runColor(s.run), opacity: 1, line: {width: 0}, size: s.size},
      hovertemplate: "%{y:.1%} accuracy at %{x:.1%} confidence (%{text})"}))];
  }
  if (chart.kind === "ranks") {
    return shown.map((s) => named(s, {mode: "lines", line: {color: runColor(s.run), width: 2},
      hovertemplate: "%{text}: %{y:.1%}"}));
  }
  if (chart.kind === "confusion") {
    const sums = chart.cells.map((row) => Math.max(1, row.reduce((a, b) => a + b, 0)));
    const names = chart.names.map(plain);
    return [{type: "heatmap", z: chart.cells.map((row, i) => row.map((n) => n / sums[i])),
      text: chart.cells.map((row) => row.map((n) => n ? n.toLocaleString("en") : "")),
      customdata: chart.cells.map((row, i) => row.map((n, j) => [n, names[i], names[j]])),
      texttemplate: chart.names.length <= 20 ? "%{text}" : "", zmin: 0, zmax: 1,
      colorscale: [[0, color("panel")], [1, color("strong")]], xgap: 1, ygap: 1,
      colorbar: {tickformat: ".0%", thickness: 10, outlinewidth: 0, len: 0.8,
        title: {text: "fraction of true class", side: "right"}},
      hovertemplate: "%{customdata[1]} taken for %{customdata[2]}: %{customdata[0]:,} (%{z:.1%})<extra></extra>"}];
  }
  return shown.map((s) => named(s, {type: "bar", textposition: "none", marker: {color: runColor(s.run)},
    hovertemplate: "%{text}: %{y:.1%}"}));
}

function makeLayout(chart) {
  const axis = {gridcolor: color("line"), linecolor: color("muted"), zeroline: false, automargin: true,
    ticks: "outside", tickcolor: color("line"), title: {standoff: 10}};
  const percent = chart.value_format.endsWith("%");
  const layout = {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false,
    font: {family: "inherit", size: 12, color: color("ink")},
    margin: {l: 56, r: 12, t: 10, b: 44}, hovermode: "closest", bargap: 0.15,
    hoverlabel: {bgcolor: color("panel"), bordercolor: color("line"), font: {color: color("ink")}},
    modebar: {bgcolor: "rgba(0,0,0,0)", color: color("muted"), activecolor: color("link")},
    xaxis: {...axis, title: {text: chart.x_title, standoff: 10}},
    yaxis: {...axis, title: {text: chart.y_title, standoff: 10}, tickformat: percent ? ".4~p" : ""},
  };
  if (chart.kind === "curve") {
    layout.yaxis.type = logarithmic[chart.key] ? "log" : "linear";
    if (logarithmic[chart.key]) Object.assign(layout.yaxis, {dtick: "D2", minorloglabels: "complete"});
    const position = chart.x_title === "epoch" ? "%{x:.2f}" : "%{x:,d}";
    layout.xaxis.unifiedhovertitle = {text: `${chart.x_title} ${position}`};
    if (!narrow(chart)) layout.hovermode = "x unified";
    if (["images_per_second", "input_wait"].includes(chart.key)) layout.yaxis.rangemode = "tozero";
    // Without a limit, the axis of a constant share would reach far above 100%.
    if (percent) layout.yaxis.autorangeoptions = {clipmax: 1.02};
    layout.xaxis.rangemode = "tozero";
  } else if (chart.kind === "reliability") {
    layout.xaxis.range = layout.yaxis.range = [-0.02, 1.02];
    layout.xaxis.tickformat = ".0%";
  } else if (chart.kind === "histogram") {
    layout.xaxis.range = [0, 1];
    layout.xaxis.tickformat = ".0%";
  } else if (chart.kind === "classes") {
    layout.xaxis.tickvals = chart.names.map((_, i) => i);
    layout.xaxis.ticktext = chart.names.map(plain);
    layout.yaxis.range = [0, 1];
  } else if (chart.kind === "ranks") {
    layout.yaxis.range = [0, 1.02];
  } else if (chart.kind === "confusion") {
    const ticks = {tickvals: chart.names.map((_, i) => i), ticktext: chart.names.map(plain), showgrid: false};
    if (chart.names.length > 40) Object.assign(ticks, {showticklabels: false, ticks: ""});
    Object.assign(layout.xaxis, ticks);
    Object.assign(layout.yaxis, ticks, {autorange: "reversed", tickformat: ""});
  }
  return layout;
}

const options = {responsive: true, displaylogo: false,
  displayModeBar: matchMedia("(hover: hover)").matches ? "hover" : false,
  modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d"]};

function draw(chart) {
  const box = element(chart);
  if (!box || !box.offsetWidth) return;  // in a closed <details>; drawn when it opens
  const first = !box.data;
  Plotly.react(box, makeTraces(chart), makeLayout(chart), options);
  if (first && chart.kind === "curve") box.on("plotly_relayout", (change) => follow(chart, change));
}

// Zooming the x axis of one curve zooms all curves.
let following = false;
function follow(chart, change) {
  const range = change["xaxis.range"] || (change["xaxis.range[0]"] !== undefined &&
    [change["xaxis.range[0]"], change["xaxis.range[1]"]]);
  if (following || !(range || change["xaxis.autorange"])) return;
  following = true;
  const others = report.charts.filter((c) => c.kind === "curve" && c !== chart && element(c) && element(c).data);
  const update = range ? {"xaxis.range": [...range]} : {"xaxis.autorange": true};
  Promise.all(others.map((c) => Plotly.relayout(element(c), {...update}))).finally(() => { following = false; });
}

const drawAll = () => report.charts.forEach(draw);
drawAll();
dark.addEventListener("change", drawAll);
document.querySelectorAll("details").forEach((details) => details.addEventListener("toggle", () => {
  report.charts.filter((chart) => details.contains(element(chart))).forEach(draw);
}));

document.querySelectorAll("[data-logarithmic]").forEach((button) => {
  button.addEventListener("click", () => {
    const key = button.dataset.logarithmic;
    logarithmic[key] = !logarithmic[key];
    button.textContent = logarithmic[key] ? "linear axis" : "log axis";
    draw(report.charts.find((chart) => chart.key === key));
  });
});

document.querySelectorAll(".legend input").forEach((box) => {
  box.addEventListener("change", () => {
    const [set, key] = box.dataset.run !== undefined
      ? [hidden.runs, Number(box.dataset.run)] : [hidden.roles, box.dataset.role];
    if (box.checked) set.delete(key); else set.add(key);
    drawAll();
  });
});

// Tables are sorted by a click on a column's header, and filtered by text.
document.querySelectorAll("table.sortable").forEach((table) => {
  const heads = [...table.tHead.rows[0].cells];
  const value = (row, column) => row.cells[column].textContent.replace(/[,%]/g, "");
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    if (head.textContent === "F1") head.setAttribute("aria-sort", "ascending");  // as written
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((h) => h.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const [p, q] = [value(a, column), value(b, column)];
        const order = p !== "" && q !== "" && !isNaN(p) && !isNaN(q) ? p - q : p.localeCompare(q);
        return down ? -order : order;
      });
      table.tBodies[0].append(...rows);
    });
  });
});
document.querySelectorAll("input[data-filter]").forEach((box) => {
  box.addEventListener("input", () => {
    const wanted = box.value.toLowerCase();
    for (const row of document.getElementById(box.dataset.filter).tBodies[0].rows) {
      row.hidden = !row.textContent.toLowerCase().includes(wanted);
    }
  });
});

// Highlights the navigation entry of the visible section.
const links = new Map([...document.querySelectorAll("nav a")].map((a) => [a.hash.slice(1), a]));
const reading = new IntersectionObserver((entries) => entries.forEach((entry) => {
  const link = links.get(entry.target.id);
  if (!link || !entry.isIntersecting) return;
  links.forEach((a) => a.classList.remove("here"));
  link.classList.add("here");
}), {rootMargin: "-20% 0px -75% 0px"});
document.querySelectorAll("section[id]").forEach((section) => reading.observe(section));
