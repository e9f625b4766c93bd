// Reading a token's numbers: what it was worth, and how likely it was in engine and trainer.
if (document.querySelector(".token[data-token]")) {
  const tip = document.body.appendChild(document.createElement("div"));
  tip.className = "token-tip";
  tip.hidden = true;
  const names = ["advantage", "trainer / engine", "log p, engine", "log p, trainer", "log p, learned"];
  const spell = (value) => value.toLocaleString("en", { maximumSignificantDigits: 5 });
  document.addEventListener("pointerover", (event) => {
    const token = event.target.closest?.(".token[data-token]");
    tip.hidden = !token;
    if (!token) return;
    const head = document.createElement("b");
    head.textContent = token.textContent;
    tip.replaceChildren(head, ...JSON.parse(token.dataset.token).map((value, index) => {
      const row = document.createElement("span");
      const name = row.appendChild(document.createElement("i"));
      name.textContent = names[index];
      row.append(value === null ? "unknown" : spell(value));
      return row;
    }));
    const box = token.getBoundingClientRect();
    const left = Math.min(box.left, document.documentElement.clientWidth - tip.offsetWidth - 8);
    tip.style.left = `${Math.max(left, 8) + scrollX}px`;
    tip.style.top = `${box.bottom + scrollY + 6}px`;
  });
}
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
      const error = line.point.length > 2 ? ` ± ${spell(line.point[2])}` : "";
      row.textContent = `${line.name} ${spell(line.point[1])}${error}`;
      return row;
    }));
    const at = (place(x) - place(low)) / (place(high) - place(low));
    tip.style.left = `${at * 100}%`;
    tip.classList.toggle("left", at > 0.5);
    tip.hidden = false;
  });
}
