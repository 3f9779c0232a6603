"""Clusters: the tree cut at any height, every code as the patch it decodes to."""

import math

import gradio as gr
import numpy as np
import torch
from PIL import Image

from ... import ClusterMap
from ..backend import Backend
from ..bounds import FORMATS, cached, number, one_of, uploaded
from ..listeners import endpoint
from ..neighbors import nearest_clusters
from ..pictures import enlarge, marked, sheet, square, square_box, upright_size
from .controls import (
    BROWSING,
    MODEL,
    Session,
    cluster_slider,
    image_input,
    last_made,
    pictures,
    shown_first,
    take_button,
)

EXPLANATION = (
    "Every code of the tokenizer as the patch it decodes to among other codes, grouped by cluster. "
    "Choose a card to see all of its codes."
)
REGION = (
    "Click anywhere on the picture with the grid, or give a row and a column: which code that "
    "place has, what else is in its cluster, and which clusters are nearest."
)
NO_CLUSTERS = "This pipeline has no cluster map, so there are no clusters to show."
PAGE, CARD, COLUMNS, MEMBERS, NEIGHBORS = 24, 12, 4, 120, 8
ORDERS = ("largest first", "smallest first", "by number")


class Clusters:
    """The fourth tab."""

    def __init__(self, backend: Backend, session: gr.State, tab: gr.Tab):
        self.backend = backend
        gr.Markdown(EXPLANATION if backend.map is not None else NO_CLUSTERS)
        self.count = cluster_slider(backend, info="Where to cut the merge tree")
        self._browser(tab, session)
        gr.Markdown("### What is this place made of?\n" + REGION)
        self._regions(session, tab)

    def clusters(self, clusters, order, page, session=None) -> tuple[list, str, list[dict], int]:
        """Clusters of the codebook as cards of decoded patches, 24 a page.

        Args:
            clusters: number of clusters to cut the tree into.
            order: "largest first", "smallest first" or "by number".
            page: from 1; past the last page: the last.

        Returns:
            One picture a cluster, a line about the page, per card the cluster, its size and its
            first codes, and the page.
        """
        # What the client sent, checked; a page past the end is the last one, since another cut may
        # have fewer pages than the one that was shown.
        cut = self.backend.cut(clusters)
        order = one_of("order", order, list(ORDERS))
        pages = math.ceil(cut.num_clusters / PAGE)
        page = min(page, pages) if isinstance(page, (int, float)) else page
        page = number("page", page, 1, pages, integer=True)
        # The order must be the same at each call, or a card could be on two pages: hence a stable
        # sort.
        sizes = cut.sizes
        if order == ORDERS[2]:
            ranked = torch.arange(cut.num_clusters)
        else:
            ranked = sizes.argsort(descending=order == ORDERS[0], stable=True)
        chosen = ranked[(page - 1) * PAGE : page * PAGE].tolist()
        members = [cut.members(cluster)[:CARD].tolist() for cluster in chosen]
        self.backend.patches([code for codes in members for code in codes])  # in one batch
        # The same page three times: pictures to look at, data for clients, and a line for both.
        cards, table = [], []
        for cluster, codes in zip(chosen, members, strict=True):
            size = int(sizes[cluster])
            cards.append((self._card(codes, members), f"{cluster} · {size} code{'s' * (size > 1)}"))
            table.append({"cluster": cluster, "size": size, "codes": codes})
        note = (
            f"{cut.num_clusters:,} clusters of {cut.codebook_size:,} codes, the largest has "
            f"{int(sizes.max())}; {int((sizes == 1).sum())} have one. Page {page} of {pages}."
        )
        # A click on a card names its index alone; what stood there must be remembered.
        if session is not None:
            session.shown = {"clusters": cut.num_clusters, "cards": chosen}
        return cards, note, table, page

    def members(self, session: Session, event: gr.SelectData) -> gr.Gallery:
        """All codes of the card that was clicked, in the cut that the cards are of."""
        shown = session.shown  # the slider may be elsewhere by the time a card is chosen
        if not shown:
            raise ValueError("the clusters are not shown yet.")
        index, last = getattr(event, "index", None), len(shown["cards"]) - 1
        card = number("card", index, 0, last, integer=True)
        return self._members(shown, card)

    def _first_members(self, session: Session) -> gr.Gallery:
        """The codes of the first card of a page, so that something is chosen from the start."""
        return self._members(session.shown, 0) if session.shown else gr.skip()

    def _members(self, shown: dict, card: int) -> gr.Gallery:
        """The codes of one of the cards of a page, under the number of its cluster."""
        cluster = shown["cards"][card]
        codes = self.backend.cut(shown["clusters"]).members(cluster)
        label = f"Codes of cluster {cluster}, {len(codes)} of them"
        return gr.Gallery(self._codes(codes[:MEMBERS].tolist()), label=label)

    def _first_page(self, clusters, order, session) -> tuple:
        """The cards of another cut or order."""
        return self.clusters(clusters, order, 1, session)

    def region(self, image, clusters, row, column, session=None) -> tuple:
        """Which code and cluster one place of an image has.

        Args:
            image: an image; its centered square is looked at.
            clusters: number of clusters to cut the tree into.
            row: of the token grid, from 0 at the top.
            column: from 0 at the left.

        Returns:
            The image with the place marked, its cluster's codes, the nearest clusters, a line about
            them, and all of it as data.
        """
        # Everything that came from the client is checked before the model runs.
        backend, cut = self.backend, self.backend.cut(clusters)
        row = number("row", row, 0, backend.grid - 1, integer=True)
        column = number("column", column, 0, backend.grid - 1, integer=True)
        picture = uploaded(image)
        if picture is None:
            raise ValueError("upload an image first, or take a generated one.")
        # The code at the place, its cluster, and what is near.
        found = backend.find_ids(picture, last_made(session))[0, row, column]
        code = int(found.flat[0])  # the semantic one of a pair
        cluster = int(cut.mapping[code])
        codes = cut.members(cluster).tolist()
        # Marked on the cropped picture, which is the one that was tokenized.
        cells = np.zeros((backend.grid, backend.grid), bool)
        cells[row, column] = True
        place = marked(square(picture, backend.side), cells, shade=False)
        near = nearest_clusters(cut, backend.codebook, cluster, NEIGHBORS)
        data = {
            "id": code,
            "cluster": cluster,
            "size": len(codes),
            "members": codes,
            "neighbors": [
                {"cluster": other, "distance": distance, "joined_at": height}
                for other, distance, height in near
            ],
        }
        cards = self._neighbors(cut, near)
        note = self._sentence(data, row, column)
        return place, self._codes(codes[:MEMBERS], code), cards, note, data

    def _neighbors(self, cut: ClusterMap, near: list[tuple]) -> list[tuple]:
        """Cards of the nearest clusters."""
        firsts = [cut.members(other)[:CARD].tolist() for other, *_ in near]
        self.backend.patches([code for codes in firsts for code in codes])  # in one batch
        return [
            (self._card(codes, firsts), f"{other} · {distance:.2f} away")
            for (other, distance, _), codes in zip(near, firsts, strict=True)
        ]

    def _sentence(self, data: dict, row: int, column: int) -> str:
        """What was found, for reading."""
        size = data["size"]
        company = f"one of {size} in cluster" if size > 1 else "alone in cluster"
        text = f"Row {row}, column {column}: code {data['id']}, {company} {data['cluster']}."
        joined = [one for one in data["neighbors"] if one["joined_at"] is not None]
        if joined:
            first = min(joined, key=lambda one: one["joined_at"])
            text += (
                f" Of the clusters nearest by distance, {first['cluster']} is the first that the "
                f"tree merges with it, at height {first['joined_at']:.2f}."
            )
        return text

    def _card(self, codes: list[int], page: list[list[int]]) -> Image.Image:
        """Patches of one cluster, on a sheet as high as the fullest of its page needs."""
        rows = math.ceil(max(map(len, page)) / COLUMNS)
        return sheet(self.backend.patches(codes), COLUMNS, rows)

    def _codes(self, codes: list[int], own: int | None = None) -> list[tuple]:
        """Gallery of single codes."""
        patches = self.backend.patches(codes)
        return [
            (enlarge(patch, 64, smooth=False), f"{code} (here)" if code == own else str(code))
            for patch, code in zip(patches, codes, strict=True)
        ]

    def _browser(self, tab: gr.Tab, session: gr.State) -> None:
        """Cards, pages and the codes of one card."""
        # Which page, its cards, and the codes of a card that was clicked.
        with gr.Row(elem_classes=["low-row", "wraps"]):
            order = gr.Dropdown(list(ORDERS), value=ORDERS[0], label="Order", min_width=160)
            page = gr.Number(1, precision=0, minimum=1, label="Page", min_width=100)
            with gr.Row(elem_classes="low-row"):  # on a phone these two stay together
                back = gr.Button("Back", min_width=80)
                on = gr.Button("Next", min_width=80)
        cards = pictures("Clusters", 6, "cards", allow_preview=False, elem_id="cards")
        note = gr.Markdown(label="Summary", elem_classes="note")
        table = gr.JSON(label="Data", visible=False)
        codes = pictures(
            "Codes of the first cluster", 12, "codes", allow_preview=False, elem_id="codes"
        )
        # One endpoint for the page number, the buttons and the first look; another cut or order
        # starts from its first page.
        inputs, outputs = [self.count, order, page, session], [cards, note, table, page]
        show = endpoint(self.clusters, gpu=False)
        settings = {"preprocess": False, "show_progress": "minimal", **BROWSING}
        page.submit(show, inputs, outputs, api_name="clusters", **settings)
        private = {"api_visibility": "private", **settings}
        tab.select(show, inputs, outputs, **private)
        first = endpoint(self._first_page, gpu=False)
        for control in (self.count, order):  # keys move a slider too, and do not release it
            control.input(
                first, [self.count, order, session], outputs, trigger_mode="always_last", **private
            )
        for button, step in ((back, -1), (on, 1)):
            button.click(
                None, page, page, js=f"page => Math.max(1, page + {step})", api_visibility="private"
            ).then(show, inputs, outputs, **private)
        cards.select(endpoint(self.members, gpu=False), session, codes, **private)
        cards.change(endpoint(self._first_members, gpu=False), session, codes, **private)

    def _regions(self, session: gr.State, tab: gr.Tab) -> None:
        """A picture to click on, and what is there."""
        # A picture and a place of it on the left, its tokens on the right, what was found below.
        backend, middle = self.backend, self.backend.grid // 2
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                image = image_input()
                take_button(backend, session, image)
                with gr.Row(elem_classes="low-row"):
                    last = backend.grid - 1
                    place = {"value": middle, "precision": 0, "min_width": 80}
                    row = gr.Number(label="Row", info=f"0 (top) to {last}", **place)
                    column = gr.Number(label="Column", info=f"0 (left) to {last}", **place)
                    find = gr.Button("Look up", size="sm", min_width=100)
            with gr.Column(scale=2, min_width=300):
                place = gr.Image(
                    label="Its tokens: click on one",
                    format="png",
                    interactive=False,
                    height=384,
                    buttons=[],  # they would lie on tokens
                )
        note = gr.Markdown(label="Summary", elem_classes="note")
        codes = pictures("Its cluster", 12, "codes", allow_preview=False, elem_id="region-codes")
        cards = pictures("Nearest clusters", 8, "cards", allow_preview=False, elem_id="neighbors")
        data = gr.JSON(label="Data", visible=False)
        # One endpoint; a click writes its row and column into the fields first.
        outputs = [place, codes, cards, note, data]
        inputs = [image, self.count, row, column, session]
        settings = {"preprocess": False, "show_progress": "minimal", **MODEL}
        show = endpoint(self.region, gpu=False)
        find.click(show, inputs, outputs, api_name="region", **settings)
        private = {"api_visibility": "private", **settings}
        # Without a map there is nothing to show first, but the layout stays.
        if backend.map is not None:
            shown_first(tab, self.region, inputs, outputs)
        image.change(endpoint(self._arrived, gpu=False), inputs, outputs, **private)
        for picture in (image, place):
            picture.select(
                endpoint(self._clicked, gpu=False),
                picture,
                [row, column],
                **{**private, **BROWSING},
            ).then(show, inputs, outputs, **private)

    def _arrived(self, image, *rest) -> tuple:
        """The middle of a picture that was just put in; nothing for one that was taken away."""
        if image is None or self.backend.map is None:
            return None, [], [], "", None
        return self.region(image, *rest)

    def _clicked(self, image, event: gr.SelectData) -> tuple[int, int]:
        """Token grid place of a click on a picture."""
        # A click comes in pixels of the whole picture, while the grid covers its centered square.
        size = upright_size(cached(image.get("path") if isinstance(image, dict) else None), FORMATS)
        left, top, side = square_box(size)
        index = getattr(event, "index", None)
        if not isinstance(index, (list, tuple)) or len(index) != 2:
            raise ValueError("a place must be two numbers.")
        x, y = (number("place", at, -(10**6), 10**6) for at in index)
        # Outside of the square, the nearest token is meant.
        places = [int((at - low) / side * self.backend.grid) for at, low in ((y, top), (x, left))]
        return tuple(min(max(at, 0), self.backend.grid - 1) for at in places)
