// Reading values under the pointer: a line at the nearest point, and the values of every line there.
for (const plot of document.querySelectorAll(".plot[data-x]")) {
  const [low, high, isLog] = JSON.parse(plot.dataset.x);
  const place = isLog ? Math.log10 : (value) => value;
  const lines = [...plot.querySelectorAll("path[data-points]")].map((path) => ({
    name: path.dataset.name, colour: path.style.stroke, points: JSON.parse(path.dataset.points),
  }));
  const tip = plot.appendChild(document.createElement("div"));
  tip.className = "tip";
  tip.hidden = true;
  const spell = (value) => value.toLocaleString("en", { maximumSignificantDigits: 4 });
  plot.addEventListener("pointerleave", () => { tip.hidden = true; });
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const share = (event.clientX - box.left) / box.width;
    if (share < 0 || share > 1 || !lines.length) { tip.hidden = true; return; }
    const wanted = place(low) + share * (place(high) - place(low));
    const near = (points) => points.reduce((best, point) =>
      Math.abs(place(point[0]) - wanted) < Math.abs(place(best[0]) - wanted) ? point : best);
    const found = lines.map((line) => ({ ...line, point: near(line.points) }));
    const x = near(found.map((line) => line.point))[0];
    tip.replaceChildren(`${plot.dataset.xLabel} ${spell(x)}`, ...found.map((line) => {
      const row = document.createElement("b");
      row.style.color = line.colour;
      row.textContent = `${line.name} ${spell(line.point[1])}`;
      return row;
    }));
    const at = (place(x) - place(low)) / (place(high) - place(low));
    tip.style.left = `${at * 100}%`;
    tip.classList.toggle("left", at > 0.5);
    tip.hidden = false;
  });
}
