"""Processes as Python's libraries make them: one JSON object, check -> outcome.

Run in a directory of its own: ``python3 workers.py``. The same program runs natively and in the
sandbox; the outcomes must be equal.
"""

import asyncio
import concurrent.futures
import json
import multiprocessing
import os
import pty
import signal
import subprocess
import sys
import tempfile
import threading
from multiprocessing import shared_memory

CHECKS = {}
METHODS = ("fork", "spawn", "forkserver")


def check(function):
    CHECKS[function.__name__] = function
    return function


def square(number):
    return number * number


def count_lines(name):
    with open(name, encoding="utf-8") as f:
        return sum(1 for _ in f)


def add_under_lock(value, lock):
    for _ in range(200):
        with lock:
            value.value += 1


def echo(queue, answers):
    for item in iter(queue.get, None):
        answers.put((item, os.getpid() != os.getppid()))


def write_into_shared(name):
    memory = shared_memory.SharedMemory(name=name)
    memory.buf[:5] = b"there"
    memory.close()


@check
def pools():
    results = []
    for method in METHODS:
        with multiprocessing.get_context(method).Pool(2) as pool:
            results.append(pool.map(square, range(20)))
    return results


@check
def locks_and_values():
    results = []
    for method in METHODS:
        context = multiprocessing.get_context(method)
        value, lock = context.Value("i", 0), context.Lock()
        workers = [context.Process(target=add_under_lock, args=(value, lock)) for _ in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        results.append((value.value, [worker.exitcode for worker in workers]))
    return results


@check
def queues():
    results = []
    for method in METHODS:
        context = multiprocessing.get_context(method)
        queue, answers = context.Queue(), context.Queue()
        worker = context.Process(target=echo, args=(queue, answers))
        worker.start()
        for item in ("text", b"bytes" * 50_000, [1, {"a": 2}], None):
            queue.put(item)
        got = [answers.get(timeout=30) for _ in range(3)]
        worker.join()
        results.append([(len(item), other) for item, other in got])
    return results


@check
def shared_memory_by_name():
    memory = shared_memory.SharedMemory(create=True, size=100_000)
    context = multiprocessing.get_context("spawn")
    worker = context.Process(target=write_into_shared, args=(memory.name,))
    worker.start()
    worker.join()
    seen = bytes(memory.buf[:5]).decode()
    memory.close()
    memory.unlink()
    return seen, worker.exitcode


@check
def managers():
    with multiprocessing.Manager() as manager:
        shared = manager.dict()
        shared["a"] = 1
        return dict(shared)


@check
def futures_over_files():
    for n in range(30):
        with open(f"part-{n}", "w", encoding="utf-8") as f:
            f.write("line\n" * n)
    names = [f"part-{n}" for n in range(30)]
    with concurrent.futures.ProcessPoolExecutor(3) as pool:
        by_processes = list(pool.map(count_lines, names))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        by_threads = list(pool.map(count_lines, names))
    return by_processes == by_threads == list(range(30))


@check
def subprocesses():
    code = "import sys; data = sys.stdin.read(); print(data.upper()); sys.exit(len(data))"
    done = subprocess.run(
        [sys.executable, "-c", code], input="text", capture_output=True, text=True, check=False
    )
    killed = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    killed.terminate()
    try:
        subprocess.run(["/no/such/program"], check=True)
        missing = ""
    except FileNotFoundError as error:
        missing = error.strerror
    session = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getsid(0) == os.getpid())"],
        start_new_session=True, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    try:
        subprocess.run([sys.executable, "-c", "while True: pass"], timeout=0.3, check=False)
        timed_out = False
    except subprocess.TimeoutExpired:
        timed_out = True
    return done.stdout, done.returncode, killed.wait(), missing, session, timed_out


@check
def asynchronous():
    async def work():
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "print('from below')", stdout=asyncio.subprocess.PIPE
        )
        out, _ = await process.communicate()
        server = await asyncio.start_unix_server(answer, "asyncio.socket")
        reader, writer = await asyncio.open_unix_connection("asyncio.socket")
        writer.write(b"ping\n")
        line = await reader.readline()
        writer.close()
        server.close()
        loop = asyncio.get_running_loop()
        done = asyncio.Event()
        loop.add_signal_handler(signal.SIGUSR1, done.set)
        os.kill(os.getpid(), signal.SIGUSR1)
        await asyncio.wait_for(done.wait(), 10)
        return out.decode(), process.returncode, line.decode()

    async def answer(reader, writer):
        writer.write((await reader.readline()).upper())
        writer.close()

    return asyncio.run(work())


@check
def terminals():
    pid, terminal = pty.fork()
    if pid == 0:
        os.write(1, b"on a terminal" if os.isatty(0) else b"no terminal")
        os._exit(4)
    text = os.read(terminal, 100).decode()
    _, status = os.waitpid(pid, 0)
    return text, os.waitstatus_to_exitcode(status)


@check
def many_threads():
    total = []
    threads = [threading.Thread(target=lambda: total.append(1)) for _ in range(256)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(total)


@check
def temporary_files():
    with tempfile.TemporaryFile(dir=".") as f:
        f.write(b"x" * 10_000)
        f.seek(5000)
        size = len(f.read())
    with tempfile.NamedTemporaryFile(dir=".") as f:
        exists = os.path.exists(f.name)
    with tempfile.TemporaryDirectory(dir=".") as d:
        os.makedirs(f"{d}/a/b")
    return size, exists, os.path.exists(f.name), os.path.exists(d)


def main():
    results = {}
    for name, function in CHECKS.items():
        try:
            results[name] = function()
        except Exception as error:
            results[name] = f"{type(error).__name__}: {error}"
    print(json.dumps(results))


if __name__ == "__main__":
    main()
