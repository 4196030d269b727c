// Authorities, nodes and problems, drawn of the picture.
import { about, el, facts, instant, list, podLink, shown, time, weight } from '/assets/made.js';

const KINDS = { KIND_X509: 'x509', KIND_JWT: 'jwt', KIND_BOTH: 'x509, jwt' };

export function authorities(picture, now) {
  const status = picture.authority, made = el('div');
  if (picture.missing.authority) made.append(el('p', { class: 'notice', text: shown(picture.missing.authority) }));
  if (!status) return made;
  const have = (status.agents ?? 0) - (status.agents_waiting ?? 0);
  const acknowledged = el('span', {},
    el('meter', { min: 0, max: Math.max(1, status.agents ?? 0), value: have }), ` ${have} of ${status.agents ?? 0} agents${status.unknown ? ', as far as is known' : ''}`);
  made.append(el('section', { class: 'card' }, el('h2', { text: `Authorities of ${shown(status.trust_domain)}` }), lanes(list(status.authorities), now)));
  made.append(el('section', { class: 'card' }, facts([
    ['acknowledged', acknowledged], ['sequence', status.sequence], ['leader', status.leader || 'none'],
    ['missing', list(status.waiting_nodes).join(', ')],
    ...list(status.awaited).map((each) => ['waits for', `${KINDS[each.kind] ?? ''} ${each.id}: ${each.audience} until ${instant(each.until)}`]),
    ...list(status.next).map((line) => ['next', line]),
    ...list(status.to_do).map((line) => ['to do', line]),
    ...list(status.warnings).map((line) => ['warning', line]),
    ['unknown', status.unknown],
  ])));
  if (list(status.upstream_roots).length || list(status.revoked_roots).length || list(status.abandoned).length || status.requested_x509) {
    made.append(el('section', { class: 'card' }, el('h2', { text: 'The CA above' }), facts([
      ...(status.requested_x509 ? [['asked for', `${status.requested_x509.id} at ${status.requested_x509.at}: ${list(status.requested_x509.said).join('; ') || 'nothing said yet'}`]] : []),
      ...list(status.upstream_roots).map((each) => ['root', `${each.subject}, ${each.id}, ends ${instant(each.not_after)}${each.leaves_at ? `, named no more, leaves not before ${instant(each.leaves_at)}` : ''}`]),
      ...list(status.revoked_roots).map((each) => ['revoked root', `${each.subject}, ${each.id}, since ${instant(each.asked_at)}, ${each.trusted ? 'still trusted' : 'not trusted'}`]),
      ...list(status.abandoned).map((each) => ['abandoned', `${KINDS[each.kind] ?? ''} ${each.id}, asked for ${instant(each.asked_at)}${each.left_at ? `, left ${instant(each.left_at)}` : ', still trusted'}`]),
    ])));
  }
  return made;
}

function lanes(all, now) {
  if (!all.length) return el('p', { class: 'hint', text: 'There is none yet.' });
  const began = Math.min(...all.map((each) => time(each.prepared_at)).filter((at) => at), now);
  const leaves = all.map((each) => time(each.leaves_at)).filter((at) => at);
  // What is to come has some room; certificates that end in years would leave none for what happens now.
  const end = Math.max(now + Math.max((now - began) * 0.25, 60000), ...leaves);
  const at = (moment) => `${Math.max(0, Math.min(1, (moment - began) / (end - began))) * 100}%`;
  const life = el('div', { class: 'life' });
  for (const each of all) {
    const stages = [], prepared = time(each.prepared_at) || began, active = time(each.activated_at);
    const replaced = Math.min(...all.filter((other) => other.kind === each.kind && time(other.activated_at) > active).map((other) => time(other.activated_at)), Infinity);
    const last = time(each.leaves_at) || end;
    if (!active) stages.push(['prepared', prepared, last]);
    else {
      stages.push(['prepared', prepared, active], ['active', active, Math.min(replaced, last)]);
      if (replaced < last) stages.push([each.stage === 'tainted' ? 'tainted' : 'old', replaced, last]);
    }
    const track = el('div', { class: 'track' });
    for (const [stage, from, to] of stages) {
      const part = el('span', { class: stage, text: (to - from) / (end - began) > 0.07 ? stage : '', title: `${stage} ${new Date(from).toISOString()}${to < end || leaves.includes(to) ? ` to ${new Date(to).toISOString()}` : ''}` });
      part.style.left = at(from);
      part.style.width = `calc(${at(to)} - ${at(from)})`;
      track.append(part);
    }
    const mark = el('i', { title: 'now' });
    mark.style.left = at(now);
    track.append(mark);
    const said = [each.stage, each.leaves_at ? `leaves in ${about(time(each.leaves_at) - now)}` : '', each.not_after ? `certificate ends in ${about(time(each.not_after) - now)}` : '',
      each.svids_known ? `${each.svids} SVIDs held` : ''].filter(Boolean).join(', ');
    life.append(el('div', { class: 'lane', title: shown(each.id) },
      el('div', { class: 'name' }, el('strong', { text: `${KINDS[each.kind] ?? shown(each.kind)} ` }), el('code', { text: shown(each.id).slice(0, 10) })),
      el('div', {}, track, el('div', { class: 'hint', text: shown(said) }))));
  }
  life.append(el('div', { class: 'axis' }, el('span'), el('div', {}, el('span', { text: `${about(now - began)} ago` }), el('span', { text: `the line: now; right: in ${about(end - now)}` }))));
  return life;
}

export function nodes(picture, show) {
  const made = el('div', { class: 'grid' });
  for (const each of picture.nodes) {
    const volumes = list(each.volumes), unwell = volumes.filter((volume) => volume.state !== 'ok');
    const worst = each.missing || unwell.some((volume) => weight(volume.state) === 'bad') ? 'bad' : unwell.length ? 'warn' : 'ok';
    const said = each.missing ? `no answer: ${each.missing}` : unwell.length ? `${unwell.length} of ${volumes.length} not ok` : `${volumes.length} ok`;
    made.append(el('button', { type: 'button', class: `node ${worst}`, title: shown(`${each.node}: ${said}`), on: { click: () => show(each.node) } },
      el('strong', { text: shown(each.node) }), el('span', { text: shown(said) })));
  }
  return picture.nodes.length ? made : el('p', { class: 'hint', text: picture.looked ? 'No agent runs: look at the DaemonSet podsvid-agent.' : 'Looking…' });
}

const TO_DO = {
  waiting: 'No SVID yet after a restart that found unusable files: it is asked for again by itself; the pod’s page says what failed.',
  retrying: 'A renewal failed and is tried again by itself: the pod’s page says what failed and what to do.',
  overdue: 'The renewal is late and did not fail: look at the agent’s log and at its processor time.',
  unwritten: 'The files hold an older SVID than the streams: look at the space and inodes of the volume’s directory; the pod’s page says more.',
  closed: 'The pod’s sockets are closed for a while, as they cost others their service; files are renewed.',
  expired: 'The SVID has ended: the pod is cut off. Its page says why it was not renewed.',
};

// Of one kind the first ones, and how many more.
const SHOWN = 50;

export function problemsOf(picture, rows) {
  const found = [];
  const add = (bad, what, todo, link) => found.push({ bad, what, todo, link });
  if (picture.missing.nodes) add(true, picture.missing.nodes, '');
  if (picture.missing.authority && picture.kind === 'cluster') add(true, `the signer: ${picture.missing.authority}`, '');
  for (const each of picture.nodes) if (each.missing) add(true, `node ${each.node}: ${each.missing}`, each.volumes.length ? 'What is shown of it is what it said before.' : '');
  const status = picture.authority ?? {};
  if (status.unknown) add(true, `it is not known who waits: ${status.unknown}`, 'Nothing that counts on it is done meanwhile.');
  for (const line of list(status.to_do)) add(true, line, '', '#authorities');
  for (const line of list(status.warnings)) add(false, line, '', '#authorities');
  const kinds = new Map();
  for (const row of rows) {
    if (row.state === 'ok') continue;
    const many = (kinds.get(row.state) ?? 0) + 1;
    kinds.set(row.state, many);
    if (many <= SHOWN) add(weight(row.state) === 'bad', `pod ${row.name} on ${row.node}: ${row.shownState}`, TO_DO[row.state] ?? 'Its page says more.', podLink(row.volume.namespace, row.volume.pod));
  }
  for (const [state, many] of kinds) if (many > SHOWN) add(weight(state) === 'bad', `${many - SHOWN} more pods: ${state}`, 'Identities, “not ok only”, has all of them.', '#identities');
  return found.sort((one, other) => other.bad - one.bad);
}

export function problems(found, looked) {
  if (!found.length) return el('p', { class: 'hint', text: looked ? 'Nothing is wrong.' : 'Looking…' });
  return el('div', {}, ...found.map((each) => el('section', { class: `card problem ${each.bad ? 'bad' : 'warn'}` },
    el('p', {}, el('strong', { text: shown(each.what) })),
    each.todo ? el('p', { text: shown(each.todo) }) : null,
    each.link ? el('p', {}, el('a', { href: each.link, text: each.link.startsWith('#pod') ? 'look at the pod' : 'look there' })) : null)));
}
