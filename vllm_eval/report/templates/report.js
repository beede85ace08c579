// What the page does once it is there.

const THEMES = ['light dark', 'light', 'dark'];
const THEME_NAMES = { 'light dark': 'Theme: auto', light: 'Theme: light', dark: 'Theme: dark' };

function setTheme(scheme) {
  document.documentElement.style.colorScheme = scheme;
  byId('theme').textContent = THEME_NAMES[scheme];
  byId('theme').dataset.scheme = scheme;
}

function nextTheme() {
  const now = byId('theme').dataset.scheme;
  setTheme(THEMES[(THEMES.indexOf(now) + 1) % THEMES.length]);
}

function setUpFailures() {
  document.querySelectorAll('.show-group').forEach((button) => {
    button.hidden = false;
    button.addEventListener('click', () => showOnly(button.dataset));
  });
}

setTheme('light dark');
byId('theme').hidden = false;
byId('theme').addEventListener('click', nextTheme);
setUpTable();
setUpFailures();
setUpCase();
