"""Archives our TorchServe handlers, ready for a model store: `make archives`, or python tools/archives.py [FOLDER].

The embedded models stay where they are, in the cache; the archives name their folders. Default: build/archives.
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
    """Writes one archive a handler; prints its path."""
    folder = Path(arguments[0]) if arguments else root() / "build" / "archives"
    for handler, model in MODELS.items():
        weights = {"model_path": str(models.resolve(model))} if model else {}
        made = archive(handler, folder=folder, model_name=handler, handler_settings=weights)
        print(made.path)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except LabkitError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
