"""The app as an MCP server: its tools, their schemas, and calls over loopback."""

import asyncio
import base64
import io

import pytest
from PIL import Image

from builders import build_pipeline
from codeclade.demo import build
from codeclade.demo.backend import Backend
from demo.server import served

mcp = pytest.importorskip("mcp", reason="needs codeclade[mcp]")
jsonschema = pytest.importorskip("jsonschema")  # comes with it
TOOLS = ("generate", "redraw", "edit", "clusters", "region", "reconstruct")


@pytest.fixture(scope="module")
def address():
    with served(build(Backend(build_pipeline("cluster")))) as address:
        yield address


def asked(address: str, *calls: tuple[str, dict]) -> tuple[dict, list]:
    """The tools by name, and the answers to calls."""
    from mcp.client.streamable_http import streamable_http_client

    async def ask():
        async with (
            streamable_http_client(f"{address}/gradio_api/mcp/") as (read, write, _),
            mcp.ClientSession(read, write) as session,
        ):
            await session.initialize()
            tools = {tool.name: tool for tool in (await session.list_tools()).tools}
            return tools, [await session.call_tool(name, values) for name, values in calls]

    return asyncio.run(ask())


def picture(paint: bool = False) -> str:
    """A picture as MCP clients send one without a server of their own."""
    image, file = Image.linear_gradient("L").convert("RGB"), io.BytesIO()
    if paint:
        image.paste((255, 0, 0), (0, 0, 128, 128))
    image.save(file, "png")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def test_every_tool_says_what_it_takes(address):
    tools, _ = asked(address)
    assert sorted(tools) == sorted(TOOLS)
    for tool in tools.values():
        jsonschema.Draft202012Validator.check_schema(tool.inputSchema)
        assert "required" not in tool.inputSchema, "everything has a default"
        assert len(tool.description) > 30
        for name, field in tool.inputSchema["properties"].items():
            assert field.get("description"), (tool.name, name)
            assert "session" not in name and "$ref" not in str(field)
    name = tools["generate"].inputSchema["properties"]["name"]
    assert name["type"] == "string" and "enum" not in name
    image = tools["edit"].inputSchema["properties"]["image"]
    assert set(image["properties"]) == {"background", "composite"}
    assert image["required"] == ["background"]


def test_tools_answer(address):
    painted = {"background": picture(), "composite": picture(paint=True)}
    calls = {
        "generate": {"name": "1", "count": 1},  # a class number as text
        "clusters": {"clusters": 10},
        "redraw": {"count": 1},  # without an image
        "reconstruct": {"image": picture(), "clusters": 10},
        "region": {"image": picture(), "clusters": 10, "row": 0, "column": 3},
        "edit": {"image": painted, "name": "tabby"},
    }
    _, answers = asked(address, *calls.items())
    texts = {}
    for name, answer in zip(calls, answers, strict=True):
        texts[name] = " ".join(getattr(part, "text", "") for part in answer.content)
        assert not answer.isError, (name, texts[name])
    assert "seed 7, guidance" in texts["generate"]
    assert "10 clusters of 32 codes" in texts["clusters"]
    assert "of the 16 tokens changed" in texts["redraw"]
    assert "dB to the original" in texts["reconstruct"]
    assert "Row 0, column 3: code" in texts["region"]
    assert "of 4 tokens changed, 16 in the image" in texts["edit"], "a quarter was drawn on"


def test_tools_refuse_in_words(address):
    calls = [
        ("generate", {"name": "hamster"}),
        ("redraw", {"image": "http://127.0.0.1:1/a.png"}),
        ("clusters", {"clusters": 1000}),
    ]
    _, answers = asked(address, *calls)
    words = ("There is no class 'hamster'", "not the address of one", "must be a whole number")
    for answer, expected in zip(answers, words, strict=True):
        assert answer.isError and expected in str(answer.content)
        assert "Traceback" not in str(answer.content)
