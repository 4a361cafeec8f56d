"""Answer ``question.txt`` with the nearest of ``documents.txt``, the nearest first: ``answer.txt``.

The encoder is in ``model``, the documents are one a line. This is an ordinary program of
sentence-transformers that knows nothing of enclaves.
"""

from __future__ import annotations

from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer


def main() -> None:
    """Encode question and documents, sort by similarity."""
    # The order in which threads add floating-point numbers up changes the last digits.
    torch.set_num_threads(1)
    encoder = SentenceTransformer("model", device="cpu")
    documents = Path("documents.txt").read_text(encoding="utf-8").splitlines()
    question = Path("question.txt").read_text(encoding="utf-8").strip()
    near = encoder.similarity(encoder.encode([question]), encoder.encode(documents))[0].tolist()
    ranked = sorted(zip(near, documents, strict=True), reverse=True)
    lines = [f"{similarity:.6f}  {document}\n" for similarity, document in ranked]
    Path("answer.txt").write_text("".join(lines), encoding="utf-8")
    print(f"{len(documents)} documents are ranked in answer.txt")


if __name__ == "__main__":
    main()
