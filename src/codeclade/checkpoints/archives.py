"""Torch's .pt archives, checked before torch reads them.

`torch.load(weights_only=True)` runs no code, but it believes sizes: a file of a few hundred bytes
can claim a tensor of 2^40 numbers by repeating one of them (stride 0), or a storage that is not in
it. Here the pickle inside is interpreted as data alone: no object is made, only the sizes of
storages and tensors are followed and compared with the bytes that are there.

Two formats: zip archives (torch 1.6 and later; one record a storage) and the older sequence of
pickles followed by all storages.
"""

import math
import mmap
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

LARGEST_PICKLE = 2**22  # bytes beside the numbers; a model with its optimizer has about 0.2 MB
MOST_STEPS = 1_000_000  # instructions; about 30 a tensor
MOST_CALLS = 100_000  # tensors and storages
MOST_COPIES = 200  # attributes set on objects, one a state dict; sets and counters
DEEPEST_TUPLE = 16
LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

_BYTES = {
    "Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2,
    "Char": 1, "Byte": 1, "Bool": 1,
}  # fmt: skip
STORAGES = {f"torch {name}Storage": size for name, size in _BYTES.items()}
STORAGES["torch.storage UntypedStorage"] = 1
DTYPES = {
    f"torch {name}": size
    for size, names in {
        8: "float64 int64 uint64", 4: "float32 int32 uint32", 2: "float16 bfloat16 int16 uint16",
        1: "int8 uint8 bool",
    }.items()
    for name in names.split()
}  # fmt: skip
TENSORS = {  # functions that make a tensor of (storage, offset, size, stride, ...)
    "torch._utils _rebuild_tensor",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_tensor_v3",
}
PARAMETERS = {  # functions of (tensor, ...)
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_parameter_with_state",
}
EMPTY = {"collections OrderedDict", "argparse Namespace"}  # made empty, then filled
SMALL = {"torch device", "torch Size", "_codecs encode", "builtins complex"}  # of plain values
COPIES = {"builtins set", "collections Counter"}  # of a list or dict
SUBCLASS = "torch._tensor _rebuild_from_type_v2"  # of (function, type, its arguments, attributes)
KNOWN = {*STORAGES, *DTYPES, *TENSORS, *PARAMETERS, *EMPTY, *SMALL, *COPIES, SUBCLASS}
KNOWN.add("torch Tensor")  # a type, but nothing to call
OLD_NAMES = {  # of Python 2, and of what is called like a function here
    "__builtin__ set": "builtins set",
    "__builtin__ complex": "builtins complex",
    "torch.nn.parameter Parameter": "torch._utils _rebuild_parameter",
}


class Refused(ValueError):
    """The archive holds objects that no weights need."""


class Global(str):
    """The name of a function or class, "module name"."""


class Storage(NamedTuple):
    """A run of numbers in the file."""

    item: int  # bytes of a number
    size: int  # bytes


@dataclass
class Row:
    """A tuple."""

    items: list[Any]
    depth: int


OTHER = object()  # any value whose size is bounded by the pickle itself
MARK = object()


def check_archive(path: Path) -> None:
    """Make sure that a .pt file claims no more than it holds, and no objects but tensors.

    Raises:
        Refused: objects that are neither tensors nor plain containers, or no file of torch's.
        ValueError: sizes that do not fit the file.
    """
    with path.open("rb") as stream:
        # The format is told by the first bytes, as torch tells it. Told by the name or the end of
        # the file, one file could be checked as one format and then read as the other.
        start = stream.read(len(LEGACY_MAGIC))
        if is_zip(path):
            try:
                _check_zip(path)
            except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
                raise ValueError(str(error)) from None
        elif start == LEGACY_MAGIC:
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
                _check_legacy(content)
        elif not start:
            raise ValueError("it is empty")
        elif start[:1] == b"\x80":
            raise Refused("a plain pickle")
        else:
            raise ValueError("it is no archive of torch's")


def is_zip(path: Path) -> bool:
    """Whether torch takes this file for a zip archive: by its first bytes alone."""
    with path.open("rb") as stream:
        return stream.read(4) == b"PK\x03\x04"


def _check_zip(path: Path) -> None:
    """Check the records of a zip archive, then its one pickle against them."""
    with zipfile.ZipFile(path) as archive:
        # Readers differ in which of two records of one name they take, a compressed record can
        # unpack to a thousand times its size, and records that overlap count the same bytes twice:
        # torch writes none of these, so each is refused.
        records = {info.filename: info for info in archive.infolist()}
        if len(records) < len(archive.infolist()):
            raise ValueError("two records have one name")
        if any(info.compress_type != zipfile.ZIP_STORED for info in records.values()):
            raise ValueError("compressed records, which torch never writes")
        if sum(info.file_size for info in records.values()) > path.stat().st_size:
            raise ValueError("records that are larger than the file")
        # Only the pickle is read here, and into memory, so it is bounded first.
        pickles = [name for name in records if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise ValueError(f"{len(pickles)} records data.pkl, not 1")
        if records[pickles[0]].file_size > LARGEST_PICKLE:
            raise ValueError(f"a pickle of more than {LARGEST_PICKLE:,} bytes")
        content = archive.read(pickles[0])
    folder = pickles[0].removesuffix("data.pkl")

    def find(key: str, needed: int) -> None:
        record = records.get(f"{folder}data/{key}")
        if record is None or record.file_size < needed:
            raise ValueError("a storage that is not in the file")

    _Interpreter(find).run(content, 0)


def _check_legacy(content: mmap.mmap) -> None:
    """Check the pickles of the older format; all storages follow them in the file."""
    storages: dict[str, int] = {}
    position, free = 0, len(content)

    def find(key: str, needed: int) -> None:
        nonlocal free
        # A storage is named once for every tensor in it and lies in the file once, at its longest.
        free -= max(0, needed - storages.get(key, 0))
        storages[key] = max(needed, storages.get(key, 0))
        if free < 0:
            raise ValueError("storages that are larger than the file")

    for _ in range(5):  # magic number, version, machine, the content, names of the storages
        position = _Interpreter(find).run(content, position)


class _Interpreter:
    """Follows the instructions of one pickle, of those that torch's own reader knows.

    Args:
        find: called with the name and bytes of every storage; raises where it is not there.
    """

    def __init__(self, find):
        self.find, self.calls, self.copies = find, 0, 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, content: bytes | mmap.mmap, position: int) -> int:
        """Interpret from `position` on; returns where the pickle ends.

        Raises:
            Refused, ValueError: as `check_archive`.
        """
        # Every step is bounded: instructions, bytes, calls, copies. A pickle could otherwise hold
        # the reader for hours without one large number in it.
        end = min(len(content), position + LARGEST_PICKLE)
        try:
            for _ in range(MOST_STEPS):
                code = content[position]
                position += 1
                # The one value that is left is the content; torch takes it without looking for
                # others.
                if code == 0x2E:  # STOP
                    if len(self.stack) != 1 or self.stack[0] is MARK:
                        raise IndexError
                    return position
                # The only instruction that names a function: none outside KNOWN gets as far as
                # torch.
                if code == 0x63:  # GLOBAL: two lines of text
                    lines = bytes(content[position : min(position + 400, end)]).split(b"\n", 2)
                    module, name = lines[0], lines[1]
                    position += len(module) + len(name) + 2
                    self._push_global(f"{module.decode()} {name.decode()}")
                    continue
                # Anything else either brings its value, pushes a constant, or works on the stack.
                if code in _ARGUMENTS:
                    position = self._argument(content, position, code)
                elif code in _SIMPLE:
                    self.stack.append(_SIMPLE[code])
                else:
                    self._change_stack(code)
                if position > end:
                    raise ValueError("a pickle that does not end")
        # What cannot be followed here might still be followed by torch, so it is refused.
        except (IndexError, KeyError, TypeError, AttributeError, struct.error, UnicodeError):
            raise ValueError("a broken pickle") from None
        raise ValueError(f"a pickle of more than {MOST_STEPS:,} instructions")

    def _push_global(self, name: str) -> None:
        name = OLD_NAMES.get(name, name)
        if name not in KNOWN:
            raise Refused(name)
        self.stack.append(Global(name))

    def _argument(self, content, position: int, code: int) -> int:
        """Instructions that bring their own value; returns where they end."""
        layout, use = _ARGUMENTS[code]
        after = position + struct.calcsize(layout)
        (value,) = struct.unpack(layout, content[position:after])
        # Texts say their length; one beyond that of any pickle of weights is damage.
        if use == "text":
            if value > LARGEST_PICKLE:
                raise ValueError("a pickle that does not end")
            text = bytes(content[after : after + value])
            self.stack.append(text.decode("utf-8", "surrogatepass"))
            return after + value
        if use == "integer":
            self.stack.append(int.from_bytes(content[after : after + value], "little", signed=True))
            return after + value
        # Values that the pickle refers to again, and all others, which only keep their place.
        if use == "put":
            self.memo[value] = self.stack[-1]
        elif use == "get":
            self.stack.append(self.memo[value])
        elif use == "push":
            self.stack.append(value if isinstance(value, int) else OTHER)
        return after

    def _change_stack(self, code: int) -> None:
        """Instructions that work on what is on the stack."""
        # Containers are kept only as far as the stack needs them: what is in them does not matter.
        stack = self.stack
        # Each group pops what torch's reader pops, so that both stacks stay alike.
        if code == 0x28:
            stack.append(MARK)
        elif code == 0x74:  # TUPLE: all since the mark
            self._push_row(self._since_mark())
        elif code in (0x85, 0x86, 0x87):  # TUPLE1 to TUPLE3
            items = [stack.pop() for _ in range(code - 0x84)]
            self._push_row(items[::-1])
        elif code in (0x61, 0x73):  # APPEND, SETITEM: the container stays
            del stack[-1 if code == 0x61 else -2 :]
            _ = stack[-1]
        elif code in (0x65, 0x75):  # APPENDS, SETITEMS
            self._since_mark()
            _ = stack[-1]
        elif code == 0x62:  # BUILD
            self._count_copy()
            stack.pop()
            _ = stack[-1]
        # Only tuples, calls and storages carry sizes further.
        elif code in (0x52, 0x81):  # REDUCE, NEWOBJ: a call
            arguments, function = stack.pop(), stack.pop()
            stack.append(self._call(function, arguments.items))
        elif code == 0x51:  # BINPERSID: a storage
            stack.append(self._storage(stack.pop().items))
        else:
            raise Refused("an instruction torch never writes")

    def _since_mark(self) -> list[Any]:
        """Take everything after the last mark from the stack."""
        position = len(self.stack) - 1
        while self.stack[position] is not MARK:
            position -= 1
            if position < 0:
                raise IndexError
        items = self.stack[position + 1 :]
        del self.stack[position:]
        return items

    def _push_row(self, items: list[Any]) -> None:
        # Each level can hold the one below twice, by the memo, and doubles what a walk over it
        # visits.
        depth = 1 + max((item.depth for item in items if isinstance(item, Row)), default=0)
        if depth > DEEPEST_TUPLE:
            raise ValueError(f"tuples more than {DEEPEST_TUPLE} levels deep")
        self.stack.append(Row(items, depth))

    def _count_call(self) -> None:
        self.calls += 1
        if self.calls > MOST_CALLS:
            raise ValueError(f"more than {MOST_CALLS:,} tensors")

    def _count_copy(self) -> None:
        # Each can copy as much as the whole pickle holds.
        self.copies += 1
        if self.copies > MOST_COPIES:
            raise ValueError(f"attributes of more than {MOST_COPIES} objects")

    def _storage(self, items: list[Any]) -> Storage:
        """A storage ("storage", type, name, device, count of numbers, ...), if the file has it."""
        self._count_call()
        _, kind, key, _, count = items[:5]
        if not isinstance(kind, Global) or kind not in STORAGES or not isinstance(key, str):
            raise ValueError("a broken pickle")
        # True is an int to Python, and 2^48 is more than any file holds.
        if type(count) is not int or not 0 <= count < 2**48:
            raise ValueError("a storage that is not in the file")
        found = Storage(STORAGES[kind], count * STORAGES[kind])
        self.find(key, found.size)
        return found

    def _call(self, function: Any, arguments: list[Any]) -> Any:
        """What a call gives, as far as sizes matter."""
        self._count_call()
        if not isinstance(function, Global):
            raise Refused("a call of something that is no function")
        # What each call makes is bounded by its arguments: tensors by their storage, containers by
        # being empty or counted, the few others by being small.
        if function in TENSORS:
            item = DTYPES[arguments[6]] if function.endswith("_v3") else arguments[0].item
            _check_tensor(arguments[0], item, *arguments[1:4])
        elif function in EMPTY:
            if arguments:
                raise Refused(f"{function} with a content of its own")
        elif function in COPIES:
            self._count_copy()
        elif function == SUBCLASS:
            return self._call(arguments[0], arguments[2].items)
        elif function in SMALL:
            long = any(isinstance(one, Row) and len(one.items) > 64 for one in arguments)
            size = function != "torch Size" or isinstance(arguments[0], Row)
            if len(arguments) > 2 or long or not size:
                raise ValueError("a broken pickle")
        elif function not in PARAMETERS:
            raise Refused(function)
        return OTHER


def _check_tensor(storage: Storage, item: int, offset: int, size: Row, stride: Row) -> None:
    """Raise a ValueError unless a tensor lies inside its storage and repeats none of it."""
    # At most 32 dimensions of numbers below 2^48, none negative: a negative stride or offset would
    # reach in front of the storage.
    numbers = [offset, *size.items, *stride.items]
    if any(type(n) is not int or not 0 <= n < 2**48 for n in numbers) or len(numbers) > 33:
        raise ValueError("a tensor of impossible shape")
    if len(size.items) != len(stride.items):
        raise ValueError("a tensor of impossible shape")
    # The last number must lie in the storage, and there must be no more numbers than the storage
    # has: with stride 0 the first condition holds for a tensor of any size.
    count = math.prod(size.items)
    last = offset + sum((n - 1) * step for n, step in zip(size.items, stride.items, strict=True))
    if count and max(count, last + 1) * item > storage.size:
        shape = " x ".join(map(str, size.items[:4]))
        raise ValueError(f"a tensor of {shape} numbers, for which it has {storage.size:,} bytes")


_SIMPLE = {  # instructions that push a constant or an empty container
    0x4E: OTHER, 0x88: True, 0x89: False, 0x5D: OTHER, 0x7D: OTHER, 0x8F: OTHER, 0x29: Row([], 1),
}  # fmt: skip
_ARGUMENTS = {  # layout of what follows the instruction, and what it is for
    0x80: ("B", "protocol"),
    0x58: ("<I", "text"),  # BINUNICODE
    0x55: ("B", "text"),  # SHORT_BINSTRING
    0x8A: ("B", "integer"),  # LONG1
    0x4A: ("<i", "push"), 0x4B: ("B", "push"), 0x4D: ("<H", "push"), 0x47: (">d", "push"),
    0x71: ("B", "put"), 0x72: ("<I", "put"), 0x68: ("B", "get"), 0x6A: ("<I", "get"),
}  # fmt: skip
