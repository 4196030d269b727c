// Authorities, nodes and problems, drawn of the picture.
import { about, el, facts, instant, list, podLink, shown, time, weight, when, written } from '/assets/made.js';

const KINDS = { KIND_X509: 'x509', KIND_JWT: 'jwt', KIND_BOTH: 'x509, jwt' };

// Why a part is not known, where the page does not say so already: where nobody answers, one reason is that of all.
const own = (picture, part) => (picture.missing[part] === picture.missing.nodes ? '' : picture.missing[part] ?? '');

const because = (what, why) => (why ? `${what}: ${shown(why)}` : what);

const aged = (why, age) => (why && age ? `${shown(why)}; ${age}` : why ? shown(why) : age && age[0].toUpperCase() + age.slice(1));

// `later` takes what is to be written anew each second, so that nothing else is.
export function authorities(picture, now, later) {
  const status = picture.authority, made = el('div');
  const missing = own(picture, 'authority');
  if (missing || (picture.missing.authority && status)) {
    const age = (at) => (status ? `this is what it said ${about(at - time(picture.authority_at))} ago` : '');
    made.append(written(el('p', { class: 'notice' }), (at) => aged(missing, age(at)), now, later));
  }
  if (picture.kind === 'quickstart') {
    made.append(el('p', { class: 'hint', text: 'The quickstart’s agent is its own authority, and renews SVIDs only: a rotation of the CA is seen in a cluster, by podsvid console.' }));
    if (status) made.append(life(status, now, later));
    return made;
  }
  if (!status) {
    made.append(federations(picture, now, later));
    return made;
  }
  const have = (status.agents ?? 0) - (status.agents_waiting ?? 0);
  const acknowledged = el('span', {},
    el('meter', { min: 0, max: Math.max(1, status.agents ?? 0), value: have }), ` ${have} of ${status.agents ?? 0} agents${status.unknown ? ', as far as is known' : ''}`);
  made.append(life(status, now, later));
  made.append(el('section', { class: 'card' }, facts([
    ['said', written(el('span'), (at) => `${about(at - time(picture.authority_at))} ago`, now, later)], ['acknowledged', acknowledged], ['sequence', status.sequence], ['leader', status.leader || 'none'],
    ['missing', list(status.waiting_nodes).join(', ')],
    ...list(status.awaited).map((each) => ['waits for', `${KINDS[each.kind] ?? ''} ${each.id}: ${each.audience} until ${instant(each.until)}`]),
    ...list(status.next).map((line) => ['next', line]),
    ...list(status.to_do).map((line) => ['to do', line]),
    ...list(status.warnings).map((line) => ['warning', line]),
    ['unknown', status.unknown],
  ])));
  made.append(above(picture, status), federations(picture, now, later));
  return made;
}

const life = (status, now, later) => el('section', { class: 'card' }, el('h2', { text: `Authorities of ${shown(status.trust_domain)}` }), lanes(list(status.authorities), now, later));

// What the CA above is asked for and said, its roots, and what was declared stolen.
function above(picture, status) {
  const asked = status.requested_x509, errors = list(picture.findings).filter((each) => ['UPSTREAM_AWAY', 'UPSTREAM_ROOTS_REFUSED'].includes(each.reason));
  const known = asked || [status.upstream_roots, status.revoked_roots, status.abandoned].some((each) => list(each).length) || errors.length || picture.missing.leader;
  if (!known) return el('div');
  return el('section', { class: 'card' }, el('h2', { text: 'The CA above' }),
    ...errors.map((each) => said(each.seen)),
    picture.missing.leader ? el('p', { class: 'notice', text: shown(picture.missing.leader) }) : null,
    facts([
      ...(asked ? [['asked for', `${asked.id} at ${asked.at}: ${list(asked.said).join('; ') || 'nothing said yet'}`]] : []),
      ...list(status.upstream_roots).map((each) => ['root', `${each.subject}, ${each.id}, ends ${instant(each.not_after)}${each.leaves_at ? `, named no more, leaves not before ${instant(each.leaves_at)}` : ''}`]),
      ...list(status.revoked_roots).map((each) => ['revoked root', `${each.subject}, ${each.id}, since ${instant(each.asked_at)}, ${each.trusted ? 'still trusted' : 'not trusted'}`]),
      ...list(status.abandoned).map((each) => ['abandoned', `${KINDS[each.kind] ?? ''} ${each.id}, asked for ${instant(each.asked_at)}${each.left_at ? `, left ${instant(each.left_at)}` : ', still trusted'}`]),
    ]));
}

const said = (text) => el('p', { class: 'error', text: shown(text) });

// Each trust domain that this one federates with: whether workloads have its bundle, how old that is, the last error.
function federations(picture, now, later) {
  const found = list(picture.federations), missing = own(picture, 'federations');
  if (!found.length && !missing) return el('div');
  const age = (at) => (picture.federations_at ? `this is as it was ${about(at - time(picture.federations_at))} ago` : '');
  return el('section', { class: 'card' }, el('h2', { text: 'Federation' }),
    picture.missing.federations ? written(el('p', { class: 'notice' }), (at) => aged(missing, age(at)), now, later) : null,
    ...found.map((each) => {
      const errors = list(each.errors), state = each.unseen ? 'not looked at yet' : each.ready ? `in force${errors.length ? ', and the last look failed:' : ''}` : 'not in force';
      const more = (at) => [each.sequence == null ? '' : `sequence ${each.sequence}`, each.fetched_at ? `fetched ${about(at - time(each.fetched_at))} ago` : 'never fetched',
        each.next_poll ? `next look in ${about(Math.max(0, time(each.next_poll) - at))}` : '', each.earliest_not_after ? `first certificate ends ${when(time(each.earliest_not_after) - at)}` : ''].filter(Boolean).join(', ');
      return el('div', { class: 'partner' },
        el('p', {}, el('span', { class: `state ${each.ready ? errors.length ? 'warn' : 'ok' : 'bad'}`, text: state }), ' ', el('strong', { text: shown(each.trust_domain) }), el('span', { class: 'hint', text: ` ${shown(each.name)}` })),
        el('p', {}, el('code', { text: shown(each.url) })),
        written(el('p', { class: 'hint' }), (at) => shown(more(at)), now, later),
        ...errors.map(said));
    }));
}

function lanes(all, now, later) {
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
    later.push((moment) => { mark.style.left = at(moment); });
    track.append(mark);
    const said = (moment) => shown([each.stage, each.leaves_at ? `leaves ${when(time(each.leaves_at) - moment)}` : '',
      each.not_after ? `certificate ends ${when(time(each.not_after) - moment)}` : '', each.svids_known ? `${each.svids} SVID${each.svids === 1 ? '' : 's'} held` : ''].filter(Boolean).join(', '));
    life.append(el('div', { class: 'lane', title: shown(each.id) },
      el('div', { class: 'name' }, el('strong', { text: `${KINDS[each.kind] ?? shown(each.kind)} ` }), el('code', { text: shown(each.id).slice(0, 10) })),
      el('div', {}, track, written(el('div', { class: 'hint' }), said, now, later))));
  }
  life.append(el('div', { class: 'axis' }, el('span'), el('div', {}, written(el('span'), (moment) => `${about(moment - began)} ago`, now, later),
    written(el('span'), (moment) => `the line: now; right: in ${about(end - moment)}`, now, later))));
  return life;
}

// Of each node what its field says: what is not known is not well.
export function nodesOf(picture) {
  return picture.nodes.map((each) => {
    const volumes = list(each.volumes), unwell = volumes.filter((volume) => volume.state !== 'ok');
    if (each.missing) return { node: each.node, worst: 'bad', said: each.missing === picture.missing.nodes ? '' : each.missing, since: each.seen_at };
    if (!each.seen_at) return { node: each.node, worst: 'none', said: 'not asked yet' };
    const worst = unwell.some((volume) => weight(volume.state) === 'bad') ? 'bad' : unwell.length ? 'warn' : 'ok';
    return { node: each.node, worst, said: unwell.length ? `${unwell.length} of ${volumes.length} not ok` : `${volumes.length} ok` };
  });
}

// `looked`: and who runs was told.
export function nodes(fields, looked, show, now, later) {
  if (!fields.length) return el('p', { class: 'hint', text: looked ? 'No agent runs: look at the DaemonSet podsvid-agent.' : 'Looking…' });
  return el('div', { class: 'grid' }, ...fields.map((each) => {
    const line = each.since ? written(el('span'), (at) => because(`no answer for ${about(at - time(each.since))}`, each.said), now, later)
      : el('span', { text: each.since === '' ? because('no answer', each.said) : shown(each.said) });
    return el('button', { type: 'button', class: `node ${each.worst}`, 'data-key': each.node, title: because(shown(each.node), each.said), on: { click: () => show(each.node) } },
      el('strong', { text: shown(each.node) }), line);
  }));
}

// Doctor's words are set after a "do:"; commands are in backquotes.
const sentence = (text) => (text ? `${text[0].toUpperCase()}${text.slice(1)}.`.replaceAll('`', '') : '');

// Where not even the first question was answered.
const AWAY = {
  cluster: 'How pods are is not known by this: agents and signers have ways of their own. See whether kubectl with the same kubeconfig and context gets an answer; this page asks again by itself.',
  node: 'Pods have what they had, and nothing is renewed while no agent runs: look at it and at its log. This page asks again by itself.',
  quickstart: 'It has ended, or its agent hangs: look at the terminal in which it runs.',
};
const VIEWS = { '#authorities': 'Authorities shows it', '#nodes': 'Nodes shows them', '#identities': 'Identities' };

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
  const add = (bad, what, todo, link, since, read) => found.push({ bad, what, todo, link, since, read });
  if (picture.missing.nodes) add(true, picture.missing.nodes, AWAY[picture.kind] ?? AWAY.node, undefined, picture.authority && picture.missing.authority && !own(picture, 'authority') ? picture.authority_at : '');
  if (picture.missing.unasked) add(false, picture.missing.unasked, 'For a pod of another node there is podsvid explain, and on that node podsvid node ls.');
  if (own(picture, 'authority') && picture.kind === 'cluster') add(true, `the signer: ${picture.missing.authority}`, 'Where no signer runs no SVID is renewed: podsvid doctor says what its pods lack.', '#authorities', picture.authority ? picture.authority_at : '');
  const silent = new Map();
  for (const each of picture.nodes) if (each.missing) silent.set(each.missing, [...(silent.get(each.missing) ?? []), each]);
  for (const [why, some] of silent) {
    // Said once above where it is so of all.
    if (why === picture.missing.nodes) continue;
    const names = some.slice(0, 5).map((each) => each.node).join(', '), more = some.length > 5 ? ` and ${some.length - 5} more` : '';
    add(true, `node${some.length > 1 ? 's' : ''} ${names}${more}: ${why}`, some.some((each) => list(each.volumes).length) ? 'How its identities are now is not known: what is shown is what it said before.' : '', '#nodes',
      some.map((each) => each.seen_at).filter(Boolean).sort()[0]);
  }
  const left = picture.nodes.filter((each) => each.left_out), more = left.reduce((sum, each) => sum + each.left_out, 0);
  if (more) add(false, `${more.toLocaleString('en')} identities of ${left.length} nodes are not shown, as there are too many`, 'Those that are not ok are kept before others; podsvid node ls on a node has all of its own.');
  for (const each of list(picture.findings)) add(each.bad, `${each.reason}: ${each.seen}`, sentence(each.to_do), '#authorities', '', each.link);
  const kinds = new Map();
  // At the moment of the look, by this machine's clock: its agent, by the node's, says that it is valid.
  // A few seconds are no matter, and those of the look are whole ones.
  const skewed = rows.filter((row) => row.state === 'ok' && (row.ends < row.seen - 5000 || time(row.volume.not_before) > row.seen + 5000)).length;
  if (skewed) add(false, `by this machine’s clock ${skewed === 1 ? 'an SVID that its agent calls ok has' : `${skewed} SVIDs that their agents call ok have`} ended, or not begun`, 'Set this machine’s clock or the nodes’: what the page says of time left is by this machine’s.');
  for (const row of rows) {
    if (row.was === 'ok') continue;
    const many = (kinds.get(row.state) ?? 0) + 1;
    kinds.set(row.state, many);
    if (many <= SHOWN) add(weight(row.state) === 'bad', `pod ${row.name} on ${row.node}: ${row.shownState}`, TO_DO[row.state] ?? 'Its page says more.', podLink(row.volume.namespace, row.volume.pod));
  }
  for (const [state, many] of kinds) if (many > SHOWN) add(weight(state) === 'bad', `${many - SHOWN} more pods: ${state}`, 'Identities, “not ok only”, has all of them.', '#identities');
  return found.sort((one, other) => other.bad - one.bad);
}

export function problems(found, looked, now, later) {
  if (!found.length) return el('p', { class: 'hint', text: looked ? 'Nothing is wrong.' : 'Looking…' });
  return el('div', {}, ...found.map((each) => el('section', { class: `card problem ${each.bad ? 'bad' : 'warn'}` },
    el('p', {}, el('strong', { text: shown(each.what) })),
    each.since ? written(el('p', { class: 'hint' }), (at) => `what is shown was said ${about(at - time(each.since))} ago`, now, later) : null,
    each.todo ? el('p', { text: shown(each.todo) }) : null,
    each.read || each.link ? el('p', {}, each.read ? el('span', { class: 'hint', text: `see ${shown(each.read)}` }) : null, each.read && each.link ? ' · ' : null,
      each.link ? el('a', { href: each.link, 'data-key': `${each.link} ${each.what}`, text: VIEWS[each.link] ?? 'look at the pod' }) : null) : null)));
}
