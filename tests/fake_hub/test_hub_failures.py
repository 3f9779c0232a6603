"""The test Hub when something goes wrong: nothing is half done, and the client says what it was."""

import base64
import hashlib
import json

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, constants, errors
from huggingface_hub.utils import _http

from fake_hub.client import contents, download, head, put, raw

pytest_plugins = "fake_hub.fixtures"
pytestmark = pytest.mark.fake_hub

TRANSPORT_ERRORS = _http._DEFAULT_RETRY_ON_EXCEPTIONS  # of httpx or httpx2


# Commits are atomic


def test_commit_is_atomic(hub, api):
    api.create_repo("tester/tiny")
    before, files = head(hub), hub.repository("tester/tiny").resolve().files
    operations = [CommitOperationAdd("a.txt", b"a"), CommitOperationDelete("nothing")]
    with pytest.raises(errors.EntryNotFoundError):
        api.create_commit("tester/tiny", operations, commit_message="both")
    assert head(hub) == before and set(files) == {".gitattributes"}


def test_stale_parent_is_a_conflict(hub, api):
    api.create_repo("tester/tiny")
    stale = head(hub)
    current = put(api, "a.txt", b"a", parent_commit=stale).oid
    with pytest.raises(errors.HfHubHTTPError, match="A commit has happened since"):
        put(api, "b.txt", b"b", parent_commit=stale)
    assert head(hub) == current


def test_large_files_are_checked(hub, api):
    api.create_repo("tester/tiny")
    before, sha256 = head(hub), hashlib.sha256(b"good").hexdigest()
    batch = json.dumps({"objects": [{"oid": sha256, "size": 4}]})
    answer = json.loads(raw(hub, "POST", "/tester/tiny.git/info/lfs/objects/batch", batch)[1])
    upload = answer["objects"][0]["actions"]["upload"]["href"].removeprefix(hub.endpoint)
    assert raw(hub, "PUT", upload, b"evil")[0] == 400
    assert raw(hub, "POST", f"{upload}/verify", b'{"size": 4}')[0] == 404
    assert raw(hub, "PUT", f"/uploads/guessed/{sha256}", b"good")[0] == 403
    header = {"key": "header", "value": {"summary": "large"}}
    file = {"key": "lfsFile", "value": {"path": "a.bin", "oid": sha256, "size": 4}}
    body = "\n".join(json.dumps(line) for line in (header, file))
    assert raw(hub, "POST", "/api/models/tester/tiny/commit/main", body)[0] == 400
    assert head(hub) == before and not list(hub.store.folder.iterdir())


# Injected failures


@pytest.mark.parametrize(
    ("method", "path", "status", "code", "expected"),
    [
        ("POST", "/preupload/", 401, "RepoNotFound", errors.RepositoryNotFoundError),
        ("POST", "/commit/", 400, None, errors.BadRequestError),
        ("POST", "/commit/", 402, None, errors.HfHubHTTPError),
        ("POST", "/commit/", 403, None, errors.HfHubHTTPError),
        ("POST", "/commit/", 403, "GatedRepo", errors.GatedRepoError),
        ("POST", "/commit/", 404, "RevisionNotFound", errors.RevisionNotFoundError),
        ("POST", "/commit/", 409, None, errors.HfHubHTTPError),
        ("POST", "/commit/", 412, None, errors.HfHubHTTPError),
        ("POST", "/commit/", 500, None, errors.HfHubHTTPError),
        ("POST", "/lfs/objects/batch", 413, None, errors.HfHubHTTPError),
        ("PUT", "/uploads/", 403, None, RuntimeError),
    ],
)
def test_failures(hub, api, folder, tmp_path, method, path, status, code, expected):
    api.create_repo("tester/tiny")
    before = head(hub)
    failure = hub.fail_on(method, path, status=status, code=code, message="no luck")
    with pytest.raises(expected) as caught:
        api.upload_folder(repo_id="tester/tiny", folder_path=folder)
    error = caught.value.__cause__ if expected is RuntimeError else caught.value
    assert error.response.status_code == status and "no luck" in str(error)
    assert failure.hits == 1 and head(hub) == before
    api.upload_folder(repo_id="tester/tiny", folder_path=folder)  # the failure was for once
    assert download(hub, tmp_path / "cache") == contents(folder)


def test_payment_required(hub, api):
    hub.fail_on("POST", "/api/repos/create", status=402, message="Please subscribe")
    space = {"repo_type": "space", "space_sdk": "gradio"}
    with pytest.raises(errors.HfHubHTTPError, match="Please subscribe") as caught:
        api.create_repo("tester/demo", exist_ok=True, **space)
    assert caught.value.response.status_code == 402 and not hub.repositories


def test_server_errors_are_retried(hub, api, folder, waits):
    api.create_repo("tester/tiny")
    hub.fail_on("POST", "/preupload/", status=503, times=2)
    hub.fail_on("PUT", "/uploads/", status=429, headers={"Retry-After": "7"})
    commit = api.upload_folder(repo_id="tester/tiny", folder_path=folder)
    assert head(hub) == commit.oid and sorted(waits) == [1, 2, 8]


def test_lasting_server_error(hub, api, folder, waits):
    api.create_repo("tester/tiny")
    before = head(hub)
    failure = hub.fail_on("POST", "/preupload/", status=503, times=None)
    with pytest.raises(errors.HfHubHTTPError, match="503"):
        api.upload_folder(repo_id="tester/tiny", folder_path=folder)
    assert (failure.hits, len(waits), head(hub)) == (6, 5, before)


def test_connection_lost_once_while_uploading(hub, api, folder, tmp_path, waits):
    api.create_repo("tester/tiny")
    hub.drop_on("PUT", "/uploads/", after_bytes=1000)
    api.upload_folder(repo_id="tester/tiny", folder_path=folder)
    assert download(hub, tmp_path / "cache") == contents(folder)
    lost, *complete = sorted(hub.requests("PUT"), key=lambda line: line.received)
    assert (lost.received, lost.status) == (1000, None)
    assert [line.status for line in complete] == [200, 200] and waits == [1]


def test_connection_lost_for_good_while_uploading(hub, api, folder, tmp_path):
    api.create_repo("tester/tiny")
    put(api, "other.safetensors", folder / "vq.safetensors")
    before = head(hub)
    loss = hub.drop_on("PUT", "/uploads/", times=None, after_bytes=1000)
    with pytest.raises(RuntimeError, match="Error while uploading") as caught:
        api.upload_folder(repo_id="tester/tiny", folder_path=folder)
    assert isinstance(caught.value.__cause__, TRANSPORT_ERRORS)
    assert loss.hits == 6 and head(hub) == before
    hub.failures.clear()
    hub.log.clear()
    api.upload_folder(repo_id="tester/tiny", folder_path=folder)
    missing = hashlib.sha256((folder / "unet" / "model.safetensors").read_bytes()).hexdigest()
    (sent,) = hub.requests("PUT")
    assert sent.received == 300_000 and sent.path.endswith(f"/{missing}")
    assert download(hub, tmp_path / "cache").items() >= contents(folder).items()


@pytest.mark.parametrize("during", ["request", "answer"])
def test_connection_lost_while_committing(hub, api, folder, tmp_path, during):
    """Without an answer the client cannot know; the next attempt finds out."""
    api.create_repo("tester/tiny")
    before = head(hub)
    hub.drop_on("POST", "/commit/", after_bytes=50, during=during)
    with pytest.raises(TRANSPORT_ERRORS):
        api.upload_folder(repo_id="tester/tiny", folder_path=folder)
    assert (head(hub) == before) == (during == "request")
    hub.log.clear()
    api.upload_folder(repo_id="tester/tiny", folder_path=folder)
    assert not hub.requests("PUT")
    assert len(hub.requests("POST", "/commit/")) == (1 if during == "request" else 0)
    assert download(hub, tmp_path / "cache") == contents(folder)


def test_connection_lost_while_downloading(hub, api, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # the client saves whole ones
    api.create_repo("tester/tiny")
    api.upload_folder(repo_id="tester/tiny", folder_path=folder)
    hub.drop_on("GET", r"/resolve/.*vq\.safetensors", after_bytes=100_000)
    assert download(hub, tmp_path / "cache") == contents(folder)
    lines = hub.requests("GET", r"/resolve/.*vq\.safetensors")
    assert [line.status for line in lines] == [None, 206]


# What must not get through


@pytest.mark.parametrize("name", ["..", "../x", ".hidden", "a\\b", "a..b", "", "a/b", "x.git"])
def test_bad_repository_names(hub, api, name):
    api.create_repo("tester/tiny")
    for fields in ({"name": name}, {"name": "x", "organization": name}):
        if fields.get("organization") != "":
            assert raw(hub, "POST", "/api/repos/create", json.dumps(fields))[0] == 400
    move = {"fromRepo": "tester/tiny", "toRepo": f"tester/{name}"}
    assert raw(hub, "POST", "/api/repos/move", json.dumps(move))[0] == 400
    assert set(hub.repositories) == {("model", "tester/tiny")}


@pytest.mark.parametrize(
    "path", ["../x", "a/../../x", "/etc/x", "..\\x", "a/./x", ".git/config", "a//x", "", "a\0b"]
)
def test_bad_file_paths(hub, api, path):
    api.create_repo("tester/tiny")
    before, url = head(hub), "/api/models/tester/tiny"
    header = {"key": "header", "value": {"summary": "bad"}}
    content = base64.b64encode(b"bad").decode()
    for key in ("file", "lfsFile", "deletedFile", "deletedFolder"):
        line = {"key": key, "value": {"path": path, "content": content, "oid": "0" * 64, "size": 3}}
        body = f"{json.dumps(header)}\n{json.dumps(line)}"
        status, answer, _ = raw(hub, "POST", f"{url}/commit/main", body)
        assert status == 400 and b"Invalid file path" in answer
    files = {"files": [{"path": path, "size": 3, "sample": content}]}
    assert raw(hub, "POST", f"{url}/preupload/main", json.dumps(files))[0] == 400
    assert head(hub) == before


def test_nothing_outside_is_served(hub, api, tmp_path):
    api.create_repo("tester/tiny")
    (tmp_path / "secret.txt").write_text("secret")
    for path in (
        "../secret.txt",
        "%2e%2e/secret.txt",
        "..%2Fsecret.txt",
        f"/{tmp_path}/secret.txt",
    ):
        for start in ("", "/tester/tiny/resolve/main", "/uploads", "/api/models/..", "/lfs"):
            status, body, _ = raw(hub, "GET", f"{start}/{path}")
            assert status in (400, 401, 404) and body != b"secret"
    oid = {"objects": [{"oid": "../../secret.txt", "size": 6}]}
    url = "/tester/tiny.git/info/lfs/objects/batch"
    assert raw(hub, "POST", url, json.dumps(oid))[0] == 400


def test_malformed_requests_are_refused(hub, api):
    api.create_repo("tester/tiny")
    before = head(hub)
    for body in (b"", b"{", b"[1]", b'{"key": "header"}', b'{"key": "header", "value": 3}'):
        assert raw(hub, "POST", "/api/models/tester/tiny/commit/main", body)[0] == 400
    assert raw(hub, "POST", "/api/repos/create", b"{}")[0] == 400
    assert raw(hub, "GET", "/api/nothing")[0] == 404
    assert head(hub) == before


@pytest.mark.parametrize(
    ("wanted", "status", "expected"),
    [
        ("bytes=2-4", 206, b"234"),
        ("bytes=7-", 206, b"789"),
        ("bytes=-2", 206, b"89"),
        ("bytes=8-99", 206, b"89"),
        ("bytes=10-", 416, b""),
        ("lines=1-2", 200, b"0123456789"),
    ],
)
def test_ranges(hub, api, wanted, status, expected):
    api.create_repo("tester/tiny")
    put(api, "digits.txt", b"0123456789")
    answer = raw(hub, "GET", "/tester/tiny/resolve/main/digits.txt", Range=wanted)
    assert answer[:2] == (status, expected)
