"""The report in a real browser: nothing on the console, no request beyond the page. Skipped where no browser is installed."""

import http.server
import shutil
import subprocess
import threading

import pytest
from synthetic_runs import hui_setting, rows_of_seed, write_training

from compare import report
from compare.judging import judge_runs
from compare.load import load
from compare.origin import origin
from compare.pictures import draw_all
from compare.rows import Excluded

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
HOSTILE = '<script>fetch("/stolen")</script>"><img src="/stolen.png" onerror="fetch(1)"><link rel=stylesheet href=/stolen.css>'

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on this machine")


class Seen:
    """A server of one page that keeps what is asked of it."""

    def __init__(self, page):
        self.paths = []
        seen = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                seen.paths.append(self.path)
                self.send_response(200 if self.path == "/report.html" else 404)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.end_headers()
                self.wfile.write(page if self.path == "/report.html" else b"")

            def log_message(self, *values):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def opened(page, folder):
    """Return (paths asked for, lines on the console, the page as the browser has it)."""
    seen = Seen(page)
    # Every name is led to the server, so that a request to anywhere is seen.
    names = f"--host-resolver-rules=MAP * 127.0.0.1:{seen.port}"
    quiet = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run")
    quiet += ("--disable-features=NetworkTimeServiceQuerying",)  # the browser asking what time it is
    options = (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        *quiet,
        names,
        "--enable-logging=stderr",
        "--log-level=0",
    )
    try:
        done = subprocess.run(
            [BROWSER, *options, f"--user-data-dir={folder}", "--virtual-time-budget=4000", "--dump-dom",
             f"http://127.0.0.1:{seen.port}/report.html"],
            capture_output=True, text=True, timeout=180, check=False,
        )  # fmt: skip
    finally:
        seen.close()
    if "<html" not in done.stdout:
        pytest.skip(f"the browser does not start here: {done.stderr[-200:]}")
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return seen.paths, console, done.stdout


def test_the_page_asks_for_nothing_and_says_nothing(tmp_path):
    rows = [{**r, "layer": HOSTILE if r["layer"] == "network" else r["layer"]} for r in rows_of_seed(0)]
    folder = write_training(tmp_path / "runs", layers=("blocks.0", "penultimate"))
    write_training(tmp_path / "runs", seeds=[0], setting=hui_setting(dataset=HOSTILE), name="other", rows=rows)
    table = load(tmp_path / "runs")
    pictures, missing = draw_all(table.of_cell(folder.name), ["trajectory", "layers"], {})
    hostile = type(table)(table.data, table.cells, (*table.excluded, Excluded(HOSTILE, 1, HOSTILE)), (HOSTILE,))
    text = report.render(hostile, judge_runs(table), pictures, not_shown=[*missing, HOSTILE], source=origin(table), title=HOSTILE)
    paths, console, page = opened(text.encode(), tmp_path / "browser")
    assert paths == ["/report.html"] and console == []
    assert page.count("<img ") == len(pictures) == 2 and "<script" not in page and "&lt;script&gt;" in page
    assert "Verdicts" in page


def test_a_page_that_does_ask_is_seen(tmp_path):
    """The check itself can fail: the same hostile text without the escaping and the policy."""
    page = f"<html><body>{HOSTILE}<script>console.error('heard')</script></body></html>"
    paths, console, _ = opened(page.encode(), tmp_path / "browser")
    assert {"/stolen", "/stolen.png", "/stolen.css"} <= set(paths)
    assert any("heard" in line for line in console)
