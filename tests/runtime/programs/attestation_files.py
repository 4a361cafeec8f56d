"""What the files of /dev/attestation do, one sentence of their description after the other."""

import errno
import json
import os
import subprocess
import sys
import threading

HERE = "/dev/attestation"


def attempt(action):
    try:
        return action()
    except OSError as error:
        return errno.errorcode[error.errno]


def write(name, data):
    with open(f"{HERE}/{name}", "wb", 0) as file:
        return file.write(data)


def read(name):
    with open(f"{HERE}/{name}", "rb") as file:
        return file.read()


def report_data():
    return read("report")[320:384]


got = {}
got["modes"] = {
    name: [oct(status.st_mode & 0o7777), status.st_size]
    for name in sorted(os.listdir(HERE))
    for status in [os.stat(f"{HERE}/{name}")]
}
got["keys"] = sorted(os.listdir(f"{HERE}/keys"))
got["first target is zero, then the own"] = read("report")[:0] == b"" and write("target_info", b"")
got["short is padded"] = write("user_report_data", b"short") == 5 and report_data().hex()
got["long is cut"] = write("user_report_data", b"x" * 70) == 70 and report_data() == b"x" * 64
with open(f"{HERE}/user_report_data", "w+b", 0) as file:
    file.write(b"one")
    file.write(b"two")  # the whole value again, not the rest of it
    file.seek(0)
    got["written is read back on the descriptor"] = file.read().decode()
got["each write is the whole value"] = report_data()[:6].hex()
with open(f"{HERE}/report", "rb", 0) as frozen:
    write("user_report_data", b"later")
    got["made at open"] = frozen.read()[320:323].decode()
seen = []
thread = threading.Thread(target=lambda: seen.append(report_data()[:5].decode()))
thread.start()
thread.join()
got["threads share"] = seen[0]
command = f"import sys; sys.stdout.write(open('{HERE}/report', 'rb').read()[320:325].hex())"
got["a child has zeros"] = subprocess.run(
    [sys.executable, "-c", command], capture_output=True, check=True, text=True
).stdout
for size in (0, 15, 17):
    got[f"a key of {size} bytes"] = attempt(lambda size=size: write("keys/spare", bytes(size)))
got["an unset key"] = len(read("keys/spare"))
got["a key is set"] = [write("keys/spare", b"0123456789abcdef"), read("keys/spare").decode()]
got["a sealing key is written"] = attempt(lambda: write("keys/_sgx_mrenclave", bytes(16)))
got["an unknown key"] = attempt(lambda: read("keys/unknown"))
got["a new key"] = attempt(lambda: write("keys/new", bytes(16)))
got["a new file"] = attempt(lambda: write("new", b""))
got["unlink"] = attempt(lambda: os.unlink(f"{HERE}/report"))
got["write a report"] = attempt(lambda: write("report", b""))
got["graphene unset"] = read("protected_files_key").hex()
got["graphene short"] = attempt(lambda: write("protected_files_key", b"00" * 15))
got["graphene newline"] = attempt(lambda: write("protected_files_key", b"00" * 16 + b"\n"))
got["graphene not hex"] = attempt(lambda: write("protected_files_key", b"zz" * 16))
got["graphene set"] = [
    write("protected_files_key", b"0f" * 16),
    read("protected_files_key").decode(),
    read("keys/default").hex(),
]
print(json.dumps(got))
