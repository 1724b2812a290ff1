"use strict";
// Draws the panels with Plotly (packed in this file), in the colours the reader prefers; sorts tables.
// Text reaches the page through textContent or through Plotly's escaped labels only.
const read = (id) => document.getElementById(id).textContent;
const root = document.documentElement;

async function unpack(id) {
  const packed = Uint8Array.from(atob(read(id).trim()), (char) => char.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

// Figures carry the light colours; each has one dark counterpart.
function themed(value, dark) {
  if (typeof value === "string") return dark && Object.hasOwn(dark, value) ? dark[value] : value;
  if (Array.isArray(value)) return value.map((item) => themed(item, dark));
  if (value && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, themed(item, dark)]));
  }
  return value;
}

// Blank the budget labels that would touch in a narrow panel; the grid lines stay.  The last label always stays.
function thinLabels({ margin, xaxis }, width) {
  const scale = (width - margin.l - margin.r) / (xaxis.range[1] - xaxis.range[0]);
  const place = (value) => (xaxis.type === "log" ? Math.log10(value) : value) * scale;
  const room = 8 + 6.3 * Math.max(0, ...xaxis.ticktext.map((text) => text.length));
  const last = xaxis.tickvals.length - 1;
  let free = -Infinity;
  xaxis.ticktext = xaxis.ticktext.map((text, index) => {
    const at = place(xaxis.tickvals[index]);
    const clear = at >= free && (index === last || at + room <= place(xaxis.tickvals[last]));
    if (clear || index === last) free = at + room;
    return xaxis.tickangle || clear || index === last ? text : "";
  });
}

async function drawCharts() {
  const { figures, dark } = JSON.parse(read("figures"));
  const script = document.createElement("script");
  script.textContent = await unpack("plotly"); // runs only because the content policy names its hash
  document.head.append(script);
  const preference = matchMedia("(prefers-color-scheme: dark)");
  const touch = matchMedia("(pointer: coarse)").matches;
  const config = {
    displayModeBar: matchMedia("(hover: hover)").matches ? "hover" : false,
    displaylogo: false,
    responsive: true,
    scrollZoom: false,
    modeBarButtons: [["zoomIn2d", "zoomOut2d", "resetScale2d", "toImage"]],
  };
  const draw = (id, night) => {
    const figure = themed(figures[id], night ? dark : null);
    thinLabels(figure.layout, document.getElementById(id).clientWidth);
    if (touch) figure.layout.dragmode = false; // a swipe scrolls the page
    return Plotly.react(id, figure.data, figure.layout, config);
  };
  let drawn = 0;
  for (const id of Object.keys(figures)) {
    const place = document.getElementById(id);
    const still = place.firstElementChild;
    await draw(id, preference.matches);
    still.remove();
    place.on("plotly_click", (event) => {
      const point = event.points[0];
      location.hash = figures[id].anchors[point.curveNumber][point.pointNumber];
    });
    drawn += 1;
    root.dataset.charts = String(drawn);
    await new Promise((resume) => setTimeout(resume)); // the page stays usable while it draws
  }
  for (const width of ["(max-width: 760px)", "(min-width: 1560px)"]) {
    matchMedia(width).addEventListener("change", () => redraw(preference.matches));
  }
  const redraw = (night) => Object.keys(figures).forEach((id) => draw(id, night));
  preference.addEventListener("change", (event) => redraw(event.matches));
  addEventListener("beforeprint", () => redraw(false));
  addEventListener("afterprint", () => redraw(preference.matches));
}

function sortable(table) {
  const buttons = [...table.querySelectorAll("button.sort")];
  buttons.forEach((button, column) => button.addEventListener("click", () => {
    const head = button.parentElement;
    const down = head.getAttribute("aria-sort") === "ascending";
    buttons.forEach((other) => other.parentElement.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = (row) => {
      const cell = row.cells[column];
      return cell.dataset.v === undefined ? cell.textContent : cell.dataset.v === "" ? null : Number(cell.dataset.v);
    };
    const order = (a, b) => {
      if (a === null || b === null) return a === b ? 0 : a === null ? 1 : -1; // missing figures stay last
      const less = typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true });
      return down ? -less : less;
    };
    const body = table.tBodies[0];
    body.append(...[...body.rows].sort((a, b) => order(key(a), key(b))));
  }));
}

document.querySelectorAll("table.sortable").forEach(sortable);
drawCharts().then(
  () => { root.dataset.state = "drawn"; },
  (error) => { root.dataset.state = "not drawn"; root.dataset.error = String(error); }, // the still charts remain
);
