"""Write the small synthetic datasets whose scores the pages of the protocols show.

python benchmarks/synthetic_datasets.py /data
"""

from __future__ import annotations

import argparse
from pathlib import Path

from inputs import copydays_tree, davis_tree, revisited_set, synthetic_video, synthetic_videos, voc_tree


def write_datasets(folder: Path) -> None:
    """Write one dataset per protocol that needs a dataset of its own, and the videos that they are made of.

    Args:
        folder: Folder to create.
    """
    videos = synthetic_videos(folder / "videos")
    frames = [frame for paths in videos.values() for frame in paths]
    revisited_set(folder / "revisited", videos, queries=8)
    copydays_tree(folder / "copydays", frames, scenes=12, strong=16, blocks=False)
    davis_tree(folder / "DAVIS", {"square": synthetic_video(5, objects=2, seed=0), "two": synthetic_video(6, objects=1, seed=1)})
    voc_tree(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder to create")
    write_datasets(parser.parse_args().folder)
