"""The repositories of the test Hub: commits, references, pull requests and large files.

Regular files live in memory with their commit. Large files are stored once by SHA-256 (Git LFS) or
in a local Xet store that hf_xet fills and reads itself. Nothing here knows about HTTP: a request
that cannot be met raises `HubError`, which the server turns into an answer.
"""

import base64
import binascii
import fnmatch
import hashlib
import math
import re
import secrets
import struct
import time
from dataclasses import dataclass
from pathlib import Path

import yaml

MAXIMUM_REGULAR_SIZE = 10_000_000  # the Hub takes bigger files as large ones only
LARGE_SUFFIXES = (
    *("7z", "arrow", "bin", "ckpt", "gif", "gz", "h5", "jpeg", "jpg", "model", "mp4", "npy"),
    *("npz", "onnx", "parquet", "pkl", "png", "pt", "pth", "safetensors", "tar", "tflite"),
    *("webp", "zip"),
)
GIT_ATTRIBUTES = "".join(f"*.{it} filter=lfs diff=lfs merge=lfs -text\n" for it in LARGE_SUFFIXES)


class HubError(Exception):
    """A request that the Hub refuses.

    Args:
        status: HTTP status of the answer.
        message: What the client shows to its user.
        code: `X-Error-Code`, from which huggingface_hub chooses its exception.
        body: Further fields of the JSON body.
    """

    def __init__(self, status: int, message: str, code: str | None = None, **body):
        super().__init__(message)
        self.status, self.message, self.code, self.body = status, message, code, body


def check_repo_name(name: str) -> str:
    """Return `name` if it reads `owner/repository` by the rules of the Hub, else refuse it."""
    parts = name.split("/")
    regular = all(re.fullmatch(r"\w[\w.-]{0,95}", part, re.ASCII) for part in parts)
    suspicious = any(
        ".." in part or "--" in part or part.endswith((".git", "-", ".")) for part in parts
    )
    if len(parts) != 2 or not regular or suspicious:
        raise HubError(400, f"Invalid repository name: {name!r}")
    return name


def check_file_path(path: str) -> str:
    """Return `path` if it stays inside a repository, else refuse it."""
    if not isinstance(path, str) or re.search(r"[\\\x00-\x1f]", path):
        raise HubError(400, f"Invalid file path: {path!r}")
    if any(part in ("", ".", "..", ".git") for part in path.split("/")):
        raise HubError(400, f"Invalid file path: {path!r}")
    return path


def front_matter(text: str) -> dict:
    """The YAML block at the start of a card; raises `yaml.YAMLError` if it does not parse."""
    block = re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL)
    fields = yaml.safe_load(block[1]) if block else None
    return fields if isinstance(fields, dict) else {}


@dataclass(frozen=True)
class StoredFile:
    """One version of a file: its bytes, or the hashes under which they are stored."""

    size: int
    content: bytes | None = None
    sha256: str | None = None
    xet_hash: str | None = None

    @property
    def blob(self) -> bytes:
        """What Git keeps: the content, or the pointer to a large file."""
        if self.content is not None:
            return self.content
        lines = ("version https://git-lfs.github.com/spec/v1", f"oid sha256:{self.sha256}")
        return "".join(f"{line}\n" for line in (*lines, f"size {self.size}")).encode()

    @property
    def oid(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.blob) + self.blob).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 or self.oid


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: str | None
    files: dict[str, StoredFile]
    title: str
    message: str
    author: str
    date: str


class LargeFiles:
    """Large files by SHA-256 in one folder, and the Xet store beside it.

    Args:
        root: Folder of the server; everything is written below it.
        xet: Whether clients may use Xet.
    """

    def __init__(self, root: Path, xet: bool):
        self.folder, self.xet_folder, self.xet = root / "lfs", root / "xet", xet
        self.folder.mkdir(parents=True, exist_ok=True)
        self.xet_folder.mkdir(exist_ok=True)
        self.uploads: dict[str, Upload] = {}
        self.xet_hashes: dict[str, str] = {}
        self.shards_read: set[Path] = set()

    def path(self, sha256: str) -> Path:
        if not re.fullmatch("[0-9a-f]{64}", str(sha256)):
            raise HubError(400, f"Invalid object id: {sha256!r}")
        return self.folder / sha256

    def xet_hash(self, sha256: str) -> str | None:
        """The Xet hash of a file that hf_xet uploaded, from the shards that it wrote."""
        for shard in set(self.xet_folder.rglob("*.mdb")) - self.shards_read:
            self.xet_hashes |= shard_hashes(shard.read_bytes())
            self.shards_read.add(shard)
        return self.xet_hashes.get(sha256)


def shard_hashes(shard: bytes) -> dict[str, str]:
    """SHA-256 to Xet hash of the files listed in a Xet metadata shard.

    After a header of 48 bytes come the files: a record with hash, flags and number of segments,
    one record for each segment, again as many if they can be verified, and one with the SHA-256.
    """
    record, verified, with_sha256, last = 48, 1 << 31, 1 << 30, b"\xff" * 32
    hashes, position = {}, record
    while position + record <= len(shard) and shard[position : position + 32] != last:
        file_hash = shard[position : position + 32]
        flags, segments = struct.unpack_from("<II", shard, position + 32)
        position += record * (1 + segments * (2 if flags & verified else 1))
        if flags & with_sha256:
            hashes[readable_hash(shard[position : position + 32])] = readable_hash(file_hash)
            position += record
    return hashes


def readable_hash(value: bytes) -> str:
    """Shards hold hashes as four little-endian integers of 64 bits."""
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", value))


class Upload:
    """One announced upload of a large file. Its name, known to the client alone, grants access.

    Args:
        store: Where the file goes when it is complete.
        repository: Which repository may then commit it.
        sha256: Announced hash.
        size: Announced size in bytes.
        part_size: Size of the parts, for an upload in several.
    """

    def __init__(self, store, repository, sha256: str, size: int, part_size: int | None):
        self.store, self.repository, self.sha256, self.size = store, repository, sha256, size
        self.name = secrets.token_hex(16)
        self.number_of_parts = math.ceil(size / part_size) if part_size else 0
        self.parts: dict[int, bytes] = {}
        self.path = store.path(sha256)
        store.uploads[self.name] = self

    def receive(self, content: bytes) -> None:
        if len(content) != self.size or hashlib.sha256(content).hexdigest() != self.sha256:
            raise HubError(400, "The content does not match the announced size and hash")
        self.path.write_bytes(content)
        self.repository.large_files[self.sha256] = StoredFile(self.size, sha256=self.sha256)

    def complete(self) -> None:
        if sorted(self.parts) != list(range(1, self.number_of_parts + 1)):
            raise HubError(400, "Parts are missing")
        self.receive(b"".join(self.parts[number] for number in sorted(self.parts)))

    def verify(self, size: int) -> None:
        if self.sha256 not in self.repository.large_files or size != self.size:
            raise HubError(404, "The object was not uploaded")


class Repository:
    """A model, dataset or Space.

    Args:
        repo_type: `model`, `dataset` or `space`.
        name: `owner/name`.
        author: Who creates it.
        private: Whether only the owner sees it.
    """

    def __init__(self, repo_type: str, name: str, author: str, private: bool = False):
        self.repo_type, self.name, self.private, self.gated = repo_type, name, private, False
        self.commits: dict[str, Commit] = {}
        self.references: dict[str, str] = {}
        self.large_files: dict[str, StoredFile] = {}
        self.pull_requests: list[dict] = []
        self.space: dict = {"sdk": None, "hardware": None, "sleep_time": None, "stage": "RUNNING"}
        self.secrets: dict[str, dict] = {}
        self.variables: dict[str, dict] = {}
        attributes = GIT_ATTRIBUTES.encode()
        files = {".gitattributes": StoredFile(len(attributes), content=attributes)}
        self.references["refs/heads/main"] = self._add(None, files, "initial commit", "", author)

    def _add(self, parent, files, title, message, author) -> str:
        oid, date = secrets.token_hex(20), time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
        self.commits[oid] = Commit(oid, parent, files, title, message, author, date)
        return oid

    def reference(self, revision: str) -> str | None:
        """The full name of a branch, pull request or tag."""
        names = (revision, f"refs/heads/{revision}", f"refs/tags/{revision}")
        return next((name for name in names if name in self.references), None)

    def resolve(self, revision: str = "main") -> Commit:
        """The commit of a branch, tag, pull request, or (beginning of a) commit hash."""
        name = self.reference(revision)
        if name is not None:
            return self.commits[self.references[name]]
        found = [oid for oid in self.commits if len(revision) >= 7 and oid.startswith(revision)]
        if len(found) != 1:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[found[0]]

    def add_reference(self, name: str, commit: Commit) -> None:
        if check_file_path(name) in self.references:
            raise HubError(409, f"Reference already exists: {name}")
        self.references[name] = commit.oid

    def delete_reference(self, name: str) -> None:
        if self.references.pop(name, None) is None:
            raise HubError(404, f"No such reference: {name}", "RevisionNotFound")

    def upload_mode(self, commit: Commit, path: str, size: int, sample: bytes) -> str:
        """`lfs` for what .gitattributes of `commit` names, big and binary files."""
        attributes = commit.files.get(".gitattributes")
        lines = attributes.blob.decode().splitlines() if attributes else []
        patterns = [line.split()[0] for line in lines if "filter=lfs" in line]
        named = any(fnmatch.fnmatch(path.rpartition("/")[2], pattern) for pattern in patterns)
        return "lfs" if named or size > MAXIMUM_REGULAR_SIZE or b"\0" in sample else "regular"

    def commit(
        self, revision: str, lines: list[dict], author: str, store: LargeFiles, moves: bool = True
    ):
        """Apply one commit request as a whole or not at all.

        Args:
            revision: Branch or pull request that moves.
            lines: The request: a header, then one operation each.
            author: Who commits.
            store: Where the large files are.
            moves: Whether the branch moves; False for a commit that opens a pull request.

        Returns:
            The new commit.
        """
        head, name = self.resolve(revision), self.reference(revision)
        if name is None or name.startswith("refs/tags/"):
            raise HubError(400, f"Not a branch: {revision}")
        headers = [line["value"] for line in lines if line["key"] == "header"]
        if len(headers) != 1 or not headers[0].get("summary"):
            raise HubError(400, "A commit needs one header with a summary")
        expected = headers[0].get("parentCommit")
        if expected and not head.oid.startswith(expected):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(head.files)
        for line in lines:
            if line["key"] != "header":
                self._apply(files, line["key"], line["value"], store)
        title, message = headers[0]["summary"], headers[0].get("description") or ""
        oid = self._add(head.oid, files, title, message, author)
        if moves:
            self.references[name] = oid  # only now does anybody see the new files
        return self.commits[oid]

    def _apply(self, files: dict, key: str, value: dict, store: LargeFiles) -> None:
        path = check_file_path(
            value["path"].rstrip("/") if key == "deletedFolder" else value["path"]
        )
        if key == "file":
            try:
                content = base64.b64decode(value["content"], validate=True)
            except binascii.Error as error:
                raise HubError(400, f"{path}: {error}") from error
            files[path] = StoredFile(len(content), content=content)
        elif key == "lfsFile":
            files[path] = self._large_file(value, store)
        elif key in ("deletedFile", "deletedFolder"):
            folder = f"{path}/" if key == "deletedFolder" else None
            gone = [it for it in files if (it.startswith(folder) if folder else it == path)]
            if not gone:
                raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            for it in gone:
                del files[it]
        else:
            raise HubError(400, f"Unknown operation: {key}")

    def _large_file(self, value: dict, store: LargeFiles) -> StoredFile:
        sha256 = store.path(value["oid"]).name
        if sha256 not in self.large_files:
            xet_hash = store.xet_hash(sha256) if store.xet else None
            if xet_hash is None:
                text = f"LFS pointer pointed to a file that does not exist: {value['path']}"
                raise HubError(400, text)
            self.large_files[sha256] = StoredFile(value["size"], sha256=sha256, xet_hash=xet_hash)
        return self.large_files[sha256]

    def history(self, commit: Commit) -> list[dict]:
        listed, oid = [], commit.oid
        while oid:
            it = self.commits[oid]
            fields = {"id": oid, "title": it.title, "message": it.message, "date": it.date}
            listed.append({**fields, "authors": [{"user": it.author}]})
            oid = it.parent
        return listed

    def entry(self, path: str, file: StoredFile) -> dict:
        """How the Hub lists a file."""
        listed = {"type": "file", "oid": file.oid, "size": file.size, "path": path}
        if file.sha256:
            pointer_size = len(file.blob)
            listed["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": pointer_size}
        return listed | ({"xetHash": file.xet_hash} if file.xet_hash else {})

    def folders(self, commit: Commit) -> dict[str, dict]:
        """How the Hub lists every folder, by path."""
        inside: dict[str, list] = {}
        for path, file in sorted(commit.files.items()):
            for depth in range(1, path.count("/") + 1):
                inside.setdefault("/".join(path.split("/")[:depth]), []).append((path, file.oid))
        return {
            path: {
                "type": "directory",
                "oid": hashlib.sha1(repr(content).encode()).hexdigest(),
                "size": 0,
                "path": path,
            }
            for path, content in inside.items()
        }

    def paths(self, commit: Commit, paths: list[str]) -> list[dict]:
        """The entries at `paths`, leaving out what does not exist."""
        known = self.folders(commit)
        known |= {path: self.entry(path, file) for path, file in commit.files.items()}
        return [known[path] for path in paths if path in known]

    def tree(self, commit: Commit, folder: str, recursive: bool) -> list[dict]:
        """Folders, then files inside `folder` (`""` for all)."""
        prefix = f"{folder.rstrip('/')}/" if folder else ""
        candidates = [*self.folders(commit), *sorted(commit.files)]
        inside = [it for it in candidates if it.startswith(prefix) and it != prefix]
        if prefix and not inside:
            raise HubError(404, f"No such folder: {folder}", "EntryNotFound")
        wanted = [it for it in inside if recursive or "/" not in it.removeprefix(prefix)]
        return self.paths(commit, wanted)

    def info(self, commit: Commit, blobs: bool) -> dict:
        """How the Hub describes the repository at `commit`, with sizes and hashes if `blobs`."""
        readme, card = commit.files.get("README.md"), {}
        if readme is not None and readme.content is not None:
            try:
                card = front_matter(readme.content.decode())
            except (yaml.YAMLError, UnicodeDecodeError):
                card = {}  # the Hub shows a broken card without its fields
        siblings = []
        for path, file in sorted(commit.files.items()):
            sizes = {"size": file.size, "blobId": file.oid} if blobs else {}
            if blobs and file.sha256:
                sizes["lfs"] = {
                    "sha256": file.sha256,
                    "size": file.size,
                    "pointerSize": len(file.blob),
                }
            siblings.append({"rfilename": path, **sizes})
        first = self.commits[self.history(commit)[-1]["id"]]
        fields = {
            "_id": "0" * 24,
            "id": self.name,
            "author": self.name.split("/")[0],
            "sha": commit.oid,
            "private": self.private,
            "gated": self.gated,
            "disabled": False,
            "createdAt": first.date,
            "lastModified": commit.date,
            "downloads": 0,
            "likes": 0,
            "tags": card.get("tags") or [],
            "cardData": card,
            "siblings": siblings,
        }
        fields |= {it: card[it] for it in ("pipeline_tag", "library_name") if card.get(it)}
        if self.repo_type == "model":
            fields["modelId"] = self.name
        if self.repo_type == "space":
            fields |= {"sdk": self.space["sdk"], "runtime": self.runtime()}
        return fields

    def runtime(self) -> dict:
        hardware = self.space["hardware"] or "cpu-basic"
        return {
            "stage": self.space["stage"],
            "hardware": {"current": hardware, "requested": hardware},
            "gcTimeout": self.space["sleep_time"],
            "storage": None,
            "replicas": {"current": 1, "requested": 1},
        }

    def open_pull_request(self, title: str, author: str, commit: Commit) -> int:
        number, date = len(self.pull_requests) + 1, commit.date
        request = {"number": number, "title": title, "author": author, "date": date}
        self.pull_requests.append(request | {"status": "open"})
        self.references[f"refs/pr/{number}"] = commit.oid
        return number

    def pull_request(self, number: int) -> dict:
        """How the Hub describes a pull request."""
        if not 1 <= number <= len(self.pull_requests):
            raise HubError(404, f"No such discussion: {number}")
        request = self.pull_requests[number - 1]
        return {
            "num": number,
            "title": request["title"],
            "status": request["status"],
            "author": {"name": request["author"]},
            "isPullRequest": True,
            "createdAt": request["date"],
            "repo": {"name": self.name, "type": self.repo_type},
            "changes": {"base": "refs/heads/main"},
            "filesWithConflicts": False,
            "events": [],
        }

    def merge(self, number: int) -> None:
        """Move main to the pull request, unless main has moved meanwhile."""
        head = self.resolve(f"refs/pr/{number}")
        if self.references["refs/heads/main"] not in {it["id"] for it in self.history(head)}:
            raise HubError(409, "The pull request has conflicts")
        self.references["refs/heads/main"] = head.oid
        self.pull_requests[number - 1]["status"] = "merged"
