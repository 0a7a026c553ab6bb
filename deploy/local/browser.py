"""A page as headless Chromium sees it, once its scripts have run."""

import os
import subprocess
from typing import Optional, Tuple


def render(url: str, folder: str, screenshot: Optional[str] = None, size: Tuple[int, int] = (1440, 2380)) -> str:
    """The document; a picture of it too, if a path is given. `folder` is for the browser's profile."""
    arguments = [
        "chromium",
        "--headless=new",
        "--no-sandbox",  # which neither root nor a build's sandbox can have; the page is our own
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        f"--user-data-dir={folder}/profile",
        f"--window-size={size[0]},{size[1]}",
        # Of the page's clock, which stands still while it waits for Prometheus.
        "--virtual-time-budget=5000",
    ]
    environment = {**os.environ, "HOME": folder, "XDG_CONFIG_HOME": folder, "XDG_CACHE_HOME": folder}

    def run(action: str) -> str:
        done = subprocess.run(
            [*arguments, action, url], env=environment, capture_output=True, text=True, check=False, timeout=120
        )
        if done.returncode != 0:
            raise RuntimeError(f"chromium ended with {done.returncode}:\n{done.stderr[-4000:]}")
        return done.stdout

    if screenshot is not None:
        run(f"--screenshot={screenshot}")
    return run("--dump-dom")
