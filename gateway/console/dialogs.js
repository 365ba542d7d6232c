// Questions before something changes, in the browser's own dialog: it keeps the focus inside and Escape says no.

import { failure } from "./states.js";
import { h, replace } from "./dom.js";

/**
 * Ask, and act in the dialog: `act(values, form)` is called with the form's values, a refusal is shown there, and the dialog
 * closes when it succeeds. Resolves with what `act` answered, or null.
 *
 * `body` is elements that say what will change, with inputs that have names; `danger` colours the button; `refused(error)`
 * may change the body after a refusal.
 */
export function ask({ title, body, button, danger = false, act, refused = () => {} }) {
  return new Promise((resolve) => {
    let answer = null;
    const problem = h("div", {});
    const go = h("button", { type: "submit", class: danger ? "danger" : "primary" }, button);
    const form = h(
      "form",
      { method: "dialog" },
      h("h2", { id: "dialog-title" }, title),
      body,
      problem,
      h("div", { class: "actions" }, h("button", { type: "button", onclick: () => dialog.close() }, "Cancel"), go),
    );
    const dialog = h("dialog", { "aria-labelledby": "dialog-title" }, form);
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      go.disabled = true;
      replace(problem);
      try {
        const given = new FormData(form);
        answer = await act(Object.fromEntries(given), given);
        dialog.close();
      } catch (error) {
        replace(problem, failure(error));
        refused(error);
      } finally {
        go.disabled = false;
      }
    });
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(answer);
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}
