/* A kernel cannot add a cell of its own accord, so the page does: JupyterLab's key for a new cell
   below, then typing. Elsewhere the code is on the clipboard, and stands under the button. */
const cell = this.closest('.jp-Cell'), before = cell?.nextElementSibling, code = this.dataset.code;
navigator.clipboard?.writeText(code).catch(() => {});
const key = {key: 'b', code: 'KeyB', keyCode: 66, bubbles: true};
this.dispatchEvent(new KeyboardEvent('keydown', key));
setTimeout(() => {
  const next = cell?.nextElementSibling, editor = next?.querySelector('.cm-content');
  if (!editor || next === before) return;
  editor.focus();
  document.execCommand('insertText', false, code);
}, 400);
