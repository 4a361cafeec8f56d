"""Write the five likeliest classes of ``input.jpg`` to ``result.txt``.

An ordinary PyTorch program, as short as such programs are: it knows nothing of enclaves.
"""

from pathlib import Path

import torch
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image

SIDE = 224  # pixels, what EfficientNet-Lite0 was trained with

torch.set_num_threads(1)  # the order of additions decides the last digits
model = EfficientNet.from_name("efficientnet-lite0")
model.load_state_dict(torch.load("model.pt", weights_only=True))
model.eval()

with Image.open("input.jpg") as file:
    image = file.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
batch = (pixels.view(1, SIDE, SIDE, 3).permute(0, 3, 1, 2).float() - 127) / 128

with torch.inference_mode():
    shares = model(batch)[0].softmax(dim=0)

classes = Path("classes.txt").read_text().splitlines()
with Path("result.txt").open("w") as result:
    for share, index in zip(*shares.topk(5), strict=True):
        result.write(f"{classes[index]:<30} {100 * share:8.4f} %\n")
