"""Sends each line of standard input over a Twinlock classic line and prints the server's answers.

    pip install joserfc
    python3 classic_lines.py HOST PORT NAME KEYFILE < lines

KEYFILE holds what `twinlock classic add NAME --to ROOM` printed. TWINLOCK_CA may name a file with the
server's certificate (identity/tls-cert.pem of its data) or an authority's; without it TLS is not
verified, and the key alone proves both ends."""
import base64, hashlib, hmac, os, socket, ssl, sys

from joserfc import jwe
from joserfc.jwk import OctKey

HOST, PORT, NAME, KEYFILE = sys.argv[1:5]
HEADER = {"alg": "dir", "enc": "A256CBC-HS512"}  # these bytes in this order, or enc first
ALLOWED = list(HEADER.values())

with open(KEYFILE, encoding="ascii") as file:
    shared = bytes.fromhex(file.read().strip())

# Lock 1.
tls = ssl.create_default_context(cafile=os.environ.get("TWINLOCK_CA"))
tls.minimum_version = ssl.TLSVersion.TLSv1_3
if "TWINLOCK_CA" not in os.environ:
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
line = tls.wrap_socket(socket.create_connection((HOST, int(PORT)), 30), server_hostname=HOST)
answers = line.makefile("rb")

# Both ends draw a nonce, so that nothing of this connection is good for another.
word, nonce = answers.readline().split()
assert word == b"TLC1", "this is no Twinlock classic line"
server_nonce = base64.urlsafe_b64decode(nonce + b"==")
client_nonce = os.urandom(16)
encoded = base64.urlsafe_b64encode(client_nonce).rstrip(b"=")
line.sendall(NAME.encode() + b" " + encoded + b"\n")


def key(direction):
    """Lock 2: a key for each direction."""
    label = b"tlc1 " + direction + server_nonce + client_nonce + NAME.encode()
    return OctKey.import_key(hmac.new(shared, label, hashlib.sha512).digest())


to_server, to_client = key(b"c2s"), key(b"s2c")
for number, text in enumerate(sys.stdin):
    plain = f"{number} {text.rstrip(chr(10))}".encode()
    token = jwe.encrypt_compact(HEADER, plain, to_server, algorithms=ALLOWED)
    line.sendall(token.encode() + b"\n")
    answer = answers.readline().strip()
    if not answer:
        sys.exit("the server closed the line: wrong name or key, or the key was revoked")
    answer = jwe.decrypt_compact(answer, to_client, algorithms=ALLOWED).plaintext.decode()
    due, answer = answer.split(" ", 1)
    assert due == str(number), "an answer is missing"
    print(answer, flush=True)  # ok CONVERSATION N LINK: it is on the server's disk
