// The two time series of the overview.
const COLOURS = { completed: "--completed", failed: "--failed", waited: "--pending", ran: "--processing" };
const DASHES = { failed: [6, 3], ran: [6, 3] }; // never by colour alone
const plots = new Map();

export function draw() {
  if (!window.uPlot) return;
  for (const [figure, plot] of plots) {
    if (!figure.isConnected) (plot.destroy(), plots.delete(figure));
  }
  for (const figure of document.querySelectorAll(".chart[data-chart]")) {
    const chart = JSON.parse(figure.dataset.chart);
    const data = [chart.minutes, ...Object.values(chart.lines)];
    if (plots.has(figure)) plots.get(figure).setData(data);
    else plots.set(figure, plot(figure, chart, data));
  }
}

function plot(figure, chart, data) {
  const style = getComputedStyle(document.documentElement);
  const probe = document.createElement("i");
  figure.append(probe);
  const colour = (name) => {
    probe.style.color = `var(${name})`;
    return getComputedStyle(probe).color;
  };
  const axis = { stroke: colour("--dim"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false } };
  const spoken = figure.dataset.unit === "seconds" ? seconds : (value) => (value ?? "–").toLocaleString();
  const options = {
    width: figure.clientWidth,
    height: 160,
    cursor: { y: false, points: { size: 7 } },
    scales: { y: { range: (_, low, high) => [0, Math.max(high * 1.1, figure.dataset.unit === "seconds" ? 0.01 : 4)] } },
    axes: [
      { ...axis, font: `12px ${style.fontFamily}`, size: 28, values: (_, ticks) => ticks.map(clock) },
      { ...axis, font: `12px ${style.fontFamily}`, size: 54, values: (_, ticks) => ticks.map(spoken) },
    ],
    series: [
      { value: (_, at) => (at === null ? "–" : clock(at)), label: "at" },
      ...Object.keys(chart.lines).map((name) => ({
        label: name,
        stroke: colour(COLOURS[name]),
        dash: DASHES[name],
        width: 1.8,
        spanGaps: true,
        points: { show: figure.dataset.unit === "seconds", size: 4 },
        value: (_, value) => spoken(value),
      })),
    ],
  };
  probe.remove();
  figure.replaceChildren();
  const made = new uPlot(options, data, figure);
  new ResizeObserver(() => figure.clientWidth && made.setSize({ width: figure.clientWidth, height: 160 })).observe(figure);
  return made;
}

function clock(at) {
  const time = new Date(at * 1000);
  return [time.getHours(), time.getMinutes()].map((part) => String(part).padStart(2, "0")).join(":");
}

function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  if (value < 1) return `${Math.round(value * 1000)}ms`;
  return value < 60 ? `${+value.toFixed(1)}s` : `${+(value / 60).toFixed(1)}m`;
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const [figure, plot] of plots) (plot.destroy(), plots.delete(figure), figure.replaceChildren());
  draw();
});
addEventListener("load", draw);
