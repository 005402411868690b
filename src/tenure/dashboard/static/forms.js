// Forms that change something answer in place. Commands can be copied. All jobs of a page can be ticked.
import { announce, hold, parsed, release, show } from "./live.js";

const LEAVING = 10_000; // milliseconds: a page that is still here did not leave

export function start() {
  document.addEventListener("click", once);
  document.addEventListener("submit", submit);
  document.addEventListener("click", copy);
  document.addEventListener("change", tick);
  document.addEventListener("keydown", search);
}

export function prepare() {
  for (const hidden of document.querySelectorAll("[data-copy][hidden], [data-all][hidden]")) {
    hidden.hidden = false;
  }
}

/** The second click of a double click is for the button that was there, not for what took its place. */
function once(event) {
  if (event.detail > 1 && event.target.closest("form[method=post] button")) event.preventDefault();
}

async function submit(event) {
  const form = event.target;
  if (form.getAttribute("method") !== "post") return;
  if ("plain" in form.dataset) return hold(LEAVING); // another page comes
  event.preventDefault();
  const button = event.submitter;
  if (button && button.ariaBusy === "true") return;
  hold();
  if (button) button.ariaBusy = "true";
  const message = document.getElementById("message");
  try {
    const body = new URLSearchParams(new FormData(form, button));
    // Not `form.action`: if a button has that name, it is the button.
    const answer = await fetch(form.getAttribute("action"), { method: "POST", body });
    const page = parsed(await answer.text());
    if (!page.querySelector("#main")) throw new Error("not a page of this server"); // a gateway's
    if (page.querySelector("[data-refusal]")) return message.replaceChildren(refusal(page, answer));
    hold(); // another form may have ended, and the page asked for what it was before
    show(page, true);
    if (answer.ok && answer.url !== location.href) {
      history.pushState(null, "", answer.url);
      at = location.pathname + location.search;
    }
    message.replaceChildren(...page.getElementById("message").childNodes);
    if (!document.activeElement || document.activeElement === document.body) message.focus();
  } catch {
    message.replaceChildren(bad("The server did not answer: see whether it is done, and try again."));
  } finally {
    release();
    if (button) button.ariaBusy = null;
  }
}

/** What a page says that came instead of an answer. The form stays, with what was typed. */
function refusal(page, answer) {
  const [title, ...rest] = [...page.querySelectorAll("[data-refusal]")];
  if (page.getElementById("token")) {
    return signedOut(page.getElementById("message").textContent, answer.url, "then repeat it");
  }
  return bad(`${title.textContent}: ${rest.map((part) => part.textContent).join(". ")}`);
}

/** The session ended. The page stays, with what was typed, until it is signed in again. */
export function signedOut(why, address, next) {
  const said = bad("");
  const [text, link] = [document.createElement("span"), document.createElement("a")];
  Object.assign(link, { href: address, target: "_blank", textContent: "Sign in" });
  text.append(why, " ", link, ` in a new tab, ${next}.`);
  said.replaceChildren(text);
  said.dataset.signedOut = "";
  return said;
}

function bad(text) {
  const said = document.createElement("p");
  said.className = "message bad";
  said.textContent = text;
  return said;
}

let at = location.pathname + location.search;
addEventListener("popstate", () => {
  if (at !== location.pathname + location.search) location.reload(); // else only the `#` changed
});

async function copy(event) {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  try {
    await navigator.clipboard.writeText(button.dataset.copy);
    button.textContent = "copied";
    announce("Copied");
  } catch {
    getSelection().selectAllChildren(button.previousElementSibling);
    button.textContent = "selected";
  }
  setTimeout(() => (button.textContent = "copy"), 1500);
}

function tick(event) {
  const boxes = [...document.querySelectorAll("input[name=id]")];
  if ("all" in event.target.dataset) {
    for (const box of boxes) box.checked = event.target.checked;
  } else if (event.target.name !== "id") return;
  const ticked = boxes.filter((box) => box.checked).length;
  const label = document.querySelector(".bulkbar .label");
  if (label) label.textContent = ticked ? `${ticked} selected:` : "Selected:";
}

/** `/` focuses the filter. */
function search(event) {
  const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
  if (event.key !== "/" || typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const field = document.querySelector(".filters input:not([type=hidden])");
  if (field) {
    event.preventDefault();
    field.focus();
  }
}
