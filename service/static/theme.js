// Dark or light: the system's theme until the reader chooses one.

import { prefer, preference } from "./preferences.js";

const root = document.documentElement;

const systemTheme = () => (matchMedia("(prefers-color-scheme: light)").matches ? "light" : "dark");
const current = () => root.dataset.theme ?? systemTheme();

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
