"""A picture of a report as a browser shows it, for the README.

    python benchmarks/report_picture.py demo-out/report.html --out docs/report.png

Needs the package playwright (extra `dev`) and Chromium.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright
from result import publish

WIDTH, HEIGHT = 1000, 1240  # as far as the frontier and the speeds
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, help="report.html")
    parser.add_argument("--out", type=Path, required=True, help="PNG file to write")
    arguments = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None or not arguments.report.is_file():
        raise SystemExit(f"no Chromium here, or no file '{arguments.report}'")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=QUIET)
        page = browser.new_context(offline=True, viewport={"width": WIDTH, "height": HEIGHT}).new_page()
        page.goto(arguments.report.absolute().as_uri())
        page.screenshot(path=arguments.out)
        browser.close()
    publish({"benchmark": "report_picture", "width": WIDTH, "height": HEIGHT}, None)


if __name__ == "__main__":
    main()
