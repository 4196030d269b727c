// One pod: `podsvid explain`, drawn as the way from policy to file.
import { about, el, facts, instant, list, shown, time, weight, when, windowOf } from '/assets/made.js';

export function pod(found, now) {
  const made = el('div'), policy = found.policy, on = found.on_node ?? {}, volumes = list(on.volumes);
  made.append(way(found, policy, on, volumes));
  for (const note of list(found.notes)) made.append(el('p', { class: 'notice', text: shown(note) }));
  if (policy) {
    made.append(el('section', { class: 'card' }, el('h2', { text: 'Policy' }), facts([
      ['outcome', policy.outcome], ['policy', policy.policy || (String(policy.outcome).startsWith('refused') ? '' : 'none is asked')], ['SPIFFE ID', policy.spiffe_id], ['its identity', policy.entitled], ['subject', policy.subject],
      ['X.509-SVIDs live', policy.x509_ttl && `${policy.x509_ttl}; a volume’s ttl gets ${policy.x509_ttl_most} at most`], ['podCertificate sources', policy.certificate_ttl], ['Istio’s proxies', policy.proxy_ttl && `certificates of that identity, which live ${policy.proxy_ttl} at most`], ['not granted', policy.ttl_clipped],
      ...list(policy.lost).map((each) => ['matches, and lost', `${each.policy}: ${each.because}`]),
      ...list(policy.not_matched).filter((each) => !each.elsewhere).slice(0, 5).map((each) => ['does not match', `${each.policy}: ${each.because}`]),
    ])));
  }
  for (const volume of volumes) made.append(ofVolume(volume, now));
  if (list(on.publish_problems).length) {
    made.append(el('section', { class: 'card' }, el('h2', { text: 'Could not be published; kubelet goes on trying' }), problemList(on.publish_problems, now)));
  }
  if (list(found.events).length) {
    made.append(el('section', { class: 'card' }, el('h2', { text: 'Events' }), el('ul', { class: 'plain' },
      ...found.events.map((each) => el('li', { text: shown(`${each.at} ${each.reason} (x${each.count}): ${each.message}`) })))));
  }
  const missing = Object.entries(found.missing ?? {});
  if (missing.length) made.append(el('section', { class: 'card' }, el('h2', { text: 'Not known' }), facts(missing.map(([part, why]) => [part.replace('_', ' '), why]))));
  return made;
}

function way(found, policy, on, volumes) {
  const first = volumes[0], refusal = list(on.publish_problems).at(-1);
  const stale = volumes.some((each) => each.files_serial && each.files_serial !== each.serial);
  const unwell = volumes.find((each) => each.state !== 'ok');
  const step = (name, kind, text) => el('li', { class: kind }, el('b', { text: name }), shown(text));
  return el('ol', { class: 'way', 'aria-label': 'the way from policy to files' },
    policy ? step('policy', policy.outcome === 'allowed' ? 'ok' : 'bad', policy.outcome === 'allowed' ? policy.policy || 'allowed' : policy.outcome) : step('policy', first?.policy ? 'ok' : 'none', first?.policy ? `${first.policy}, when the SVID was minted` : 'not known here'),
    step('authority', on.authority ? 'ok' : 'none', on.authority || 'not known'),
    step('node', volumes.length ? 'ok' : refusal || found.missing?.on_node ? 'bad' : 'none', refusal ? `${refusal.reason}: ${refusal.message}` : found.missing?.on_node || found.node || (volumes.length ? 'published' : 'not published')),
    step('X.509-SVID', first ? (unwell ? weight(unwell.state) : 'ok') : 'none', first ? `${first.spiffe_id || 'none yet'}${unwell ? `: ${unwell.state} ${unwell.state_reason ?? ''}` : ''}` : 'none'),
    step('files', first ? (stale ? 'bad' : 'ok') : 'none', first ? (stale ? 'they hold an older SVID' : `${list(first.files).length} files`) : 'none'),
    step('streams', 'none', first ? `${list(first.streams).length} open` : 'none'));
}

function ofVolume(volume, now) {
  const streams = list(volume.streams).map((each) => `${each.method} for ${about(each.open_seconds * 1000)}`);
  const peers = list(volume.peers).map((each) => `uid ${each.uid}, ${each.pid ? `pid ${each.pid} ${JSON.stringify(each.command)}` : 'pid unknown'}`);
  return el('section', { class: 'card' },
    el('h2', {}, el('span', { class: `state ${weight(volume.state)}`, text: shown(`${volume.state} ${volume.state_reason ?? ''}`) })),
    facts([
      ['SPIFFE ID', volume.spiffe_id || 'none yet'], ['account', volume.service_account], ['pod UID', volume.pod_uid], ['key', volume.key_algorithm],
      ['serial', volume.serial], ['authority', volume.authority_id],
      ['valid', volume.not_after && `${instant(volume.not_before)} to ${instant(volume.not_after)}, ${time(volume.not_after) < now ? 'which was' : 'which is'} ${when(time(volume.not_after) - now)}`],
      ['renewal', volume.failures || !volume.renew_at ? volume.renew_because : `${instant(volume.renew_at)}, ${when(time(volume.renew_at) - now)}: ${volume.renew_because}`],
      ...list(volume.jwt_files).map((each) => ['JWT-SVID', `${each.name} for ${list(each.audiences).join(', ')}, ends ${when(time(each.not_after) - now)}, renewal ${when(time(each.renew_at) - now)}`]),
      // Why then says it, where nothing failed.
      ['renewal window', volume.failures || !volume.renew_because ? windowOf(volume) : ''], ['minted by policy', volume.policy],
      ['notice', volume.notice], ['driver', `${volume.driver}, layout ${volume.layout}`],
      ['files', `${list(volume.files).join(', ')}; ${volume.files_written_at ? `written ${instant(volume.files_written_at)}` : 'not written'}`],
      ['files hold', volume.files_serial && volume.files_serial !== volume.serial ? `an older SVID: serial ${volume.files_serial}, valid to ${instant(volume.files_not_after)}` : ''],
      ['directory', volume.directory], ['streams', streams.join(', ') || 'none'], ['connections', peers.join('; ') || 'none'], ['next publish', volume.next_publish],
    ]),
    list(volume.problems).length ? el('h3', { text: 'Problems' }) : null,
    list(volume.problems).length ? problemList(volume.problems, now) : null);
}

function problemList(problems, now) {
  return el('ul', { class: 'plain' }, ...[...problems].reverse().map((each) => el('li', {},
    shown(`${about(now - time(each.at))} ago${each.times > 1 ? `, ${each.times} times since ${about(now - time(each.first_at))} ago` : ''}  ${each.reason}: ${each.message}`),
    each.advice ? el('div', { class: 'hint', text: shown(each.advice) }) : null)));
}
