"""Theme and style sheet of the app, which Gradio 6 takes at launch."""

import gradio as gr

# From 50, the lightest, to 950, the darkest, as Gradio's colors go.
SHADES = "eefaf3 d6f2e2 b0e4c8 7dcfa7 48b483 269869 187a54 136245 124e38 104030 07241b"
ACCENT = gr.themes.Color(*(f"#{shade}" for shade in SHADES.split()), name="leaf")
FONT = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]

CSS = """
.gradio-container { width: 100%; max-width: 1180px !important; margin: 0 auto !important; }
.intro h1 { margin-bottom: 0; }
.note { min-height: 1.5em; opacity: 0.85; }
.low-row { align-items: end; flex-wrap: nowrap !important; }
.low-row.wraps { flex-wrap: wrap !important; }
.low-row button { margin-bottom: 12px; min-height: 42px; white-space: nowrap; }

/* Labels above the pictures, not on them. */
.block label[data-testid="block-label"] {
  position: static; border: none; box-shadow: none; padding: 8px 10px; width: fit-content;
}
.block label[data-testid="block-label"] > span { display: none; }

/* Galleries as high as their pictures, captions below. */
.cards img, .codes img { image-rendering: pixelated; }
.pictures .grid-wrap { min-height: 0 !important; max-height: none !important; overflow: visible; }
.pictures .grid-container {
  padding-top: 0 !important; align-items: start; grid-auto-rows: auto !important;
}
.pictures .grid-wrap > .icon-button-wrapper { top: -36px; }  /* beside the label */
.pictures .thumbnail-item { aspect-ratio: auto; height: auto; background: none; }
.pictures .thumbnail-item img { height: auto; }
.pictures .caption-label {
  position: static; width: 100%; max-width: none; border: none; box-shadow: none; padding: 2px 0;
  background: none; font-size: 0.8rem; text-align: center; white-space: normal;
}
.pictures .empty { min-height: 160px !important; }
.many .grid-container:has(> :nth-child(5)) { --grid-cols: 4 !important; }
.cards .thumbnail-item { padding: 6px; }
.codes .grid-container { grid-template-columns: repeat(10, 1fr) !important; }
.codes .grid-wrap { max-height: 400px !important; overflow-y: auto; }

/* An error is said once, in the corner, not again on every output. */
.block > .wrap > .error { display: none !important; }
.block > .wrap:has(> .error) { display: none !important; }

/* What is given and the button, pictures, other settings; on a phone in this order. */
.work {
  display: grid !important; grid-template: "main results" auto "more results" 1fr / 2fr 3fr;
  align-items: start;
}
.work.drawn { grid-template: "main more" auto "main results" 1fr / 1fr 1fr; }
.work > .main { grid-area: main; }
.work > .results { grid-area: results; }
.work > .more { grid-area: more; }
.run { flex-wrap: nowrap !important; }
.run button { min-height: 42px; }
@media (max-width: 640px) {
  .block.intro, .tabs { margin-inline: -20px; width: auto; }
  .intro p { font-size: 0.85rem; line-height: 1.35; margin: 0.3em 0; }
  .tab-container button { padding: 0 6px !important; font-size: 0.85rem; }
  .about p { font-size: 0.85rem; line-height: 1.35; }
  .work, .work.drawn { grid-template: "main" auto "results" auto "more" auto / 1fr; }
  .drawing { height: 320px !important; }
  .photo { height: 230px !important; }
  .few .grid-container { grid-template-columns: repeat(2, 1fr) !important; }
  .few .grid-container:has(> :nth-child(3):last-child) {
    grid-template-columns: repeat(3, 1fr) !important;
  }
  .cards .grid-container { grid-template-columns: repeat(3, 1fr) !important; }
  .codes .grid-container { grid-template-columns: repeat(6, 1fr) !important; }
}
"""


# A press of any button takes old errors away; a card brings its codes into view, and on a phone a
# main button its results.
SCRIPT = """() => document.addEventListener('click', event => {
  if (!event.target.closest('.tabs button')) return;
  document.querySelectorAll('.toast-close').forEach(close => close.click());
  if (event.target.closest('#cards .thumbnail-item'))
    document.querySelector('#codes').scrollIntoView({block: 'nearest', behavior: 'smooth'});
  const button = event.target.closest('button.primary');
  if (!button) return;
  const results = button.closest('.tabitem')?.querySelector('.pictures');
  if (innerWidth > 640 || !results || results.getBoundingClientRect().bottom <= innerHeight) return;
  results.scrollIntoView({block: 'start', behavior: 'smooth'});
})"""

THEME = {  # over Soft; its own `set` would forget the rest of Soft
    "block_title_background_fill": "none",
    "block_title_text_color": "*body_text_color",
    "block_title_text_color_dark": "*body_text_color",
    "block_title_padding": "0",
    "block_label_background_fill": "none",
    "block_label_background_fill_dark": "none",
    "block_label_text_color": "*body_text_color",
    "block_label_text_color_dark": "*body_text_color",
    "block_info_text_color": "*neutral_600",
    "body_text_color_subdued": "*neutral_600",
    "button_primary_background_fill": "*primary_600",
    "button_primary_background_fill_hover": "*primary_700",
}


def appearance() -> dict:
    """Arguments of `launch` that are about appearance."""
    theme = gr.themes.Soft(
        primary_hue=ACCENT, secondary_hue=ACCENT, neutral_hue="stone", font=FONT, radius_size="md"
    )
    for name, value in THEME.items():
        setattr(theme, name, value)
    return {"theme": theme, "css": CSS, "js": SCRIPT, "footer_links": ["api", "gradio", "settings"]}
