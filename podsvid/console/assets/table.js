// The identities: as many rows as fit the screen, moved along and filled anew; ten thousand cost what forty do.
import { about, el, shared, shown, split, time, weight, windowOf } from '/assets/made.js';

const ROW = 32, SPARE = 8;
const COLUMNS = [
  ['state', 'State', (row) => `${['bad', 'warn', 'ok'].indexOf(weight(row.state))} ${row.shownState}`],
  ['pod', 'Pod', (row) => row.name],
  ['id', 'SPIFFE ID', (row) => row.volume.spiffe_id ?? ''],
  ['policy', 'Policy', (row) => row.policy || '\uffff'],
  ['node', 'Node', (row) => row.node],
  ['serial', 'Serial', (row) => row.volume.serial ?? ''],
  ['left', 'Ends in', (row) => row.ends],
  ['renews', 'Renews in', (row) => row.renews],
];

// Of these whoever makes many makes them alike but for their end.
const NAMES = ['pod', 'id', 'node'];
const UNKNOWN_POLICY = 'not known: minted before the agent was restarted, or its authority has no policies';

export class Table {
  constructor(open, now) {
    this.open = open;
    this.now = now;
    this.rows = [];
    this.seen = [];
    this.sort = ['state', 1];
    this.chosen = 0;
    this.pool = [];
    this.filter = el('input', { type: 'search', placeholder: 'filter: pod, SPIFFE ID, policy:NAME, node, serial, state', 'aria-label': 'filter', id: 'filter' });
    this.unwell = el('input', { type: 'checkbox', id: 'unwell' });
    this.count = el('span', { class: 'hint', role: 'status' });
    this.filter.addEventListener('input', () => this.choose(true));
    this.unwell.addEventListener('change', () => this.choose(true));
    this.heads = el('div', { class: 'row heads', role: 'row' });
    for (const [key, title] of COLUMNS) {
      const button = el('button', { type: 'button', text: title, on: { click: () => this.order(key) } });
      this.heads.append(el('div', { class: `c-${key}`, role: 'columnheader' }, button));
    }
    this.space = el('div', { class: 'space', role: 'rowgroup' });
    this.body = el('div', { class: 'rows', tabindex: '0', 'aria-label': 'identities; arrows choose, Enter opens' }, this.space);
    this.body.addEventListener('scroll', () => this.draw());
    this.body.addEventListener('keydown', (event) => this.key(event));
    this.table = el('div', { class: 'table', role: 'table', 'aria-label': 'identities' }, this.heads, this.body);
    this.tools = el('div', { class: 'tools' }, this.filter, el('label', { for: 'unwell' }, this.unwell, 'not ok only'), this.count);
    new ResizeObserver(() => this.draw()).observe(this.body);
  }

  // `counted`: somebody told how many there are.
  show(rows, counted) {
    this.rows = rows;
    this.counted = counted;
    this.choose(false);
  }

  order(key) {
    this.sort = [key, this.sort[0] === key ? -this.sort[1] : 1];
    this.choose(true);
  }

  choose(first) {
    const words = this.filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const unwell = this.unwell.checked;
    const kept = this.seen[this.chosen];
    this.seen = this.rows.filter((row) => (!unwell || row.state !== 'ok') && words.every((word) => row.words.includes(word)));
    const [key, way] = this.sort;
    const of = COLUMNS.find((each) => each[0] === key)[2];
    const by = new Map(this.seen.map((row) => [row, of(row)]));
    this.seen.sort((one, other) => {
      const [a, b] = [by.get(one), by.get(other)];
      // What has no end yet comes last, whichever way.
      if (a !== a || b !== b) return (a !== a) - (b !== b);
      return a < b ? -way : a > b ? way : one.name < other.name ? -1 : one.name > other.name ? 1 : 0;
    });
    COLUMNS.forEach(([name], index) => {
      const head = this.heads.children[index];
      if (name === key) head.setAttribute('aria-sort', way > 0 ? 'ascending' : 'descending');
      else head.removeAttribute('aria-sort');
    });
    if (first) {
      this.chosen = 0;
      this.body.scrollTop = 0;
    } else {
      this.chosen = Math.max(0, this.seen.findIndex((row) => kept && row.key === kept.key));
    }
    const all = this.rows.length.toLocaleString('en');
    this.count.textContent = !this.counted ? '– identities' : this.seen.length === this.rows.length ? `${all} ${this.rows.length === 1 ? 'identity' : 'identities'}` : `${this.seen.length.toLocaleString('en')} of ${all}`;
    this.table.setAttribute('aria-rowcount', this.seen.length + 1);
    this.space.style.height = `${this.seen.length * ROW}px`;
    this.draw();
  }

  draw() {
    // The heads stand above their columns, and rows reach as far as the frame or the bar that scrolls them.
    const bar = `calc(.8rem + ${this.body.offsetWidth - this.body.clientWidth}px)`;
    if (this.heads.style.paddingRight !== bar) this.heads.style.paddingRight = bar;
    const first = Math.max(0, Math.floor(this.body.scrollTop / ROW) - SPARE);
    const number = Math.min(this.seen.length - first, Math.ceil(this.body.clientHeight / ROW) + 2 * SPARE);
    while (this.pool.length < number) this.pool.push(this.made());
    this.pool.forEach((line, index) => {
      line.hidden = index >= number;
      if (!line.hidden) this.fill(line, first + index);
    });
  }

  made() {
    const cells = Object.fromEntries(COLUMNS.map(([key]) => [key, el('div', { class: `c-${key}`, role: 'cell' })]));
    const fill = el('i'), span = el('u'), mark = el('b'), text = el('span', { class: 'number' });
    const bar = el('span', { class: 'bar' }, fill, span, mark);
    for (const key of NAMES) {
      cells[key].classList.add('long');
      cells[key].texts = ['head', 'tail', 'rest'].map((part) => {
        const made = document.createTextNode('');
        cells[key].append(el('span', { class: part }, made));
        return made;
      });
    }
    cells.left.classList.add('left');
    cells.left.append(bar, text);
    cells.id.classList.add('mono');
    cells.serial.classList.add('mono');
    cells.renews.classList.add('number');
    const line = el('div', { class: 'row', role: 'row' }, ...COLUMNS.map(([key]) => cells[key]));
    line.parts = { cells, bar, fill, span, mark, text };
    line.addEventListener('click', () => { this.chosen = line.index; this.enter(); });
    this.space.append(line);
    return line;
  }

  fill(line, index) {
    const row = this.seen[index], { cells, bar, fill, span, mark, text } = line.parts, now = this.now();
    line.index = index;
    line.style.transform = `translateY(${index * ROW}px)`;
    line.setAttribute('aria-rowindex', index + 2);
    line.setAttribute('aria-selected', index === this.chosen);
    const left = row.ends - now, whole = row.ends - row.begins;
    const part = (value) => `${Math.max(0, Math.min(1, value / whole || 0)) * 100}%`;
    // As long as the column is: that it is not known now is its colour, and the rest of the page says why.
    put(cells.state, row.stale ? `was ${row.shownWas} ${about(now - row.seen)} ago` : row.shownState);
    cells.state.className = `c-state state ${weight(row.state)}`;
    name(cells.pod, row.name);
    name(cells.id, shown(row.volume.spiffe_id) || 'none yet');
    put(cells.policy, row.shownPolicy || '–');
    if (!row.policy) cells.policy.title = UNKNOWN_POLICY;
    name(cells.node, row.shownNode, row.sameEnd);
    put(cells.serial, shown(row.volume.serial));
    put(text, left < 0 ? 'ended' : about(left));
    const late = isLate(row, now);
    put(cells.renews, !(row.renews < now) ? about(row.renews - now) : row.stale ? '–' : late ? `${about(now - row.renews)} late` : 'due');
    cells.renews.classList.toggle('late', late && !row.stale);
    if (bar.title !== row.window) bar.title = row.window;
    fill.style.width = part(left);
    fill.className = late || left < 0 ? 'late' : '';
    mark.style.left = part(row.ends - row.renews);
    mark.hidden = Number.isNaN(row.renews);
    // The bar runs out to the left: the window's end stands left of its beginning.
    span.hidden = Number.isNaN(row.from) || Number.isNaN(row.until);
    span.style.left = part(row.ends - row.until);
    span.style.width = part(row.until - row.from);
  }

  key(event) {
    const page = Math.max(1, Math.floor(this.body.clientHeight / ROW) - 1), last = this.seen.length - 1;
    const to = { ArrowDown: this.chosen + 1, ArrowUp: this.chosen - 1, PageDown: this.chosen + page, PageUp: this.chosen - page, Home: 0, End: last }[event.key];
    if (event.key === 'Enter') this.enter();
    else if (to !== undefined) {
      event.preventDefault();
      this.chosen = Math.max(0, Math.min(last, to));
      const top = this.chosen * ROW, high = this.body.clientHeight;
      if (top < this.body.scrollTop) this.body.scrollTop = top;
      else if (top + ROW > this.body.scrollTop + high) this.body.scrollTop = top + ROW - high;
      this.draw();
    }
  }

  enter() {
    const row = this.seen[this.chosen];
    if (row) this.open(row);
  }
}

// By a minute when its agent was asked: what became due since may be done, and is known at the next look.
const isLate = (row, now) => row.renews < Math.min(now, row.seen || now) - 60000;

// What does not change is not written: the browser would lay it out again.
function put(cell, text) {
  if (cell.textContent === text) return;
  cell.textContent = text;
  if (cell.classList.length && !cell.classList.contains('number')) cell.title = text;
}

// `rest`: its end, where that is everybody's: it gives way first, and what is before it keeps its own end.
function name(cell, text, rest = '') {
  if (cell.told === text && cell.rest === rest) return;
  cell.told = text;
  cell.rest = rest;
  const own = rest ? text.slice(0, -rest.length) : text;
  [...split(own), rest].forEach((part, index) => { if (cell.texts[index].data !== part) cell.texts[index].data = part; });
  cell.title = text;
  // It is one name, whatever it is drawn of.
  cell.ariaLabel = text;
}

// Certificates are valid from a while before they were made, for clocks that are behind: the files' time is that of the
// SVID that they hold, and shows how much of it is left better.
function began(volume) {
  const from = time(volume.not_before), written = time(volume.files_written_at);
  return volume.files_serial === volume.serial && written > from && written < time(volume.not_after) ? written : from;
}

export function rowsOf(picture) {
  const rows = [], sameEnd = shared(picture.nodes.map((each) => shown(each.node)));
  for (const node of picture.nodes) {
    for (const volume of Array.isArray(node.volumes) ? node.volumes : []) {
      // Of a node that does not answer nobody knows: it is not shown as what it was.
      const was = String(volume.state ?? 'unknown'), stale = Boolean(node.missing), state = stale ? 'unknown' : was;
      const said = [was, volume.state_reason, volume.notice && was === 'ok' ? '(see pod)' : ''].filter(Boolean).join(' ');
      const row = {
        volume, state, was, seen: time(node.seen_at), node: node.node, key: `${node.node} ${volume.volume_id}`,
        name: shown(`${volume.namespace ?? '?'}/${volume.pod ?? '?'}`), shownNode: shown(node.node), sameEnd,
        shownState: shown(stale ? `unknown (was ${said})` : said), shownWas: shown(said),
        begins: began(volume), ends: time(volume.not_after), renews: time(volume.renew_at),
        from: time(volume.renew_from), until: time(volume.renew_until), window: windowOf(volume), stale,
        policy: String(volume.policy ?? ''), shownPolicy: shown(volume.policy),
      };
      row.words = `${row.name} ${volume.spiffe_id} policy:${row.policy} ${node.node} ${volume.serial} ${row.shownState} ${volume.driver} ${volume.layout}`.toLowerCase();
      rows.push(row);
    }
  }
  return rows;
}
