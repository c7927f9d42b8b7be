// Shows the values of a plot at the pointer.
for (const plot of document.querySelectorAll("[data-points]")) {
  const points = JSON.parse(plot.dataset.points);
  const output = plot.closest("figure").querySelector("output"), resting = output.textContent;
  const rule = plot.appendChild(Object.assign(document.createElement("i"), {className: "rule"}));
  plot.addEventListener("pointermove", event => {
    const box = plot.getBoundingClientRect(), at = (event.clientX - box.left) / box.width;
    const [x, text] = points.reduce((best, one) => Math.abs(one[0] - at) < Math.abs(best[0] - at) ? one : best);
    output.textContent = text;
    rule.style.left = 100 * x + "%";
    rule.style.opacity = 1;
  });
  plot.addEventListener("pointerleave", () => {
    output.textContent = resting;
    rule.style.opacity = 0;
  });
}
