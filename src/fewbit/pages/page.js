"use strict";

for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const upwards = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", upwards ? "ascending" : "descending");
    const cell = (row) => row.cells[column];
    const rows = [...table.tBodies[0].rows];
    const counts = rows.some((row) => "order" in cell(row).dataset);
    const missing = (row) => counts && !("order" in cell(row).dataset);
    const compare = (a, b) => counts
      ? Number(cell(a).dataset.order) - Number(cell(b).dataset.order)
      : cell(a).textContent.localeCompare(cell(b).textContent);
    rows.sort((a, b) => missing(a) - missing(b)
      || (missing(a) ? 0 : compare(a, b) * (upwards ? 1 : -1)));
    table.tBodies[0].append(...rows);
  }));
}

for (const slider of document.querySelectorAll(".slider")) {
  const stage = slider.querySelector(".stage");
  const [before, after] = stage.querySelectorAll("img");
  const range = slider.querySelector("input[type=range]");
  const [row, column] = slider.querySelectorAll("select");
  const difference = slider.querySelector("input[type=checkbox]");
  const picture = (r, c) => document.querySelector(`[data-row="${r}"][data-column="${c}"]`);
  const show = () => {
    for (const [image, r] of [[before, 0], [after, row.value]]) {
      const source = picture(r, column.value);
      image.src = source.src;
      image.alt = source.alt;
    }
  };
  const move = () => {
    stage.style.setProperty("--at", `${range.value}%`);
    range.setAttribute("aria-valuetext", `${range.value} % full precision`);
  };
  const drag = (event) => {
    const box = stage.getBoundingClientRect();
    const share = (event.clientX - box.left) / box.width;
    range.value = Math.round(100 * Math.min(1, Math.max(0, share)));
    move();
  };
  range.addEventListener("input", move);
  row.addEventListener("change", show);
  column.addEventListener("change", show);
  difference.addEventListener("change", () => {
    stage.classList.toggle("difference", difference.checked);
  });
  stage.addEventListener("pointerdown", (event) => {
    stage.setPointerCapture(event.pointerId);
    drag(event);
  });
  stage.addEventListener("pointermove", (event) => {
    if (event.buttons) drag(event);
  });
  for (const image of document.querySelectorAll("[data-row]")) {
    image.addEventListener("click", () => {
      if (image.dataset.row === "0") return;
      row.value = image.dataset.row;
      column.value = image.dataset.column;
      show();
      slider.scrollIntoView({ block: "nearest", behavior: "smooth" });
    });
  }
  move();
}
