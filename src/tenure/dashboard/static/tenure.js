// The pages work without any of this. With it they are live, and forms answer in place.
import * as charts from "./charts.js";
import * as forms from "./forms.js";
import * as live from "./live.js";
import * as times from "./times.js";

/** What has to be done to a page, or to what is new on it. Doing it twice does no harm. */
export function dress() {
  forms.dress();
  charts.draw();
  times.tick();
}

/** On a narrow screen, where rows of links can be scrolled: to the link that leads here. */
for (const here of document.querySelectorAll("[aria-current]")) {
  const row = here.parentElement.getBoundingClientRect();
  const link = here.getBoundingClientRect();
  here.parentElement.scrollLeft += link.left - row.left - (row.width - link.width) / 2;
}

dress();
times.start();
forms.start();
live.start();
