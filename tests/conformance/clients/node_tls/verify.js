// Speaks mutual TLS to a server for each pair of arguments: a pod's volume (layout spiffe) and the server's port. Says for
// each, in a line of JSON, whether it could, or at what it failed.
"use strict";
const fs = require("fs");
const path = require("path");
const tls = require("tls");

function speak(volume, port) {
  return new Promise((resolve) => {
    try {
      const read = (name) => fs.readFileSync(path.join(volume, name));
      const socket = tls.connect({
        host: "127.0.0.1",
        port: Number(port),
        servername: "peer.test",
        cert: read("tls.crt"),
        key: read("tls.key"),
        ca: read("ca.crt"),
      });
      socket.setTimeout(20000, () => socket.destroy(new Error("no answer")));
      // The server says so once it has verified this side.
      socket.on("data", () => {
        resolve("");
        socket.destroy();
      });
      socket.on("error", (error) => resolve(`${error.code || ""} ${error.message}`));
      socket.on("close", () => resolve("closed"));
    } catch (error) {
      resolve(`${error.code || ""} ${error.message}`);
    }
  });
}

async function main() {
  for (let at = 2; at + 1 < process.argv.length; at += 2) {
    const error = await speak(process.argv[at], process.argv[at + 1]);
    console.log(JSON.stringify({ version: process.version, openssl: process.versions.openssl, error }));
  }
}

main();
