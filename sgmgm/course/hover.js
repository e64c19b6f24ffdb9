/* Buttons know of clicks only, so the page makes a click of a pointer that comes to rest on one. */
const cells = this.closest('.cells');
cells.onmousemove = (event) => {
  clearTimeout(cells.rest);
  cells.rest = setTimeout(() => event.target.closest('button')?.click(), 120);
};
cells.onclick = cells.onmouseleave = () => clearTimeout(cells.rest);
