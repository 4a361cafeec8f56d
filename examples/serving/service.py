"""Classify the images that clients post to ``/classify``, with ``model.onnx``.

An ordinary FastAPI application that knows nothing of enclaves: ``uvicorn service:app``.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from fastapi import FastAPI, HTTPException, Request
from PIL import Image, UnidentifiedImageError
from starlette.concurrency import run_in_threadpool

TOP = 5
LARGEST = 10 << 20  # bytes of an image

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
model = onnxruntime.InferenceSession(Path("model.onnx").read_bytes(), options)
names = Path("classes.txt").read_text(encoding="utf-8").splitlines()
app = FastAPI()


@app.post("/classify")
async def classify(request: Request) -> list[dict[str, Any]]:
    """Return the likeliest classes of the image in the body, and their percentages."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > LARGEST:
            raise HTTPException(413, f"more than {LARGEST} bytes")
    return await run_in_threadpool(infer, body)


def infer(data: bytes) -> list[dict[str, Any]]:
    """Decode an image and run the network on it."""
    try:
        with Image.open(io.BytesIO(data)) as file:
            image = file.convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise HTTPException(422, "not an image") from error
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.resize((224, 224), box=(left, top, left + side, top + side))
    pixels = (np.asarray(image, dtype=np.float32) - 127) / 128
    scores = model.run(["scores"], {"image": pixels.transpose(2, 0, 1)[None]})[0][0]
    likelihoods = np.exp(scores - scores.max())
    percentages = 100 * likelihoods / likelihoods.sum()
    likeliest = percentages.argsort()[::-1][:TOP]
    return [{"name": names[i], "percentage": round(float(percentages[i]), 4)} for i in likeliest]
