// Names on hover and on focus. A chart is one tab stop; arrows walk to the nearest mark in their direction.
(() => {
  const tip = document.getElementById("tip");
  let shown = null;

  const centre = (mark) => {
    const box = mark.getBoundingClientRect();
    return [box.left + box.width / 2, box.top + box.height / 2];
  };

  const hide = () => {
    shown?.classList.remove("on");
    shown = null;
    tip.hidden = true;
  };

  const show = (mark) => {
    if (mark === shown) return;
    hide();
    shown = mark;
    mark.classList.add("on");
    tip.textContent = mark.dataset.tip;
    tip.hidden = false;
    const [x, y] = centre(mark);
    const { width, height } = tip.getBoundingClientRect();
    const left = Math.max(6, Math.min(x - width / 2, innerWidth - width - 6));
    const top = y - height - 14 < 6 ? y + 16 : y - height - 14;
    tip.style.transform = `translate(${left}px, ${top}px)`;
  };

  const nearest = (marks, x, y, reach) => {
    let best = null;
    for (const mark of marks) {
      const [mx, my] = centre(mark);
      const far = Math.hypot(mx - x, my - y);
      if (far < reach) [best, reach] = [mark, far];
    }
    return best;
  };

  const beside = (marks, from, key) => {
    const [x, y] = centre(from);
    const [dx, dy] = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] }[key];
    let best = from;
    let least = Infinity;
    for (const mark of marks) {
      const [mx, my] = centre(mark);
      const along = (mx - x) * dx + (my - y) * dy;
      const across = Math.abs((mx - x) * dy) + Math.abs((my - y) * dx);
      const cost = along + 3 * across;
      if (along > 0.5 && cost < least) [best, least] = [mark, cost];
    }
    return best;
  };

  const focus = (marks, mark) => {
    for (const other of marks) other.setAttribute("tabindex", "-1");
    mark.setAttribute("tabindex", "0");
    mark.focus({ preventScroll: false });
  };

  for (const chart of document.querySelectorAll("svg.chart")) {
    const marks = [...chart.querySelectorAll("[data-tip]")];
    if (!marks.length) continue;
    for (const mark of marks) {
      mark.setAttribute("role", "img");
      mark.setAttribute("aria-label", mark.dataset.tip.replace("\n", ", "));
    }
    marks[0].setAttribute("tabindex", "0");
    chart.addEventListener("pointermove", (event) => {
      const cell = event.target.closest?.("rect[data-tip]");
      const mark = cell ?? nearest(marks, event.clientX, event.clientY, 28);
      if (mark) show(mark);
      else hide();
    });
    chart.addEventListener("pointerleave", hide);
    chart.addEventListener("focusin", (event) => event.target.dataset.tip && show(event.target));
    chart.addEventListener("focusout", hide);
    chart.addEventListener("keydown", (event) => {
      if (event.key === "Escape") return hide();
      if (event.key === "Home") focus(marks, marks[0]);
      else if (event.key === "End") focus(marks, marks.at(-1));
      else if (event.key.startsWith("Arrow")) focus(marks, beside(marks, event.target, event.key));
      else return;
      event.preventDefault();
    });
  }
  addEventListener("scroll", () => shown === document.activeElement || hide(), { passive: true });
})();
