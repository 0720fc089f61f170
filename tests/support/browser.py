"""A page as a browser shows it, where there is one."""

from __future__ import annotations

import html
import shutil
import subprocess
from pathlib import Path

import pytest


def shown_in_a_browser(page: str, script: str, folder: Path, scheme: str = "light") -> str:
    """The DOM around a page as wide as a phone, behind a script of a surrounding page. Skips where there is no browser.

    page: HTML, whose own rules about scripts hold inside it. script: may use `inner`, the page's document, and writes
    its answer into `document.body.innerText`. folder: for the browser's files.
    """
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium on PATH")
    phone = folder / "phone.html"
    phone.write_text(
        f'<iframe id="phone" width="390" height="800" srcdoc="{html.escape(page)}"></iframe>'
        f"<script>phone.onload = () => {{ const inner = phone.contentDocument; {script}; }}</script>"
    )
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", f"--user-data-dir={folder / 'profile'}",
        f"--blink-settings=preferredColorScheme={('dark', 'light').index(scheme)}", "--dump-dom", phone.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0
    return html.unescape(done.stdout)
