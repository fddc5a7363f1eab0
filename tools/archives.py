"""Archive the course's TorchServe handlers for a model store: `make archives`, or python tools/archives.py [FOLDER].

Embedded models stay in the cache; the archives refer to their folders. Default folder: build/archives.
"""

import sys
from pathlib import Path

from labkit import models
from labkit.errors import LabkitError
from labkit.files import root
from labkit.serving.torchserve import archive

MODELS = {
    "text_generation": models.CHAT,
    "naive": models.CHAT,
    "embedding": models.EMBEDDING,
    "sleep": None,
}


def main(arguments: list[str]) -> int:
    """Write one archive per handler; print its path."""
    folder = Path(arguments[0]) if arguments else root() / "build" / "archives"
    for handler, model in MODELS.items():
        weights = {"model_path": str(models.resolve(model))} if model else {}
        print(archive(handler, folder=folder, model_name=handler, handler_settings=weights).path)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except LabkitError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
