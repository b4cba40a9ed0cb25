"use strict";
{
  // In the head, before anything is painted: static pictures give way to charts only where scripts run
  document.documentElement.classList.add("scripted");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const shown = () => document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light");

  document.addEventListener("DOMContentLoaded", () => {
    const button = document.querySelector(".theme");
    const name = () => { button.textContent = shown() === "dark" ? "Light theme" : "Dark theme"; };
    const changed = () => { name(); document.dispatchEvent(new Event("theme")); };
    button.addEventListener("click", () => {
      document.documentElement.dataset.theme = shown() === "dark" ? "light" : "dark";
      changed();
    });
    dark.addEventListener("change", changed);
    name();
    button.hidden = false;
  });
}
