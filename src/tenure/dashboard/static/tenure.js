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

dress();
times.start();
forms.start();
live.start();
