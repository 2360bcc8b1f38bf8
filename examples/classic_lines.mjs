// Sends each line of standard input over a Twinlock classic line and prints the server's answers.
//
//   npm install jose
//   node classic_lines.mjs HOST PORT NAME KEYFILE < lines
//
// KEYFILE holds what `twinlock classic add NAME --to ROOM` printed. TWINLOCK_CA may name a file with
// the server's certificate (identity/tls-cert.pem of its data) or an authority's; without it TLS is
// not verified, and the key alone proves both ends.
import { createHmac, randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { connect } from "node:tls";
import { CompactEncrypt, compactDecrypt } from "jose";

const [host, port, name, keyfile] = process.argv.slice(2);
const header = { alg: "dir", enc: "A256CBC-HS512" }; // these bytes in this order, or enc first
const shared = Buffer.from(readFileSync(keyfile, "ascii").trim(), "hex");
const ca = process.env.TWINLOCK_CA && readFileSync(process.env.TWINLOCK_CA);

// Lock 1.
const line = connect({ host, port, ca, minVersion: "TLSv1.3", rejectUnauthorized: !!ca });
const fail = (words) => {
  console.error(words);
  process.exit(1);
};
line.on("error", (error) => fail(error.message));
const answers = createInterface({ input: line })[Symbol.asyncIterator]();
const read = async () => (await answers.next()).value;

// Both ends draw a nonce, so that nothing of this connection is good for another.
const [word, nonce] = ((await read()) ?? "").split(" ");
if (word !== "TLC1") fail("this is no Twinlock classic line");
const serverNonce = Buffer.from(nonce, "base64url");
const clientNonce = randomBytes(16);
line.write(`${name} ${clientNonce.toString("base64url")}\n`);

// Lock 2: a key for each direction.
const key = (direction) =>
  createHmac("sha512", shared)
    .update(Buffer.concat([Buffer.from(`tlc1 ${direction}`), serverNonce, clientNonce]))
    .update(name)
    .digest();
const [toServer, toClient] = [key("c2s"), key("s2c")];

let number = 0;
for await (const text of createInterface({ input: process.stdin })) {
  const plain = new TextEncoder().encode(`${number} ${text}`);
  line.write((await new CompactEncrypt(plain).setProtectedHeader(header).encrypt(toServer)) + "\n");
  const token = await read();
  if (!token) fail("the server closed the line: wrong name or key, or the key was revoked");
  const answer = new TextDecoder().decode((await compactDecrypt(token, toClient)).plaintext);
  if (!answer.startsWith(`${number} `)) fail("an answer is missing");
  console.log(answer.slice(`${number} `.length)); // ok CONVERSATION N LINK: on the server's disk
  number += 1;
}
line.end();
