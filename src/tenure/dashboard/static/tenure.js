// The pages work without scripts. With them they are live, and forms answer in place.
import * as charts from "./charts.js";
import * as forms from "./forms.js";
import * as live from "./live.js";
import * as times from "./times.js";

/** Prepare a page, or what is new on it. Can be called again. */
export function prepare() {
  forms.prepare();
  charts.draw();
  times.tick();
}

/** On a narrow screen, scroll rows of links to the link of this page. */
for (const here of document.querySelectorAll("[aria-current]")) {
  const row = here.parentElement.getBoundingClientRect();
  const link = here.getBoundingClientRect();
  here.parentElement.scrollLeft += link.left - row.left - (row.width - link.width) / 2;
}

// Browsers leave a link that has the focus partly outside its row.
document.addEventListener("focusin", ({ target }) => {
  if (target.closest("nav")) target.scrollIntoView({ block: "nearest", inline: "nearest" });
});

prepare();
times.start();
forms.start();
live.start();
