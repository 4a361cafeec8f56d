"""Uses names below a directory that somebody outside swaps for a link all the time."""

import json
import os
import time

got = {"own": 0, "refused": 0, "others": 0}
open("/out/ready", "w").close()
start = time.monotonic()
while time.monotonic() < start + 3 or (got["own"] == 0 and time.monotonic() < start + 30):
    try:
        with open("/out/d/file") as file:
            got["own" if file.read() == "own" else "others"] += 1
    except OSError:
        got["refused"] += 1
    for attempt in (
        lambda: os.chmod("/out/d/file", 0o640),
        lambda: os.mkdir(f"/out/d/{got['own']}"),
        lambda: os.utime("/out/d", (1, 1)),
        lambda: os.rename("/out/d/file", "/out/d/renamed"),
        lambda: os.rename("/out/d/renamed", "/out/d/file"),
    ):
        try:
            attempt()
        except OSError:
            got["refused"] += 1
open("/out/done", "w").close()
print(json.dumps(got))
