// Light or dark: the system's choice, or the person's. `data-theme` on the root element always says which.

const CHOICE = "fourfold.theme";
const dark = matchMedia("(prefers-color-scheme: dark)");

export function theme() {
  return localStorage.getItem(CHOICE) ?? (dark.matches ? "dark" : "light");
}

export function toggle() {
  const wanted = theme() === "dark" ? "light" : "dark";
  // To choose what the system has is to follow the system.
  if (wanted === (dark.matches ? "dark" : "light")) localStorage.removeItem(CHOICE);
  else localStorage.setItem(CHOICE, wanted);
  show();
}

export function show() {
  if (document.documentElement.dataset.theme === theme()) return;
  document.documentElement.dataset.theme = theme();
  document.dispatchEvent(new CustomEvent("themechange"));
}

dark.addEventListener("change", show);
