const cells = this.closest('.cells');
cells.onmousemove = (event) => {
  clearTimeout(cells.rest);
  cells.rest = setTimeout(() => event.target.closest('button')?.click(), 120);
};
cells.onclick = cells.onmouseleave = () => clearTimeout(cells.rest);
