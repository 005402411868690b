// Transitions as they happen: a dot runs along the arrow of the transition. A few dots at a time,
// however many there are, and none if the browser asks for reduced motion.
const MAX_DOTS = 5; // per arrow in half a second
const still = matchMedia("(prefers-reduced-motion: reduce)");

export function play(arrows) {
  const picture = [...document.querySelectorAll(".machine svg[role]")].find((svg) => svg.getBoundingClientRect().width);
  if (!picture || still.matches) return;
  for (const [name, transitions] of Object.entries(arrows)) {
    const arrow = [...picture.querySelectorAll("[data-arrow]")].find((one) => one.dataset.arrow.split(",").includes(name));
    if (!arrow) continue;
    const many = Math.min(Math.ceil(Math.log2(transitions + 1)), MAX_DOTS);
    for (let number = 0; number < many; number++) run(picture, arrow, (number * 500) / many);
  }
}

function run(picture, arrow, delay) {
  const dot = document.createElementNS("http://www.w3.org/2000/svg", "circle");
  dot.setAttribute("r", "4.5");
  dot.classList.add("dot", ...[...arrow.classList].filter((name) => name !== "arrow" && name !== "still"));
  picture.insertBefore(dot, picture.querySelector(".label"));
  const long = arrow.getTotalLength();
  const time = 500 + long * 1.6;
  const from = performance.now() + delay;
  const step = (now) => {
    const way = Math.min(Math.max((now - from) / time, 0), 1);
    const at = arrow.getPointAtLength(way * way * (3 - 2 * way) * long);
    dot.setAttribute("cx", at.x);
    dot.setAttribute("cy", at.y);
    if (way < 1 && dot.isConnected) requestAnimationFrame(step);
    else dot.remove();
  };
  requestAnimationFrame(step);
}
