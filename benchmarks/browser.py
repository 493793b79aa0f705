"""Opens a report in a real Chromium and runs what it tells people to run.

    pip install 'promptmill[browser]'; apt-get install chromium
    promptmill report OUT --to report.html
    python -m benchmarks.browser report.html --commands 3 --shots shots/

At 1280 and 390 pixels, light and dark: console errors, requests that leave the page, sideways overflow with everything unfolded,
images that do not load or say nothing, links that lead nowhere, headings out of order, contrast below WCAG's AA, the copy button.
Then a spread sample of the commands, in a shell, from an empty folder; `promptmill` is the one beside this Python.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
from playwright.sync_api import Browser, Page, sync_playwright

QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WIDTHS = {1280: 900, 390: 844}

# Returns what is wrong with the page, a line each.
LOOK = """() => {
  const wrong = [], say = (what, node) => wrong.push(`${what}: ${(node.outerHTML || node.textContent).slice(0, 120)}`);
  document.querySelectorAll('details').forEach((details) => { details.open = true; });
  if (document.documentElement.scrollWidth > innerWidth) wrong.push(`scrolls sideways: ${document.documentElement.scrollWidth}`);
  for (const node of document.querySelectorAll('body *')) {
    const box = node.getBoundingClientRect();
    if (box.width && (box.right > innerWidth + 1 || box.left < -1)) say('sticks out', node);
  }
  for (const image of document.images) {
    if (!image.complete || !image.naturalWidth) say('does not load', image);
    if (!image.alt) say('has no alt', image);
  }
  document.querySelectorAll('svg:not([aria-label])').forEach((svg) => say('says nothing', svg));
  for (const link of document.querySelectorAll('a')) {
    const place = link.getAttribute('href');
    if (place !== '#top' && !(place.startsWith('#') && document.getElementById(place.slice(1)))) say('leads nowhere', link);
  }
  let level = 0;
  for (const heading of document.querySelectorAll('h1, h2, h3, h4')) {
    const its = Number(heading.tagName[1]);
    if (its > level + 1) say('heading out of order', heading);
    level = its;
  }
  const numbers = (colour) => colour.match(/[0-9.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const colour = numbers(getComputedStyle(node).backgroundColor);
      if (colour.length < 4 || colour[3] > 0.5) return colour;
    }
    return [255, 255, 255];
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !node.getClientRects().length || node.closest('title, script')) continue;
    const style = getComputedStyle(node), ink = node.closest('svg') ? style.fill : style.color;
    const [a, b] = [light(numbers(ink)), light(behind(node))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < (parseFloat(style.fontSize) >= 24 ? 3 : 4.5)) say(`contrast ${contrast.toFixed(1)}`, node);
  }
  return wrong;
}"""


def look(browser: Browser, file: Path, width: int, scheme: Any, shots: Path | None) -> tuple[list[str], list[str]]:
    """Return the faults of the page at this width and in this scheme, and the commands on it."""
    wrong: list[str] = []
    context = browser.new_context(viewport={"width": width, "height": WIDTHS[width]}, color_scheme=scheme, device_scale_factor=1)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.on("console", lambda message: wrong.append(f"console: {message.text}") if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    page.on("request", lambda request: wrong.append(f"asks for {request.url[:100]}") if _leaves(request.url, file) else None)
    page.goto(file.as_uri())
    for image in page.locator("img").all():
        image.evaluate("image => { image.loading = 'eager'; return image.decode().catch(() => {}); }")
    if shots:
        shots.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=shots / f"{width}-{scheme}.png")
        page.screenshot(path=shots / f"{width}-{scheme}-whole.png", full_page=True)
    wrong += page.evaluate(LOOK)
    commands = page.locator("code.command").all_text_contents()
    wrong += _copied(page, commands)
    context.close()
    return [f"{width} px, {scheme}: {problem}" for problem in wrong], list(dict.fromkeys(commands))


def _leaves(url: str, file: Path) -> bool:
    return not url.startswith(("data:", file.as_uri()))


def _copied(page: Page, commands: list[str]) -> list[str]:
    for button, command in list(zip(page.locator("button.copy").all(), commands, strict=True))[:3]:
        button.click()
        copied = page.evaluate("navigator.clipboard.readText()")
        if copied != command:
            return [f"copied {copied!r}, not {command!r}"]
    return []


def run(command: str) -> tuple[int, str]:
    """Return the exit status of a command in a shell, and its last line."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(["sh", "-c", command], cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True)
        made = [file.name for file in Path(folder).iterdir()]
    last = [*done.stdout.splitlines(), *done.stderr.splitlines()][-1:]
    return done.returncode, f"{' '.join(last)} {made}"


@click.command()
@click.argument("file", type=click.Path(exists=True, path_type=Path))
@click.option("--chromium", default="/usr/bin/chromium", show_default=True)
@click.option("--shots", type=click.Path(path_type=Path), help="Folder for screenshots.")
@click.option("--commands", "number", default=3, show_default=True, help="How many commands to run.")
def main(file: Path, chromium: str, shots: Path | None, number: int) -> None:
    """Look at a report as its readers do."""
    wrong, commands = [], list[str]()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=QUIET)
        for width in WIDTHS:
            for scheme in ("light", "dark"):
                problems, commands = look(browser, file.resolve(), width, scheme, shots)
                click.echo(f"{width} px, {scheme}: {len(problems)} problems, {len(commands)} commands")
                wrong += problems
        browser.close()
    number = min(number, len(commands))
    for command in (commands[(2 * i + 1) * len(commands) // (2 * number)] for i in range(number)):
        status, said = run(command)
        click.echo(f"{command}: exit {status}: {said}")
        wrong += [f"{command}: exit {status}"] if status else []
    for problem in wrong:
        click.echo(problem, err=True)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
