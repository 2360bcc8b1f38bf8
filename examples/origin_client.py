"""Sends each line of standard input as the origin's client does and prints the server's answers.

    pip install pycryptodome
    python3 origin_client.py HOST PORT KEYFILE [hmac] < lines

KEYFILE holds what `twinlock classic add NAME --to ROOM --format origin` printed, or with `hmac` the
one of `--format origin-hmac`. The first form has no integrity: who ends TLS in between can alter and
repeat what is sent. Prefer classic_lines.py wherever you can."""
import base64, hashlib, hmac, socket, ssl, sys

from Crypto.Cipher import AES
from Crypto.Random import get_random_bytes
from Crypto.Util.Padding import pad, unpad

HOST, PORT, KEYFILE, *FORM = sys.argv[1:]
with open(KEYFILE, encoding="ascii") as file:
    shared = bytes.fromhex(file.read().strip())


def keys(direction):
    """The key, and of the form with a MAC its key: HKDF-SHA-256 (RFC 5869) to 64 bytes."""
    if FORM != ["hmac"]:
        return shared, None
    mac = lambda key, data: hmac.new(key, data, hashlib.sha256).digest()
    prk, info = mac(b"tl1 origin", shared), b"tl1 origin " + direction
    first = mac(prk, info + b"\x01")
    return first, mac(prk, first + info + b"\x02")


def seal(text):
    key, mac_key = keys(b"c2s")
    iv = get_random_bytes(16)
    sealed = iv + AES.new(key, AES.MODE_CBC, iv).encrypt(pad(text, 16))
    if mac_key:
        sealed += hmac.new(mac_key, sealed, hashlib.sha256).digest()
    return base64.b64encode(sealed)


def open_(message):
    key, mac_key = keys(b"s2c")
    sealed = base64.b64decode(message, validate=True)
    if mac_key:
        sealed, tag = sealed[:-32], sealed[-32:]
        assert hmac.compare_digest(tag, hmac.new(mac_key, sealed, hashlib.sha256).digest())
    return unpad(AES.new(key, AES.MODE_CBC, sealed[:16]).decrypt(sealed[16:]), 16)


tls = ssl.create_default_context()
tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE  # as the origin's client does
line = tls.wrap_socket(socket.create_connection((HOST, int(PORT)), 30))
for text in sys.stdin:
    line.sendall(seal(text.rstrip("\n").encode()))  # no line end, and one message before its answer
    answer = line.recv(4096)
    if not answer:
        sys.exit("the server closed the connection: wrong key, or the key was revoked")
    print(open_(answer).decode(), flush=True)
