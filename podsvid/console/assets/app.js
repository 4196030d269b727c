// The page: asks for the picture every two seconds, and draws the view that the address names.
import { about, el, podLink, shown } from '/assets/made.js';
import { pod } from '/assets/pod.js';
import { Table, rowsOf } from '/assets/table.js';
import { authorities, nodes, problems, problemsOf } from '/assets/views.js';

const EVERY = 2000, SOON = 400;
const TABS = [['identities', 'Identities'], ['authorities', 'Authorities'], ['nodes', 'Nodes'], ['problems', 'Problems']];
const main = document.getElementById('main'), age = document.getElementById('age');
let picture = null, tag = '', rows = [], found = [], answered = 0, ahead = 0, view = '', explaining = 0;

// Off the address at once: it is not to be in the history. This page's tab keeps it, of this port and no other.
function token() {
  const given = location.hash.match(/^#token=([\w-]+)/);
  if (given) {
    sessionStorage.setItem('token', given[1]);
    history.replaceState(null, '', '/#identities');
  }
  return sessionStorage.getItem('token') ?? '';
}

const now = () => Date.now() + ahead;
const table = new Table((row) => { location.hash = podLink(row.volume.namespace, row.volume.pod); }, now);

async function asked(path, headers = {}) {
  const answer = await fetch(path, { headers: { Authorization: `Bearer ${token()}`, ...headers }, cache: 'no-store', redirect: 'error' });
  const date = Date.parse(answer.headers.get('Date'));
  // Whole seconds only: less than that is no difference of clocks.
  if (date) ahead = Math.abs(date - Date.now()) > 1500 ? date - Date.now() : 0;
  return answer;
}

async function poll() {
  try {
    const answer = await asked('/data', tag ? { 'If-None-Match': tag } : {});
    if (answer.status === 200) {
      tag = answer.headers.get('ETag') ?? '';
      const first = !picture;
      picture = await answer.json();
      rows = rowsOf(picture);
      found = problemsOf(picture, rows);
      draw(first);
    } else if (answer.status !== 304) throw new Error((await answer.json()).text);
    answered = Date.now();
    told('');
  } catch (error) {
    told(error instanceof TypeError ? `podsvid console has ended${answered ? `; this is what was ${about(Date.now() - answered)} ago` : ''}` : error.message);
  }
  setTimeout(poll, picture?.looked === false ? SOON : EVERY);
}

function told(wrong) {
  age.textContent = wrong || (picture?.looked ? 'live' : 'looking…');
  age.classList.toggle('bad', Boolean(wrong));
  if (wrong && !picture) main.replaceChildren(el('p', { class: 'notice', text: wrong }));
}

function tabs() {
  const counts = { identities: rows.length, authorities: picture.authority?.authorities?.length ?? 0, nodes: picture.nodes.length, problems: found.length };
  document.getElementById('tabs').replaceChildren(...TABS.map(([key, title]) => el('a', { href: `#${key}`, 'aria-current': view === key ? 'page' : null }, title,
    counts[key] ? el('span', { class: `badge ${key === 'problems' && found.some((each) => each.bad) ? 'bad' : ''}`, text: counts[key].toLocaleString('en') }) : null)));
  const source = document.getElementById('source');
  source.textContent = shown(picture.name);
  source.title = shown(`${picture.kind} ${picture.name}`);
}

// `fresh`: another view than before; else what a person has open stays where it is.
function draw(fresh) {
  if (!picture) return;
  const [name, ...rest] = location.hash.slice(1).split('/');
  view = name === 'pod' && rest.length === 2 ? 'pod' : TABS.some(([key]) => key === name) ? name : 'identities';
  tabs();
  main.classList.toggle('fixed', view === 'identities');
  if (view === 'identities') {
    if (!table.table.isConnected) main.replaceChildren(notice(), table.tools, table.table);
    else main.firstChild.replaceWith(notice());
    table.show(rows);
    if (fresh) table.body.focus({ preventScroll: true });
  } else if (view === 'authorities') main.replaceChildren(authorities(picture, now()));
  else if (view === 'nodes') main.replaceChildren(nodes(picture, (node) => { table.filter.value = node; location.hash = '#identities'; }));
  else if (view === 'problems') main.replaceChildren(problems(found, picture.looked));
  else if (fresh) explain(...rest.map(decodeURIComponent));
}

function notice() {
  const text = picture.missing.nodes ?? (picture.looked && !rows.length ? 'kubelet has no volume of podsvid published there' : '');
  return el('p', { class: 'notice', hidden: !text, text: shown(text) });
}

async function explain(namespace, name) {
  const mine = ++explaining, again = el('button', { type: 'button', text: 'ask again', on: { click: () => explain(namespace, name) } });
  const head = el('div', { class: 'tools' }, el('h2', { text: shown(`pod ${namespace}/${name}`) }), again, el('a', { href: '#identities', text: 'all identities' }));
  main.replaceChildren(head, el('p', { class: 'hint', text: 'Asking signer and agent…' }));
  let drawn;
  try {
    const answer = await asked(`/explain?${new URLSearchParams({ namespace, pod: name })}`);
    const said = await answer.json();
    drawn = answer.ok ? pod(said, now()) : el('p', { class: 'notice', text: shown(`${said.reason}: ${said.text}`) });
  } catch (error) {
    drawn = el('p', { class: 'notice', text: shown(error.message) });
  }
  // Somebody may have gone on to another page meanwhile.
  if (mine === explaining && view === 'pod') main.replaceChildren(head, drawn);
}

addEventListener('hashchange', () => { token(); explaining++; draw(true); });
addEventListener('keydown', (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target instanceof HTMLInputElement) {
    if (event.key === 'Escape') table.body.focus();
    return;
  }
  if (event.key === '/') {
    event.preventDefault();
    location.hash = '#identities';
    requestAnimationFrame(() => table.filter.focus());
  } else if (event.key === 'Escape' && view === 'pod') history.back();
  else if (/^[1-4]$/.test(event.key)) location.hash = `#${TABS[event.key - 1][0]}`;
});
setInterval(() => {
  if (picture && view === 'identities') table.draw();
  if (picture && view === 'authorities') main.replaceChildren(authorities(picture, now()));
}, 1000);
token();
poll();
