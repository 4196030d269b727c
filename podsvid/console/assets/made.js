// Elements and texts. Whatever a pod's author can write becomes a text node here and nowhere markup: the page's policy
// (Trusted Types) refuses whatever makes markup of a text.

export function el(tag, given = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (name === 'on') for (const [event, run] of Object.entries(value)) made.addEventListener(event, run);
    else if (name === 'text') made.textContent = value;
    else if (value === true) made.setAttribute(name, '');
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children.filter((each) => each != null));
  return made;
}

// Characters that would turn a line around or hide in it are shown as what they are: strangers.
export const shown = (text) => String(text ?? '').replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, '\ufffd');

// More digits of a second than JavaScript must read.
export const time = (text) => (text ? Date.parse(String(text).replace(/(\.\d{3})\d+/, '$1')) : NaN);

export function about(milliseconds) {
  if (Number.isNaN(milliseconds)) return '';
  const sign = milliseconds < 0 ? '-' : '';
  const seconds = Math.abs(milliseconds) / 1000;
  for (const [unit, size] of [['d', 86400], ['h', 3600], ['m', 60]]) {
    if (seconds >= 2 * size) return `${sign}${Math.round(seconds / size)}${unit}`;
  }
  return `${sign}${Math.round(seconds)}s`;
}

// Of an instant that is so many milliseconds ahead, or behind.
export const when = (milliseconds) => (Number.isNaN(milliseconds) ? '' : milliseconds < 0 ? `${about(-milliseconds)} ago` : `in ${about(milliseconds)}`);

// What is no time is shown as it came.
export function instant(text) {
  const at = new Date(time(text));
  return Number.isNaN(at.getTime()) ? shown(text) : at.toISOString().replace(/\.\d+Z$/, 'Z');
}

// Of a renewal: the instant that was drawn, and the window that it was drawn in, where that is known.
export function windowOf(volume) {
  if (!volume.renew_at) return '';
  const window = volume.renew_from && volume.renew_until ? `, drawn between ${instant(volume.renew_from)} and ${instant(volume.renew_until)}` : '; the window that it was drawn in is not known any more';
  return `renews at ${instant(volume.renew_at)}${window}`;
}

// Written again each second by whoever has `later`, so that nothing else is.
export function written(element, text, now, later) {
  element.textContent = text(now);
  later.push((at) => { element.textContent = text(at); });
  return element;
}

export const list = (value) => (Array.isArray(value) ? value : []);

// `ok`, `warn` or `bad`: colours beside the word, never instead of it.
export function weight(state) {
  if (state === 'ok') return 'ok';
  return ['expired', 'unwritten', 'overdue', 'unknown'].includes(state) ? 'bad' : 'warn';
}

// What is drawn anew leaves the keyboard where it was.
export function replace(parent, ...children) {
  const kept = parent.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  parent.replaceChildren(...children);
  if (kept !== undefined) parent.querySelector(`[data-key="${CSS.escape(kept)}"]`)?.focus({ preventScroll: true });
}

export const podLink = (namespace, pod) => `#pod/${encodeURIComponent(namespace)}/${encodeURIComponent(pod)}`;

// Characters at the end of a name that are never left out: what a ReplicaSet, a StatefulSet or a pool of nodes tells them apart by.
const TAIL = 10;
const characters = new Intl.Segmenter(undefined, { granularity: 'grapheme' });

// A name as what may be left out where there is no room, and what may not. No character is torn from its marks.
export function split(name) {
  if (name.length <= TAIL) return ['', name];
  let at = name.length - TAIL;
  if (/[^\x20-\x7e]/.test(name)) at = characters.segment(name.slice(-400)).containing(Math.min(400, name.length) - TAIL).index + Math.max(0, name.length - 400);
  return [name.slice(0, at), name.slice(at)];
}

// The end that all of them have, from a dot on: a cloud's domain. Nobody is told from another by it.
export function shared(names) {
  const [first = '', ...others] = names;
  let end = others.length ? first : '';
  for (const each of others) while (!each.endsWith(end)) end = end.slice(1);
  const dot = end.indexOf('.', end === first ? 1 : 0);
  return dot < 0 ? '' : end.slice(dot);
}

export function facts(pairs) {
  const made = el('dl', { class: 'facts' });
  for (const [name, value] of pairs) {
    if (value == null || value === '') continue;
    made.append(el('dt', { text: name }), value instanceof Node ? el('dd', {}, value) : el('dd', { text: shown(value) }));
  }
  return made;
}
