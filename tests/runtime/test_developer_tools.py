"""git and a C compiler at work, over every kind of mount."""

from __future__ import annotations

import shutil

import pytest

from applications import KEY, App

SCRIPT = """\
set -e
cd /{place}
git init -q -b main origin
cd origin
for n in 1 2 3; do
    echo "int f$n(void) {{ return $n; }}" > f$n.c
    git add f$n.c
    git commit -q -m "file $n"
done
mkdir deep && git mv f1.c deep/f1.c && git commit -q -m moved
cd ..
git clone -q origin copy
cd copy
git checkout -q -b side HEAD~2
echo 'int side;' > side.c && git add side.c && git commit -q -m side
git checkout -q main && git merge -q -m merged side
git gc -q && git fsck --strict && git status --porcelain
git log --format=%s | sort | tr '\\n' ' '
mv deep deeper && ls deeper && mv deeper deep
printf 'int f1(void), f2(void), f3(void); #include <stdio.h>\\n' | sed 's/; #/;\\n#/' > main.c
echo 'int main(void) {{ printf("%d\\\\n", f1() + f2() + f3()); return 0; }}' >> main.c
cc -O1 -c -o f1.o deep/f1.c && cc -O1 -c f2.c && cc -O1 -c f3.c && ar rcs libf.a f1.o f2.o f3.o
cc -O1 -o program main.c -L. -lf && ./program
cc -shared -fPIC -o libg.so f2.c f3.c deep/f1.c
cc -o other main.c -L. -lg -Wl,-rpath,. && ./other
tar czf all.tgz deep f2.c && mkdir out && tar xzf all.tgz -C out && diff -r deep out/deep
cp -rp out again && find again -type f | sort | xargs cat | wc -l
rm -rf ../origin ../copy && ls -a && cd .. && ls -a
"""


@pytest.mark.parametrize("place", ["plain", "secret", "scratch"])
def test_clone_merge_compile(app: App, place: str) -> None:
    for tool in ("git", "cc", "ar", "tar"):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool}")
    for name in ("plain", "secret"):
        (app.directory / name).mkdir()
    app.mount("/plain", "file:plain")
    app.mount("/secret", "file:secret", "encrypted")
    app.mount("/scratch", kind="tmpfs")
    app.mount("/tmp", kind="tmpfs")
    app.settings["fs.insecure__keys.default"] = f'"{KEY}"'
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": f"/{place}",
        **{f"GIT_{who}_NAME": "Somebody" for who in ("AUTHOR", "COMMITTER")},
        **{f"GIT_{who}_EMAIL": "somebody@localhost" for who in ("AUTHOR", "COMMITTER")},
    }
    for name, value in environment.items():
        app.settings[f"loader.env.{name}"] = f'"{value}"'
    app.settings["sys.stack.size"] = '"8M"'
    done = app.direct(["/bin/sh", "-c", SCRIPT.format(place=place)])
    assert done.stdout.split("\n") == [
        "file 1 file 2 file 3 merged moved side f1.c", "6", "6", "2", ".", "..", "",
    ]  # fmt: skip
