// Follows the event stream. When jobs of the page change, it fetches the page again and changes what
// differs in place, never more often than the server and this browser can keep up with.
import { signedOut } from "./forms.js";
import { play } from "./machine.js";
import { prepare } from "./tenure.js";
import * as times from "./times.js";

const MIN_PAUSE = 500; // milliseconds between two fetches
const SHARE = 4; // a fetch that took a second is followed by a pause of four
const QUIET = 5000; // fetch anyway: a silent worker or a paused queue causes no transition
const MOVES = 1000; // the same on a page with the progress of a job
let stream = null;
let timer = 0;
let fetching = false;
let wanted = false;
let pause = MIN_PAUSE;
let fetched = 0;
let held = false;
let releasing = 0;
let asking = null;
let lostAt = "";

export function start() {
  if (!document.body.dataset.live) return;
  document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
  addEventListener("pagehide", close);
  addEventListener("pageshow", (event) => event.persisted && (release(), open()));
  setInterval(() => stream && Date.now() - fetched > quiet() && want(), 500);
  if (!document.hidden) open();
}

function open() {
  if (stream || !document.body.dataset.live) return;
  stream = new EventSource(document.body.dataset.live);
  stream.addEventListener("hello", () => {
    document.querySelector("#message [data-signed-out]")?.remove(); // it was in another window
    state("", "live");
    want(); // jobs may have changed since the page was made, or since the connection was lost
  });
  stream.addEventListener("transitions", (event) => changed(JSON.parse(event.data)));
  stream.addEventListener("error", () => {
    state("lost", "connection lost");
    if (stream && stream.readyState === EventSource.CLOSED) {
      close(); // refused, not cut: the server is starting or we are signed out
      setTimeout(() => document.hidden || waits() || (want(), open()), 2000);
    }
  });
}

function close() {
  if (stream) stream.close();
  stream = null;
}

/** What is lost says since when: from then on, the page does not change. */
function state(kind, text) {
  lostAt = kind === "lost" ? lostAt || new Date().toLocaleTimeString([], { timeStyle: "short" }) : "";
  if (lostAt) text += ` since ${lostAt}`;
  const shown = document.getElementById("live");
  if (!shown) return;
  const before = shown.lastElementChild.textContent;
  const wasLost = shown.classList.contains("lost");
  shown.hidden = false;
  shown.className = `live ${kind}`;
  shown.lastElementChild.textContent = text;
  if (kind === "lost" && before !== text) announce(text[0].toUpperCase() + text.slice(1));
  if (kind === "" && wasLost) announce("Connected again");
}

const quiet = () => (document.querySelector(".how-far") ? MOVES : QUIET);
const watches = () => document.querySelector("#main").dataset.watch || "none";

function changed(note) {
  play(note.arrows);
  const watch = watches();
  const concerned = watch === "all" || (note.jobs === null && watch !== "none");
  if (concerned || (note.jobs && note.jobs.includes(watch.slice(4)))) want();
}

/** Fetch nothing until `release`, and drop what was asked: an action changes the page or leaves it.
    A page that is left releases itself after so many milliseconds: a person may have stopped that. */
export function hold(milliseconds) {
  clearTimeout(releasing);
  held = true;
  if (asking) asking.abort();
  if (milliseconds) releasing = setTimeout(release, milliseconds);
}

export function release() {
  clearTimeout(releasing);
  held = false;
  if (!document.hidden && !waits()) open();
  want();
}

/** Whether a form waits for its person to sign in: a refresh would lead to that, without the form. */
const waits = () => document.querySelector("#message [data-signed-out]") !== null;

/** Whether a form holds text that was not sent. */
const typed = () =>
  [...document.querySelectorAll("#main :is(input, textarea)")].some(
    (field) => field.value !== field.defaultValue,
  );

function stay(address) {
  const message = document.getElementById("message");
  message.replaceChildren(signedOut("You are signed out.", address, "then continue here"));
  close();
  state("lost", "signed out");
}

/** Fetch the page as soon as the pause is over. */
function want() {
  if (watches() === "none") return;
  wanted = true;
  if (fetching || timer) return;
  timer = setTimeout(refresh, Math.max(0, fetched + pause - Date.now()));
}

async function refresh() {
  timer = 0;
  if (document.hidden || held || waits()) return;
  if (document.querySelector("input[name=id]:checked")) {
    state("held", "held while you select");
    timer = setTimeout(refresh, 1000);
    return;
  }
  fetching = true;
  wanted = false;
  const began = Date.now();
  try {
    asking = new AbortController();
    const headers = { Accept: "text/html", "Tenure-Refresh": "1" }; // leaves the message to its page
    const answer = await fetch(location.href, { headers, signal: asking.signal });
    if (answer.redirected) return typed() ? stay(answer.url) : location.reload(); // to sign in
    if (answer.ok) {
      show(parsed(await answer.text()));
      if (stream && stream.readyState === EventSource.OPEN) state("", "live");
    } else if (answer.status >= 500) {
      state("lost", "not up to date"); // the database may be away
    }
  } catch {
    if (!asking.signal.aborted) state("lost", "connection lost");
  } finally {
    fetched = Date.now();
    pause = Math.max(MIN_PAUSE, SHARE * (fetched - began));
    fetching = false;
  }
  if (wanted) want();
}

export const parsed = (text) => new DOMParser().parseFromString(text, "text/html");

/** Change the page to what the server sent, and keep what a person typed or opened. */
export function show(page, whole = false) {
  const before = spoken(document);
  const main = page.querySelector("#main");
  document.title = page.title;
  const shown = document.querySelector("#main");
  Object.assign(shown.dataset, { watch: "none" }, main.dataset);
  Idiomorph.morph(shown, main.innerHTML, {
    morphStyle: "innerHTML",
    callbacks: {
      beforeNodeMorphed: (old, fresh) => {
        if (old.nodeType !== 1) return true;
        if (!whole && /^(INPUT|SELECT|TEXTAREA)$/.test(old.tagName)) return false;
        if (old.classList.contains("chart")) {
          old.dataset.chart = fresh.dataset.chart;
          return false;
        }
        return true;
      },
      beforeAttributeUpdated: (name, node) => !(name === "open" && node.tagName === "DETAILS"),
      beforeNodeRemoved: (node) => !(node.classList && node.classList.contains("dot")),
    },
  });
  times.set();
  prepare();
  for (const [name, value] of spoken(document)) {
    if (before.has(name) && before.get(name) !== value) announce(value);
  }
}

/** The texts that are announced when they change: the status of a job, the health line. */
function spoken(page) {
  const parts = [...page.querySelectorAll("[data-announce]")];
  return new Map(parts.map((part, at) => [at, part.textContent.replace(/\d[\d,.]*/g, "").trim()]));
}

export function announce(text) {
  document.getElementById("announce").textContent = text;
}
