// The page: asks for the picture every two seconds, and draws the view that the address names.
import { about, el, podLink, replace, shown, time } from '/assets/made.js';
import { pod } from '/assets/pod.js';
import { Table, rowsOf } from '/assets/table.js';
import { authorities, nodes, nodesOf, problems, problemsOf } from '/assets/views.js';

const EVERY = 2000, SOON = 400, REFUSALS = 3;
const TABS = [['identities', 'Identities'], ['authorities', 'Authorities'], ['nodes', 'Nodes'], ['problems', 'Problems']];
const main = document.getElementById('main'), age = document.getElementById('age');
let picture = null, tag = '', rows = [], found = [], answered = 0, ahead = 0, view = '', explaining = 0;
// What hangs on the seconds alone; what the view and the tabs were drawn of; and of asking: when next, whether now, how it goes.
let later = [], drawn = '', tabbed = '', timer = 0, asking = false, polls = 0, refused = 0, wrong = '';

// Off the address at once: whoever sees or copies that has not the token. This page's tab keeps it, of this port and no other.
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

// Of a page that nobody sees nothing is asked, so that the agents are not either.
async function poll() {
  clearTimeout(timer);
  if (asking || document.hidden || refused >= REFUSALS) return;
  asking = true;
  try {
    const answer = await asked('/data', tag ? { 'If-None-Match': tag } : {});
    if (answer.status === 200) {
      const first = !picture;
      picture = await answer.json();
      tag = answer.headers.get('ETag') ?? '';
      rows = rowsOf(picture);
      found = problemsOf(picture, rows);
      draw(first);
    } else if (answer.status !== 304) {
      const { text } = await answer.json();
      refused++;
      throw new Error(refused >= REFUSALS ? `${text}; then reload this page` : text);
    }
    answered = Date.now();
    refused = 0;
    told('');
  } catch (error) {
    told(error instanceof TypeError ? 'podsvid console cannot be reached' : error.message);
  } finally {
    asking = false;
  }
  timer = setTimeout(poll, ++polls < 4 && picture?.looked !== true ? SOON : EVERY);
}

function told(text) {
  wrong = text;
  aged();
  if (wrong && !picture) main.replaceChildren(el('p', { class: 'notice', text: wrong }));
}

// How old what is shown is: the oldest of what did not fail.
function aged() {
  const all = picture?.nodes ?? [], silent = all.filter((each) => each.missing).length;
  const oldest = Math.min(...all.filter((each) => each.seen_at && !each.missing).map((each) => time(each.seen_at)));
  const seen = Number.isFinite(oldest) ? `as of ${about(now() - oldest)} ago` : picture?.looked ? '' : 'looking…';
  const trouble = wrong || (silent ? `${silent} of ${all.length} nodes not known` : picture?.missing.nodes ? 'nothing is known' : '');
  const before = wrong ? '' : seen && trouble ? `${seen}; ` : seen, after = wrong && answered ? `; this is what was ${about(Date.now() - answered)} ago` : '';
  // Only the middle is read out: the rest changes each second.
  [before, trouble, after].forEach((text, index) => { if (age.children[index].textContent !== shown(text)) age.children[index].textContent = shown(text); });
  age.classList.toggle('bad', Boolean(trouble));
}

function tabs() {
  const counts = { identities: rows.length, authorities: picture.authority?.authorities?.length ?? 0, nodes: picture.nodes.length, problems: found.length };
  const of = JSON.stringify([view, counts, found.some((each) => each.bad)]);
  if (of === tabbed) return;
  tabbed = of;
  replace(document.getElementById('tabs'), ...TABS.map(([key, title]) => el('a', { href: `#${key}`, 'data-key': key, 'aria-current': view === key ? 'page' : null }, title,
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
  if (['identities', 'pod'].includes(view)) later = [];
  if (view === 'identities') {
    if (!table.table.isConnected) main.replaceChildren(notice(), table.tools, table.table);
    else main.firstChild.replaceWith(notice());
    // None is a number only where somebody counted.
    table.show(rows, rows.length > 0 || picture.nodes.some((each) => each.seen_at) || (picture.looked && !picture.missing.nodes && !picture.nodes.some((each) => each.missing)));
    if (fresh) table.body.focus({ preventScroll: true });
  } else if (view === 'pod') {
    if (fresh) explain(...rest.map(decodeURIComponent));
  } else {
    const fields = nodesOf(picture);
    const of = JSON.stringify([view, picture.looked, picture.missing, { authorities: [picture.authority, picture.authority_at, picture.federations, picture.federations_at, picture.findings], nodes: fields, problems: found }[view]]);
    if (of === drawn && !fresh) return;
    drawn = of;
    later = [];
    if (view === 'authorities') replace(main, notice(), authorities(picture, now(), later));
    else if (view === 'nodes') replace(main, notice(), nodes(fields, picture.looked && !picture.missing.nodes, (node) => { table.filter.value = node; location.hash = '#identities'; }, now(), later));
    else replace(main, notice(), problems(found, picture.looked, now(), later));
  }
}

function notice() {
  // Problems begins with it.
  const text = view === 'problems' ? '' : picture.missing.nodes ?? picture.missing.unasked ?? (view === 'identities' && picture.looked && !rows.length && !picture.nodes.some((each) => each.missing) ? 'kubelet has no volume of podsvid published there' : '');
  return el('p', { class: 'notice', hidden: !text, text: shown(text) });
}

async function explain(namespace, name) {
  const mine = ++explaining, again = el('button', { type: 'button', text: 'ask again', on: { click: () => explain(namespace, name) } });
  const head = el('div', { class: 'tools' }, el('h2', { text: shown(`pod ${namespace}/${name}`) }), again, el('a', { href: '#identities', text: 'all identities' }));
  main.replaceChildren(head, el('p', { class: 'hint', text: 'Asking signer and agent…' }));
  let made;
  try {
    const answer = await asked(`/explain?${new URLSearchParams({ namespace, pod: name })}`);
    const said = await answer.json();
    made = answer.ok ? pod(said, now()) : el('p', { class: 'notice', text: shown(`${said.reason}: ${said.text}`) });
  } catch (error) {
    made = el('p', { class: 'notice', text: shown(error.message) });
  }
  // Somebody may have gone on to another page meanwhile.
  if (mine === explaining && view === 'pod') main.replaceChildren(head, made);
}

addEventListener('hashchange', () => {
  token();
  explaining++;
  draw(true);
  if (refused >= REFUSALS) {
    refused = 0;
    poll();
  }
});
document.addEventListener('visibilitychange', poll);
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
  if (picture && view !== 'identities') for (const each of later) each(now());
  if (picture) aged();
}, 1000);
token();
poll();
