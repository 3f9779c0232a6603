"""How the Space looks: theme and style sheet, which Gradio 6 takes at launch."""

import gradio as gr

ACCENT = gr.themes.Color(
    name="leaf",
    c50="#eefaf3",
    c100="#d6f2e2",
    c200="#b0e4c8",
    c300="#7dcfa7",
    c400="#48b483",
    c500="#269869",
    c600="#187a54",
    c700="#136245",
    c800="#124e38",
    c900="#104030",
    c950="#07241b",
)
FONT = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]

CSS = """
.gradio-container { max-width: 1200px !important; margin: 0 auto !important; }
.crisp img, .crisp canvas { image-rendering: pixelated; }
.note { min-height: 1.5em; opacity: 0.85; }
.head h1 { margin-bottom: 0; }
.seed-row { flex-wrap: nowrap !important; align-items: end; }
.dice { min-width: 48px !important; }
"""


def look() -> dict:
    """Arguments of `launch` that are about appearance."""
    theme = gr.themes.Soft(
        primary_hue=ACCENT, secondary_hue=ACCENT, neutral_hue="stone", font=FONT, radius_size="md"
    )
    return {"theme": theme, "css": CSS, "footer_links": ["api", "gradio", "settings"]}
