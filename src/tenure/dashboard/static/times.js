// Updates relative times every second, by the server's clock.
const UNITS = [["d", 86400], ["h", 3600], ["m", 60], ["s", 1]];
let offset = 0; // of the server's clock, in milliseconds

export function start() {
  setInterval(() => document.hidden || tick(), 1000);
}

/** Called when a page was just rendered: its `data-now` is the server's time. */
export function set() {
  const now = Date.parse(document.querySelector("#main").dataset.now);
  if (now) offset = now - Date.now();
}

export function tick() {
  const now = Date.now() + offset;
  for (const time of document.querySelectorAll("time[data-ago]")) {
    const text = ago((now - Date.parse(time.dateTime)) / 1000);
    if (time.textContent !== text) time.textContent = text;
  }
  for (const time of document.querySelectorAll("time[data-local]")) {
    const text = new Date(time.dateTime).toLocaleString();
    if (time.textContent !== text) time.textContent = text;
  }
}

function ago(seconds) {
  const whole = Math.floor(Math.abs(seconds));
  if (whole < 1) return "0s ago";
  const at = UNITS.findIndex(([, size]) => whole >= size);
  const [unit, size] = UNITS[at];
  let text = `${Math.floor(whole / size)}${unit}`;
  const smaller = UNITS[at + 1];
  if (smaller && whole % size >= smaller[1]) {
    text += ` ${Math.floor((whole % size) / smaller[1])}${smaller[0]}`;
  }
  return seconds > 0 ? `${text} ago` : `in ${text}`;
}

set();
