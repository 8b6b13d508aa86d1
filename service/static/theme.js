// Dark as a reading room, or light: what the system asks for, until the reader chooses.

import { prefer, preference } from "./preferences.js";

const root = document.documentElement;

const asked = () => (matchMedia("(prefers-color-scheme: light)").matches ? "light" : "dark");
const current = () => root.dataset.theme ?? asked();

function apply(theme, button) {
  if (theme) root.dataset.theme = theme;
  button.setAttribute("aria-pressed", current() === "light" ? "true" : "false");
}

export function bindTheme(button) {
  apply(preference("theme", ["dark", "light"], ""), button);
  matchMedia("(prefers-color-scheme: light)").addEventListener("change", () => apply("", button));
  button.addEventListener("click", () => {
    const theme = current() === "dark" ? "light" : "dark";
    prefer("theme", theme);
    apply(theme, button);
  });
}
