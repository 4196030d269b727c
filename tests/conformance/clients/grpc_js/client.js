// A workload that uses grpc-js, and says what it saw, one JSON object a line: each SVID of a stream that is opened again
// whenever it ends, and the status it ended with. At each line that it is sent it asks once more.
'use strict';

const { X509Certificate } = require('node:crypto');
const { join } = require('node:path');
const readline = require('node:readline');
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');

const PAUSE_MS = 200;
const [address] = process.argv.slice(2);
const proto = join(__dirname, 'workload.proto');
const { SpiffeWorkloadAPI } = grpc.loadPackageDefinition(loader.loadSync(proto, { keepCase: true }));
const client = new SpiffeWorkloadAPI(address, grpc.credentials.createInsecure());
const header = new grpc.Metadata();
header.set('workload.spiffe.io', 'true');

const say = (line) => console.log(JSON.stringify(line));

// The leaf comes first; what is after it in `x509_svid` is not looked at.
const serial = (answer) => new X509Certificate(answer.svids[0].x509_svid).serialNumber;

function follow() {
  const call = client.FetchX509SVID({}, header);
  call.on('data', (answer) => say({ serial: serial(answer) }));
  call.on('error', () => {});
  call.on('status', (status) => {
    say({ ended: grpc.status[status.code] });
    setTimeout(follow, PAUSE_MS);
  });
}

function fetch() {
  const call = client.FetchX509SVID({}, header);
  let fetched;
  call.on('data', (answer) => {
    fetched = serial(answer);
    call.cancel();
  });
  call.on('error', () => {});
  call.on('status', (status) => say({ fetched: fetched || grpc.status[status.code] }));
}

follow();
readline.createInterface({ input: process.stdin }).on('line', fetch).on('close', () => process.exit());
