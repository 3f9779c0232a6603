"""Helpers for tests that use the test Hub.

Git LFS runs in the process of the tests. Xet and the `hf` command run in fresh ones, as users have
them; `HF_ENDPOINT` is read at import.
"""

import http.client
import random
import subprocess
import sys
from pathlib import Path

import huggingface_hub

TOKENS = {"hf_tester": "tester", "hf_other": "other", "hf_reader": "tester:read"}
COMMAND = Path(sys.executable).with_name("hf")
LOOPBACK_ONLY = """
import os
import sys

def check(event, arguments):
    if event not in ("socket.connect", "socket.getaddrinfo"):
        return
    host = arguments[0] if event == "socket.getaddrinfo" else arguments[1][0]
    if host not in ("127.0.0.1", b"127.0.0.1"):
        print("refused:", event, host, file=sys.stderr, flush=True)
        os._exit(70)  # an exception could be caught

sys.addaudithook(check)
"""


def write_files(folder: Path, seed: int = 0) -> Path:
    """A small model: two large files, a card, a regular file in a subfolder."""
    draw = random.Random(seed)
    (folder / "unet").mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text("---\nlicense: mit\ntags: [tiny]\n---\n# Tiny\n")
    (folder / "unet" / "config.json").write_text('{"width": 8}')
    (folder / "unet" / "model.safetensors").write_bytes(draw.randbytes(300_000))
    (folder / "vq.safetensors").write_bytes(draw.randbytes(200_000))
    return folder


def contents(folder) -> dict[str, bytes]:
    """The files in a folder by path, without what Git and the client add."""
    files = (path for path in Path(folder).rglob("*") if path.is_file())
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    return {path: it for path, it in found.items() if not path.startswith((".git", ".cache"))}


def put(api, path: str, content, name="tester/tiny", **options):
    file = {"path_or_fileobj": content, "path_in_repo": path}
    return api.upload_file(repo_id=name, **file, **options)


def download(
    hub, cache: Path, name="tester/tiny", token="hf_tester", **options
) -> dict[str, bytes]:
    """What a snapshot holds; with a `cache` that does not exist, everything is fetched."""
    options |= {"endpoint": hub.endpoint, "token": token, "cache_dir": cache}
    return contents(huggingface_hub.snapshot_download(name, **options))


def head(hub, name="tester/tiny", repo_type="model") -> str:
    return hub.repository(name, repo_type).resolve().oid


def raw(hub, method, path, body=b"", **headers):
    """A request that no client cleans up: status, body and headers of the answer."""
    connection = http.client.HTTPConnection(hub.endpoint.removeprefix("http://"), timeout=10)
    try:
        authorization = {"Authorization": "Bearer hf_tester"}
        connection.request(method, path, body, authorization | headers)
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers
    finally:
        connection.close()


def run(hub, home, *command, token="hf_tester", succeeds=True) -> str:
    """Output of a fresh process that knows this Hub and reaches no other address."""
    environment = hub.environment(home, token) | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert (done.returncode == 0) == succeeds, done.stdout + done.stderr
    return done.stdout if succeeds else done.stdout + done.stderr


def python(hub, home, code, *arguments, **options) -> str:
    code = f"{LOOPBACK_ONLY}import huggingface_hub\napi = huggingface_hub.HfApi()\n{code}"
    return run(hub, home, sys.executable, "-c", code, *map(str, arguments), **options)


def hf(hub, home, *arguments, **options) -> str:
    """The command, started by its own script under the same watch."""
    code = f"{LOOPBACK_ONLY}import runpy\nrunpy.run_path(sys.argv.pop(1), run_name='__main__')"
    return run(hub, home, sys.executable, "-c", code, COMMAND, *map(str, arguments), **options)
