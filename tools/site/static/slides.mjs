// Shows one slide at a time. The address keeps its number; without JavaScript all slides are below each other.
const slides = [...document.querySelectorAll(".slide")];
let all = false;

const now = () => Math.min(Math.max(Number(location.hash.replace("#slide-", "")) || 1, 1), slides.length);
function show() {
  slides.forEach((slide, n) => (slide.hidden = !all && n + 1 !== now()));
  document.getElementById("count").textContent = `${now()} of ${slides.length}`;
}
const turn = (by) => (location.hash = `#slide-${Math.min(Math.max(now() + by, 1), slides.length)}`);

document.getElementById("before").addEventListener("click", () => turn(-1));
document.getElementById("after").addEventListener("click", () => turn(1));
addEventListener("hashchange", show);
addEventListener("keydown", (event) => {
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key; // N also with Shift or Caps Lock
  if (["ArrowRight", "PageDown"].includes(key)) turn(1);
  if (["ArrowLeft", "PageUp"].includes(key)) turn(-1);
  if (key === "n") document.body.classList.toggle("noted");
  if (key === "p") {
    all = !all;
    show();
  }
});
show();
