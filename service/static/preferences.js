// Language, theme and keys: the only things that outlast the tab. Nothing of a study, an answer or a key is kept.

const spare = {}; // for a browser that stores nothing

export function preference(name, allowed, otherwise) {
  let value = spare[name];
  try {
    value = localStorage.getItem(`report-${name}`) ?? value;
  } catch {
    // as above
  }
  return allowed.includes(value) ? value : otherwise;
}

export function prefer(name, value) {
  spare[name] = value;
  try {
    localStorage.setItem(`report-${name}`, value);
  } catch {
    // kept until the page is left
  }
}
