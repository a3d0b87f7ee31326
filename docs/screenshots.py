"""Pictures of every page of a running review page, for docs/images/review: three screens, light and dark.

``python docs/screenshots.py http://127.0.0.1:8430 ann password.txt`` signs in and overwrites the pictures. Use somebody
with the role engineer, a line that has run for a while, some labels, and a training that is done. Needs Chromium.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

FOLDER = Path(__file__).resolve().parent / "images" / "review"
SCREENS = {"desktop": (1440, 900), "panel": (1280, 800), "phone": (390, 844)}
PAGES = {"live": "/", "review": "/review", "agreement": "/conflicts", "data": "/data", "improve": "/improve"}
LONGEST_PX = {"desktop": 1800, "panel": 800, "phone": 1700}
SETTLE_MS = 2500


def main() -> None:
    """Take all pictures."""
    url, name, file = sys.argv[1:]
    password = Path(file).read_text(encoding="utf-8").strip()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for screen, (width, height) in SCREENS.items():
            for scheme in ("light", "dark"):
                context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
                page = context.new_page()
                page.goto(f"{url}/login")
                take(page, "login", screen, scheme)
                page.fill("#name", name)
                page.fill("#password", password)
                page.keyboard.press("Enter")
                page.wait_for_url(f"{url}/")
                for title, path in PAGES.items():
                    page.goto(url + path)
                    page.wait_for_timeout(SETTLE_MS)
                    take(page, title, screen, scheme)
                context.close()
        browser.close()


def take(page: Page, title: str, screen: str, scheme: str) -> None:
    """Write one picture, of the whole page where that is not too long."""
    width, height = SCREENS[screen]
    whole = page.evaluate("document.documentElement.scrollHeight")
    page.set_viewport_size({"width": width, "height": max(height, min(int(whole), LONGEST_PX[screen]))})
    page.wait_for_timeout(300)
    page.screenshot(path=FOLDER / f"{title}-{screen}-{scheme}.jpg", type="jpeg", quality=72)
    page.set_viewport_size({"width": width, "height": height})


if __name__ == "__main__":
    main()
