"""The test Hub against the real clients: huggingface_hub, hf_xet and the `hf` command."""

import hashlib
import http.client
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationCopy, HfApi, errors

from fake_hub import server as hub_server
from fake_hub.client import TOKENS, contents, download, head, hf, put, python, raw, write_files

pytest_plugins = "fake_hub.fixtures"
pytestmark = pytest.mark.fake_hub


# Uploads and downloads


@pytest.mark.parametrize("part_size", [None, 70_000])
def test_upload_and_download_by_lfs(hub, api, folder, tmp_path, part_size):
    hub.part_size = part_size
    url = api.create_repo("tester/tiny")
    assert (url.repo_id, url) == ("tester/tiny", f"{hub.endpoint}/tester/tiny")
    commit = api.upload_folder(repo_id="tester/tiny", folder_path=folder, commit_message="first")
    assert download(hub, tmp_path / "cache") == contents(folder)
    sent = [line.received for line in hub.requests("PUT", "^/uploads/")]
    assert sum(sent) == 500_000 and len(sent) == (2 if part_size is None else 5 + 3)
    info = api.model_info("tester/tiny", files_metadata=True)
    assert (info.sha, info.card_data.license, info.tags) == (commit.oid, "mit", ["tiny"])
    large = next(it for it in info.siblings if it.rfilename == "vq.safetensors")
    expected = hashlib.sha256((folder / "vq.safetensors").read_bytes()).hexdigest()
    assert (large.size, large.lfs.sha256) == (200_000, expected)
    assert [it.title for it in api.list_repo_commits("tester/tiny")] == ["first", "initial commit"]


def test_unchanged_folder_makes_no_commit(hub, api, folder):
    api.create_repo("tester/tiny")
    first = api.upload_folder(repo_id="tester/tiny", folder_path=folder)
    again = api.upload_folder(repo_id="tester/tiny", folder_path=folder)
    assert first.oid == again.oid == head(hub)
    assert len(hub.requests("POST", "/commit/")) == 1
    assert len(hub.requests("PUT")) == 2


def test_deletion_patterns_and_operations(hub, api, folder, tmp_path):
    api.create_repo("tester/tiny")
    api.upload_folder(repo_id="tester/tiny", folder_path=folder)
    (folder / "vq.safetensors").unlink()
    options = {"folder_path": folder, "delete_patterns": ["*.safetensors"]}
    api.upload_folder(repo_id="tester/tiny", **options)
    assert download(hub, tmp_path / "cache") == contents(folder)
    api.delete_folder("unet", "tester/tiny")
    assert set(download(hub, tmp_path / "later")) == {"README.md"}


def test_tree_paths_and_copies(api, folder):
    api.create_repo("tester/tiny")
    api.upload_folder(repo_id="tester/tiny", folder_path=folder)
    assert {it.path for it in api.list_repo_tree("tester/tiny")} == {
        *(".gitattributes", "README.md", "unet", "vq.safetensors"),
    }
    inside = api.list_repo_tree("tester/tiny", "unet", recursive=True)
    assert {it.path for it in inside} == {"unet/config.json", "unet/model.safetensors"}
    with pytest.raises(errors.EntryNotFoundError):
        list(api.list_repo_tree("tester/tiny", "nowhere"))
    found = api.get_paths_info("tester/tiny", ["unet", "vq.safetensors", "nowhere"])
    assert [it.path for it in found] == ["unet", "vq.safetensors"]
    copy = CommitOperationCopy("vq.safetensors", "copy.safetensors")
    api.create_commit("tester/tiny", [copy], commit_message="copy")
    original, copied = api.get_paths_info("tester/tiny", ["vq.safetensors", "copy.safetensors"])
    assert copied.lfs.sha256 == original.lfs.sha256 and copied.size == 200_000


def test_upload_and_download_by_xet(tmp_path, folder):
    upload = "print(api.upload_folder(repo_id='tester/tiny', folder_path=sys.argv[1]).oid)"
    with hub_server.serve(tmp_path / "hub", tokens=TOKENS, xet=True) as hub:
        oid = python(hub, tmp_path / "a", f"api.create_repo('tester/tiny')\n{upload}", folder)
        assert oid.strip() == head(hub)
        assert hub.requests("GET", "/xet-write-token/") and not hub.requests("PUT")
        path = python(
            hub, tmp_path / "b", "print(huggingface_hub.snapshot_download('tester/tiny'))"
        )
        assert path.startswith(str(tmp_path / "b"))
        assert contents(path.strip()) == contents(folder)
        assert not hub.requests("GET", r"/resolve/.*\.safetensors")
        assert python(hub, tmp_path / "c", upload, folder) == oid  # nothing changed
        assert len(hub.requests("POST", "/commit/")) == 1
        write_files(folder, seed=1)
        hub.fail_on("POST", "/commit/", status=412)
        assert "412" in python(hub, tmp_path / "c", upload, folder, succeeds=False)
        hub.fail_on("GET", "/xet-write-token/", status=403, times=None)
        assert "403" in python(hub, tmp_path / "c", upload, folder, succeeds=False)
        assert head(hub) == oid.strip()


def test_xet_pull_request_by_upload_folder(tmp_path, folder):
    code = """
api.create_repo("tester/tiny")
commit = api.upload_folder(repo_id="tester/tiny", folder_path=sys.argv[1], create_pr=True)
print(commit.pr_url)
"""
    with hub_server.serve(tmp_path / "hub", tokens=TOKENS) as hub:
        before = python(hub, tmp_path / "home", code, folder).strip()
        assert before == f"{hub.endpoint}/tester/tiny/discussions/1"
        repository = hub.repository("tester/tiny")
        assert set(repository.resolve().files) == {".gitattributes"}
        assert set(contents(folder)) < set(repository.resolve("refs/pr/1").files)


def test_command(tmp_path, folder):
    with hub_server.serve(tmp_path / "hub", tokens=TOKENS) as hub:
        home, target = tmp_path / "home", tmp_path / "target"
        assert "tester" in hf(hub, home, "auth", "whoami")
        hf(hub, home, "upload", "tester/tiny", folder)
        hf(hub, tmp_path / "fresh", "download", "tester/tiny", "--local-dir", target)
        assert contents(target) == contents(folder)
        assert head(hub) in hf(hub, home, "models", "info", "tester/tiny")
        refusal = hf(hub, tmp_path / "c", "auth", "whoami", token=None, succeeds=False)
        assert "Not logged in" in refusal


# Users


def test_private_repository(hub, api, folder, tmp_path):
    api.create_repo("tester/tiny", private=True)
    api.upload_folder(repo_id="tester/tiny", folder_path=folder)
    assert download(hub, tmp_path / "owner") == contents(folder)
    assert download(hub, tmp_path / "reader", token="hf_reader") == contents(folder)
    for token, status in ((False, 401), ("hf_wrong", 401), ("hf_other", 404)):
        with pytest.raises(errors.RepositoryNotFoundError) as caught:
            HfApi(hub.endpoint, token=token).model_info("tester/tiny")
        assert caught.value.response.status_code == status
        with pytest.raises(errors.RepositoryNotFoundError):
            HfApi(hub.endpoint, token=token).hf_hub_download(
                "tester/tiny", "README.md", cache_dir=tmp_path / str(token)
            )
    api.update_repo_settings("tester/tiny", private=False)
    assert download(hub, tmp_path / "public", token=False) == contents(folder)


@pytest.mark.parametrize(("token", "status"), [("hf_other", 403), ("hf_reader", 403), (False, 401)])
def test_writing_without_rights(hub, api, token, status):
    api.create_repo("tester/tiny")
    stranger, before = HfApi(hub.endpoint, token=token), head(hub)
    attempts = [
        lambda: put(stranger, "a.txt", b""),
        lambda: stranger.create_tag("tester/tiny", tag="v1"),
        lambda: stranger.create_repo("tester/another"),
        lambda: stranger.delete_repo("tester/tiny"),
        lambda: stranger.move_repo("tester/tiny", "other/tiny"),
        lambda: stranger.update_repo_settings("tester/tiny", private=True),
    ]
    for attempt in attempts:
        with pytest.raises(errors.HfHubHTTPError) as caught:
            attempt()
        assert caught.value.response.status_code == status
    assert head(hub) == before and list(hub.repositories) == [("model", "tester/tiny")]
    assert not hub.repository("tester/tiny").private


def test_accounts(hub, api):
    assert api.whoami()["name"] == "tester" and api.whoami()["orgs"] == [{"name": "guild"}]
    assert api.whoami()["auth"]["accessToken"]["role"] == "write"
    with pytest.raises(errors.HfHubHTTPError, match="Invalid user token"):
        HfApi(hub.endpoint, token="hf_wrong").whoami()
    api.create_repo("guild/tiny", private=True)
    with pytest.raises(errors.RepositoryNotFoundError):
        HfApi(hub.endpoint, token="hf_other").model_info("guild/tiny")
    assert (hub.log[0].user, hub.log[0].status) == ("tester", 200)
    assert "hf_hub/" in hub.log[0].agent and ("POST", "/api/repos/create") in hub.log


# Repositories, revisions, pull requests, Spaces


def test_create_move_and_delete(hub, api):
    api.create_repo("tester/tiny")
    with pytest.raises(errors.HfHubHTTPError, match="409"):
        api.create_repo("tester/tiny")
    assert api.create_repo("tester/tiny", exist_ok=True) == f"{hub.endpoint}/tester/tiny"
    api.create_repo("tester/tiny", repo_type="dataset")
    api.create_repo("tester/taken")
    with pytest.raises(errors.HfHubHTTPError, match="409"):
        api.move_repo("tester/tiny", "tester/taken")
    api.move_repo("tester/tiny", "guild/tiny")
    assert api.repo_exists("guild/tiny") and not api.repo_exists("tester/tiny")
    api.delete_repo("guild/tiny")
    with pytest.raises(errors.RepositoryNotFoundError):
        api.delete_repo("guild/tiny")
    api.delete_repo("guild/tiny", missing_ok=True)
    assert set(hub.repositories) == {("dataset", "tester/tiny"), ("model", "tester/taken")}


def test_tags_branches_and_pinned_revisions(hub, api, folder, tmp_path):
    api.create_repo("tester/tiny")
    old = api.upload_folder(repo_id="tester/tiny", folder_path=folder)
    old_contents = contents(folder)
    api.create_tag("tester/tiny", tag="v1.0")
    api.create_branch("tester/tiny", branch="release/1")
    api.upload_folder(repo_id="tester/tiny", folder_path=write_files(folder, seed=1))
    for number, revision in enumerate(["v1.0", "release/1", old.oid, old.oid[:8]]):
        assert download(hub, tmp_path / str(number), revision=revision) == old_contents
    assert download(hub, tmp_path / "new") == contents(folder) != old_contents
    refs = api.list_repo_refs("tester/tiny")
    assert {it.name for it in refs.branches} == {"main", "release/1"}
    assert [(it.name, it.target_commit) for it in refs.tags] == [("v1.0", old.oid)]
    with pytest.raises(errors.HfHubHTTPError, match="409"):
        api.create_tag("tester/tiny", tag="v1.0")
    with pytest.raises(errors.BadRequestError, match="Not a branch"):
        put(api, "a.txt", b"", revision="v1.0")
    api.delete_tag("tester/tiny", tag="v1.0")
    with pytest.raises(errors.RevisionNotFoundError):
        download(hub, tmp_path / "gone", revision="v1.0")
    with pytest.raises(errors.EntryNotFoundError):
        api.hf_hub_download("tester/tiny", "nothing", cache_dir=tmp_path / "nothing")


def test_pull_request(hub, api):
    api.create_repo("tester/tiny")
    before = head(hub)
    made = put(api, "a.txt", b"new", create_pr=True, commit_message="Add a")
    assert made.pr_url == f"{hub.endpoint}/tester/tiny/discussions/1" and made.pr_num == 1
    assert head(hub) == before and not api.file_exists("tester/tiny", "a.txt")
    assert api.file_exists("tester/tiny", "a.txt", revision=made.pr_revision)
    assert [it.title for it in api.get_repo_discussions("tester/tiny")] == ["Add a"]
    api.merge_pull_request("tester/tiny", 1)
    assert head(hub) == made.oid
    assert api.get_discussion_details("tester/tiny", 1).status == "merged"


def test_dataset(hub, api, folder, tmp_path):
    api.create_repo("tester/tiny", repo_type="dataset")
    api.upload_folder(repo_id="tester/tiny", folder_path=folder, repo_type="dataset")
    assert download(hub, tmp_path / "cache", repo_type="dataset") == contents(folder)
    assert api.dataset_info("tester/tiny").card_data.license == "mit"
    assert not api.repo_exists("tester/tiny")


def test_space(hub, api, tmp_path):
    url = api.create_repo(
        "tester/demo",
        repo_type="space",
        space_sdk="gradio",
        space_hardware="t4-small",
        space_secrets=[{"key": "TOKEN", "value": "hidden"}],
        space_variables=[{"key": "MODEL", "value": "tester/tiny"}],
    )
    assert url == f"{hub.endpoint}/spaces/tester/demo"
    api.add_space_secret("tester/demo", "OTHER", "hidden too")
    assert set(api.add_space_variable("tester/demo", "STEPS", "16")) == {"MODEL", "STEPS"}
    assert api.get_space_variables("tester/demo")["MODEL"].value == "tester/tiny"
    assert set(api.get_space_secrets("tester/demo")) == {"TOKEN", "OTHER"}
    assert b"hidden" not in raw(hub, "GET", "/api/spaces/tester/demo/secrets")[1]
    assert hub.repository("tester/demo", "space").secrets["TOKEN"]["value"] == "hidden"
    assert api.get_space_runtime("tester/demo").hardware == "t4-small"
    assert api.request_space_hardware("tester/demo", "zero-a10g").requested_hardware == "zero-a10g"
    assert api.pause_space("tester/demo").stage == "PAUSED"
    put(api, "app.py", b"import gradio\n", "tester/demo", repo_type="space")
    assert "app.py" in download(hub, tmp_path / "cache", "tester/demo", repo_type="space")
    assert api.space_info("tester/demo").sdk == "gradio"


# The server itself


def test_environment(hub, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", "/elsewhere")
    monkeypatch.setenv("OWN_VARIABLE", "kept")
    environment = hub.environment(tmp_path)
    assert not {"HF_HUB_OFFLINE", "HF_HUB_CACHE"} & set(environment)
    assert (environment["HF_TOKEN"], environment["OWN_VARIABLE"]) == ("hf_tester", "kept")
    assert environment["HF_HUB_DISABLE_XET"] == "1"
    assert "HF_TOKEN" not in hub.environment(tmp_path, token=None)


def test_fresh_processes_are_watched(tmp_path):
    code = "import socket\nsocket.create_connection(('192.0.2.1', 9), timeout=1)"
    with hub_server.serve(tmp_path / "hub") as hub:
        assert "refused" in python(hub, tmp_path / "home", code, succeeds=False)


def test_stopped_server_answers_no_more(tmp_path):
    with hub_server.serve(tmp_path) as hub:
        assert hub.endpoint.startswith("http://127.0.0.1:")
        kept = http.client.HTTPConnection(hub.endpoint.removeprefix("http://"), timeout=10)
        kept.request("GET", "/api/whoami-v2")
        assert kept.getresponse().read() and kept.sock is not None
    with pytest.raises((http.client.HTTPException, ConnectionError)):
        kept.request("GET", "/api/whoami-v2")
        kept.getresponse()
    with pytest.raises(ConnectionError):
        raw(hub, "GET", "/api/whoami-v2")


def test_started_by_hand(tmp_path):
    command = [sys.executable, "-m", hub_server.__name__, str(tmp_path)]
    here = Path(hub_server.__file__).parents[1]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=here) as process:
        try:
            line = process.stdout.readline()
            settings = dict(it.split("=") for it in line.split())
            api = HfApi(settings["HF_ENDPOINT"], token=settings["HF_TOKEN"])
            assert api.whoami()["name"] == "tester"
        finally:
            process.terminate()
