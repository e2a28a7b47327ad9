// The colour theme: the system's, until the visitor chooses. A classic script, so that it runs before the first
// paint and a dark page never flashes white. Invariant: works where storage is refused.
(() => {
  const KEY = "twigserve-theme";
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");

  function stored() {
    try {
      return localStorage.getItem(KEY);
    } catch {
      return null;
    }
  }

  function store(theme) {
    try {
      localStorage.setItem(KEY, theme);
    } catch {
      // Private windows may refuse; the choice then lasts as long as the page.
    }
  }

  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);

  function show(button) {
    button.setAttribute("aria-pressed", String(isDark()));
  }

  const chosen = stored();
  if (chosen === "dark" || chosen === "light") root.dataset.theme = chosen;

  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    show(button);
    system.addEventListener("change", () => show(button));
    button.addEventListener("click", () => {
      root.dataset.theme = isDark() ? "light" : "dark";
      store(root.dataset.theme);
      show(button);
    });
  });
})();
