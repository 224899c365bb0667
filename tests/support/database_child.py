"""A process for tests of the database to kill or interrupt.

database_child.py FOLDER [stop]: connect FiftyOne, add a sample to a dataset, print the address and the number
of samples; then wait to be killed or interrupted, or stop.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from diffugen.review.database import database


def main(folder: Path, stop: bool) -> None:
    with database(folder) as uri:
        import fiftyone as fo

        dataset = (
            fo.load_dataset("kept") if fo.dataset_exists("kept") else fo.Dataset("kept", persistent=True)
        )
        dataset.add_sample(fo.Sample(filepath=f"/images/{len(dataset)}.png"))
        print(uri, len(dataset), flush=True)
        while not stop:
            time.sleep(0.1)
    if stop:
        # Again in the same process, on a new server of the same files.
        with database(folder) as uri:
            print(uri, len(fo.load_dataset("kept")), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), "stop" in sys.argv[2:])
