"""The page in a real browser, where there is one: its script runs, and nothing else does."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from hf_condense.condensed.page.render import render_page
from tests.condensed.test_page import hostile_set, measured, shown
from tests.support.condensed_sets import make_set

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# A page around the page presses its headings and its slider, and notes what it then sees.
AROUND = """<!doctype html><iframe src="page.html" width="390" height="700"></iframe><script>
window.alert = () => { window.alarm = true; };
document.querySelector("iframe").onload = (event) => {
  const page = event.target.contentDocument;
  const column = () => [...page.querySelectorAll("tbody")[0].rows].map((row) => row.cells[0].textContent);
  const press = (place) => page.querySelectorAll("th button")[place].click();
  const seen = { before: column() };
  press(1); seen.rising = column();
  press(1); seen.falling = column();
  seen.order = page.querySelectorAll("th")[1].getAttribute("aria-sort");
  const slider = page.getElementById("size");
  const image = page.images[0];
  seen.small = image.width;
  slider.value = 3; slider.dispatchEvent(new Event("input"));
  seen.large = image.width;
  seen.bars = [...page.querySelectorAll(".bar")].slice(0, 4).map((bar) => Math.round(bar.getBBox().width));
  seen.frames = [...new Set([...page.querySelectorAll(".bar")].map((bar) => bar.parentElement.tagName))];
  seen.wider = page.documentElement.scrollWidth > 390;
  seen.alarm = Boolean(window.alarm || event.target.contentWindow.alarm);
  document.body.innerHTML = "<pre>" + JSON.stringify(seen) + "</pre>";
};
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium; none was found")
def test_table_sorts_images_grow_and_no_text_of_strangers_runs(tmp_path: Path) -> None:
    sets = [measured(make_set(), 0.6), measured(make_set(method="dance"), 0.8), hostile_set(method="m3d")]
    page = render_page({small.recipe.config_name: shown(small) for small in sets})
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    (tmp_path / "around.html").write_text(AROUND, encoding="utf-8")
    command = [
        *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-web-security"),
        *("--allow-file-access-from-files", "--virtual-time-budget=5000", "--dump-dom"),
        *(f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "around.html").as_uri()),
    ]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300)
    seen = json.loads(html.unescape(re.findall("<pre>(.*?)</pre>", process.stdout, re.DOTALL)[0]))
    assert seen["before"] == ["dance_ipc2", "dm_ipc2", "m3d_ipc2"]
    assert seen["rising"] == ["dm_ipc2", "dance_ipc2", "m3d_ipc2"]
    assert seen["falling"] == ["dance_ipc2", "dm_ipc2", "m3d_ipc2"], "what was not measured stays last"
    assert seen["order"] == "descending"
    assert seen["large"] == 3 * seen["small"] == 3 * 64
    assert seen["bars"] == [140, 160, 50, 180], "of 200"
    assert seen["frames"] == ["svg"]
    assert not seen["wider"], "on a phone, the page does not scroll sideways"
    assert not seen["alarm"]
