"use strict";
// Everything shown here stands in the page; the script sorts, filters, draws and opens.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const table = document.getElementById("table");
  const body = table.tBodies[0];
  const dark = matchMedia("(prefers-color-scheme: dark)");

  const make = (name, content, parent) => {
    const element = document.createElement(name);
    if (content !== undefined) element.textContent = content;
    if (parent) parent.append(element);
    return element;
  };

  // Colours: one per method, the same everywhere.
  const slot = (method) => Math.max(0, data.methods.indexOf(method)) % 12;
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  for (const mark of document.querySelectorAll("[data-method].swatch, [data-method].dot")) {
    mark.style.background = `var(--c${slot(mark.dataset.method)})`;
  }

  // Sorting: empty values go last, whichever way.
  for (const button of table.querySelectorAll("th button")) {
    button.addEventListener("click", () => {
      const head = button.closest("th");
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const number = button.dataset.kind === "number";
      const key = (row) => row.cells[head.cellIndex].dataset.sort;
      const rows = [...body.rows].sort((a, b) => {
        const [x, y] = [key(a), key(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        return (number ? x - y : x.localeCompare(y)) * (up ? 1 : -1);
      });
      body.append(...rows);
    });
  }

  // Filters.
  const text = document.getElementById("filter-text");
  const choices = ["family", "dataset", "method"].map((name) => [
    name, document.getElementById(`filter-${name}`),
  ]);
  const filter = () => {
    const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of body.rows) {
      const content = row.textContent.toLowerCase();
      const fits = words.every((word) => content.includes(word)) &&
        choices.every(([name, select]) => !select.value || row.dataset[name] === select.value);
      row.hidden = !fits;
      shown += fits;
    }
    document.getElementById("shown").textContent = `${shown} of ${body.rows.length} lines`;
  };
  text.addEventListener("input", filter);
  for (const [, select] of choices) select.addEventListener("change", filter);
  text.form.addEventListener("submit", (event) => event.preventDefault());
  filter();

  // Figures: drawn when they come into view, drawn again when the colour scheme changes.
  const axis = (given) => ({
    ...given, automargin: true, gridcolor: css("--line"), zerolinecolor: css("--line"), linecolor: css("--line"),
  });
  const layout = (given, legend) => ({
    margin: { l: 58, r: 12, t: 12, b: 56 + legend }, height: 340 + legend, autosize: true,
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: css("--ink") },
    legend: { orientation: "h", yref: "container", y: 0, yanchor: "bottom" }, hoverlabel: { namelength: -1 },
    ...given, xaxis: axis(given.xaxis), yaxis: axis(given.yaxis),
  });
  const coloured = (trace) => {
    const colour = css(`--c${slot(trace.meta)}`);
    const own = { ...trace, line: { ...trace.line, color: colour }, marker: { ...trace.marker, color: colour } };
    if (trace.fill) own.fillcolor = colour;
    if (trace.error_x) own.error_x = { ...trace.error_x, color: colour };
    return own;
  };
  // Plotly is 5 MB of text: it is read after the table is shown, or when a figure is wanted earlier.
  const plotly = () => {
    if (!window.Plotly) make("script", document.getElementById("plotly").textContent, document.head);
    return window.Plotly;
  };
  addEventListener("load", () => setTimeout(plotly, 100));
  const drawn = new Map();
  const draw = (element, figure) => {
    drawn.set(element, figure);
    const named = figure.data.filter((trace) => trace.name && trace.showlegend !== false).length;
    const rows = named > 1 ? Math.ceil(named / (element.clientWidth < 500 ? 1 : 2)) : 0;
    plotly().react(element, figure.data.map(coloured), layout(figure.layout, 22 * rows),
      { responsive: true, displayModeBar: false });
  };
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      watcher.unobserve(entry.target);
      draw(entry.target, data.figures[entry.target.id]);
    }
  }, { rootMargin: "300px" });
  for (const plot of document.querySelectorAll("figure .plot")) watcher.observe(plot);
  dark.addEventListener("change", () => {
    for (const [element, figure] of drawn) if (element.isConnected) draw(element, figure);
  });

  // Provenance of a row.
  const dialog = document.getElementById("provenance");
  const inside = document.getElementById("provenance-body");
  const describe = (run, method) => {
    make("h3", `Seed ${run.seed}`, inside);
    const command = make("pre", run.command, inside);
    const copy = make("button", "Copy command", inside);
    copy.type = "button";
    copy.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(run.command);
        copy.textContent = "Copied";
      } catch { // the browser does not allow it: the text is ready for the keyboard
        getSelection().selectAllChildren(command);
        copy.textContent = "Press Ctrl+C";
      }
    });
    const facts = make("dl", undefined, inside);
    for (const [name, fact] of Object.entries({ run: run.run_id, ...run.facts })) {
      make("dt", name, facts);
      make("dd", fact, facts);
    }
    if (run.values.length) {
      const plot = make("div", undefined, inside);
      plot.className = "plot";
      draw(plot, {
        data: [{ type: "histogram", x: run.values, nbinsx: 30, meta: method, opacity: 0.8 }],
        layout: {
          height: 180, xaxis: { title: { text: `${run.unit} of an episode` } },
          yaxis: { title: { text: "episodes" } }, bargap: 0.05,
        },
      });
    }
    const more = make("details", undefined, inside);
    make("summary", "Configuration and cost", more);
    make("pre", JSON.stringify({ config: run.config, cost: run.cost }, null, 1), more);
  };
  const open = (row) => {
    const cells = [...row.cells].slice(0, 2).map((cell) => cell.dataset.sort);
    document.getElementById("provenance-title").textContent = `${cells[1]} on ${cells[0]}`;
    inside.replaceChildren();
    dialog.showModal();
    const runs = data.lines[row.dataset.line];
    if (!runs.length) make("p", "No run has finished.", inside);
    runs.forEach((run) => describe(run, row.dataset.method));
  };
  body.addEventListener("click", (event) => open(event.target.closest("tr")));
  body.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !event.target.matches("tr")) return;
    event.preventDefault(); // or the key would also press the button that gets the focus
    open(event.target);
  });
  document.getElementById("close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());

  document.documentElement.dataset.ready = String(performance.now());
})();
