"""The README's animation: `saqrl train`, then `python docs/make/animation.py RUN`.

Plays the run's policy and its baseline from the same starts; writes docs/rollouts.gif. Needs the
extra `video`.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from imageio_ffmpeg import get_ffmpeg_exe

import saqrl
from saqrl.policy.side_by_side import side_by_side

# One palette, and only what changes between frames: under 1 MB.
FILTER = (
    "fps=7.5,scale=512:-1:flags=lanczos,split[a][b];[a]palettegen=max_colors=96[p];"
    "[b][p]paletteuse=dither=none:diff_mode=rectangle"
)

run = Path(sys.argv[1])
policies = {"codes (SAQ-BC)": run / "policy", "regression (BC)": run / "baseline"}
loaded = {name: saqrl.load_policy(folder) for name, folder in policies.items()}
out = Path(__file__).parents[1] / "rollouts.gif"
with tempfile.TemporaryDirectory() as folder:
    film = Path(folder) / "film.mp4"
    side_by_side(loaded, loaded["codes (SAQ-BC)"].environment, film, episodes=3)
    made = ["-i", film, "-filter_complex", FILTER, out]
    subprocess.run([get_ffmpeg_exe(), "-loglevel", "error", "-y", *made], check=True)
print(f"{out}: {out.stat().st_size / 1e6:.2f} MB")
