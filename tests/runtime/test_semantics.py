"""File semantics: the same program natively and in the sandbox, with the same outcomes.

The kernel is the oracle: whatever the native run says is right.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from applications import KEY, PYTHON, WITHOUT_LINKS, App

Outcomes = dict[str, object]


@pytest.mark.parametrize("kind", ["chroot", "encrypted", "tmpfs"])
def test_same_as_native(app: App, native_semantics: Callable[[], Outcomes], kind: str) -> None:
    (app.directory / "files").mkdir()
    app.mount("/files", "" if kind == "tmpfs" else "file:files", kind)
    app.settings["fs.insecure__keys.default"] = f'"{KEY}"'
    app.settings["fs.start_dir"] = '"/files"'
    done = app.direct([PYTHON, "/programs/semantics.py"])
    native = native_semantics()
    assert len(native) > 25
    assert "Error" not in json.dumps(native)
    assert json.loads(done.stdout) == (native | WITHOUT_LINKS if kind == "encrypted" else native)
