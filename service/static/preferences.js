// Language, theme and shortcuts: the only values that are kept when the tab is closed. No study, answer or key is stored.

const memoryFallback = {}; // for a browser without localStorage

export function preference(name, allowed, fallback) {
  let value = memoryFallback[name];
  try {
    value = localStorage.getItem(`report-${name}`) ?? value;
  } catch {
    // localStorage is not available
  }
  return allowed.includes(value) ? value : fallback;
}

export function prefer(name, value) {
  memoryFallback[name] = value;
  try {
    localStorage.setItem(`report-${name}`, value);
  } catch {
    // stays in memory until the page is closed
  }
}
