"""A writer that is killed, and what its database says afterwards.

``databases.py write MODE`` inserts for ever and prints each committed number; ``check`` opens the
databases, runs the integrity check, and prints how many rows each has as one JSON object.
"""

import json
import multiprocessing
import sqlite3
import sys

MODES = ("delete", "wal", "truncate", "persist")


def open_database(mode):
    base = sqlite3.connect(f"{mode}.db", timeout=60, isolation_level=None)
    base.execute(f"pragma journal_mode={mode}")
    base.execute("create table if not exists t(writer integer, n integer, filler blob)")
    return base


def write(mode, writer):
    base = open_database(mode)
    n = 0
    while True:
        base.execute("begin immediate")
        for _ in range(5):
            base.execute("insert into t values(?, ?, randomblob(3000))", (writer, n))
        if n % 3 == 2:
            base.execute("update t set filler = randomblob(2000) where n = ?", (n - 2,))
        base.execute("commit")
        print(json.dumps([mode, writer, n]), flush=True)
        n += 1


def check():
    results = {}
    for mode in MODES:
        base = open_database(mode)
        verdict = base.execute("pragma integrity_check").fetchone()[0]
        rows = dict(base.execute("select writer, max(n) from t group by writer").fetchall())
        torn = base.execute(
            "select count(*) from (select count(*) c from t group by writer, n having c != 5)"
        ).fetchone()[0]
        results[mode] = [verdict, rows, torn]
    print(json.dumps(results))


def main():
    if sys.argv[1] == "check":
        check()
        return
    writers = [
        multiprocessing.Process(target=write, args=(mode, writer))
        for mode in MODES
        for writer in (0, 1)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()


if __name__ == "__main__":
    main()
