"""The page to relight in: `session.py` is what it does, `page.py` how it looks (Gradio)."""
